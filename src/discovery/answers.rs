//! What DNS has said, for how long it holds, and when to ask again. Pure: time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoints;
use crate::config::{BackendSource, Discovery};
use crate::pool::Endpoint;

/// Something DNS is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// The SRV records of a name.
    Service(String),
    /// The A and AAAA records of a name.
    Host(String),
}

/// What DNS says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::Service`]; empty where the one target is "." (RFC 2782: no service at this domain).
    Services(Vec<Service>),
    /// To [`Question::Host`]
    Addresses(Vec<IpAddr>),
}

/// An SRV record (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The lowest serves first.
    pub priority: u16,
    /// Its share among those of its priority.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// Its host name, without a trailing dot.
    pub target: String,
}

/// The first wait after a failed lookup is `min_ttl`, but never shorter, and it doubles up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The answers of one pool's names. The last good one stays in force however often asking again fails.
#[derive(Debug)]
pub struct Answers {
    min_ttl: Duration,
    max_ttl: Duration,
    entries: HashMap<Question, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    answer: Option<Answer>,
    due: Instant,
    failures: u32,
}

impl Answers {
    /// None yet.
    pub fn new(settings: &Discovery) -> Self {
        let min_ttl = settings.min_ttl;
        Self { min_ttl, max_ttl: settings.max_ttl.max(min_ttl), entries: HashMap::new() }
    }

    /// The last good answer.
    pub fn get(&self, question: &Question) -> Option<&Answer> {
        self.entries.get(question)?.answer.as_ref()
    }

    /// What to ask now, so that the backends behind `sources` are known.
    pub fn due(&self, sources: &[BackendSource], now: Instant) -> Vec<Question> {
        let is_due = |question: &Question| self.entries.get(question).is_none_or(|entry| now >= entry.due);
        endpoints::questions(sources, self).into_iter().filter(is_due).collect()
    }

    /// When the next question is due; `None` where there is none.
    pub fn next_due(&self, sources: &[BackendSource], now: Instant) -> Option<Instant> {
        let due = |question| self.entries.get(&question).map_or(now, |entry| entry.due);
        endpoints::questions(sources, self).into_iter().map(due).min()
    }

    /// Takes an answer that holds for `ttl`, between the configured bounds.
    pub fn learn(&mut self, question: Question, answer: Answer, ttl: Duration, now: Instant) {
        let due = now + ttl.clamp(self.min_ttl, self.max_ttl);
        self.entries.insert(question, Entry { answer: Some(answer), due, failures: 0 });
    }

    /// Takes that there was no answer; how many times in a row that makes.
    pub fn fail(&mut self, question: Question, now: Instant) -> u32 {
        let entry = self.entries.entry(question).or_insert(Entry { answer: None, due: now, failures: 0 });
        let first = self.min_ttl.max(SHORTEST_WAIT);
        let wait = first.saturating_mul(1 << entry.failures.min(16)).min(LONGEST_WAIT.max(first));
        entry.failures = entry.failures.saturating_add(1);
        entry.due = now + wait;
        entry.failures
    }

    /// Takes over what `before` knows. It is due at once.
    pub fn succeed(&mut self, before: &Self, now: Instant) {
        for (question, entry) in &before.entries {
            self.entries.entry(question.clone()).or_insert(Entry {
                answer: entry.answer.clone(),
                due: now,
                failures: 0,
            });
        }
    }

    /// Forgets what nobody asks any more.
    pub fn prune(&mut self, sources: &[BackendSource]) {
        let asked = endpoints::questions(sources, self);
        self.entries.retain(|question, _| asked.contains(question));
    }

    /// The backends behind `sources`, as far as they are known.
    pub fn endpoints(&self, sources: &[BackendSource]) -> Vec<Endpoint> {
        endpoints::endpoints(sources, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BackendAddress;

    fn host(name: &str) -> Question {
        Question::Host(name.to_owned())
    }

    fn sources() -> [BackendSource; 1] {
        let address = BackendAddress::Host { name: "dc".into(), port: 389 };
        [BackendSource { address, weight: 1, tier: 0, max_sessions: 0 }]
    }

    fn addresses(last: &[u8]) -> Answer {
        Answer::Addresses(last.iter().map(|last| [10, 0, 0, *last].into()).collect())
    }

    #[test]
    fn an_answer_holds_for_its_ttl_between_the_bounds() {
        let now = Instant::now();
        let sources = sources();
        for (ttl, holds) in [(0, 5), (5, 5), (60, 60), (86400, 300)] {
            let mut answers = Answers::new(&Discovery::default());
            assert_eq!(answers.next_due(&sources, now), Some(now));
            answers.learn(host("dc"), addresses(&[1]), Duration::from_secs(ttl), now);
            assert_eq!(answers.next_due(&sources, now), Some(now + Duration::from_secs(holds)));
            assert!(answers.due(&sources, now + Duration::from_secs(holds - 1)).is_empty());
            assert_eq!(answers.due(&sources, now + Duration::from_secs(holds)), [host("dc")]);
        }
    }

    #[test]
    fn failures_keep_the_last_good_answer_and_wait_longer_each_time() {
        let mut now = Instant::now();
        let sources = sources();
        let mut answers = Answers::new(&Discovery::default());
        answers.learn(host("dc"), addresses(&[1]), Duration::ZERO, now);
        for (times, seconds) in [5, 10, 20, 40, 60, 60].into_iter().enumerate() {
            assert_eq!(answers.fail(host("dc"), now), times as u32 + 1);
            let due = answers.next_due(&sources, now).unwrap();
            assert_eq!(due - now, Duration::from_secs(seconds));
            assert_eq!(answers.get(&host("dc")), Some(&addresses(&[1])));
            now = due;
        }
        answers.learn(host("dc"), addresses(&[2]), Duration::ZERO, now);
        assert_eq!(answers.fail(host("dc"), now), 1);
        assert_eq!(answers.get(&host("dc")), Some(&addresses(&[2])));
    }

    #[test]
    fn what_nobody_asks_is_forgotten() {
        let now = Instant::now();
        let mut answers = Answers::new(&Discovery::default());
        for name in ["dc", "old"] {
            answers.learn(host(name), addresses(&[1]), Duration::ZERO, now);
        }
        answers.prune(&sources());
        assert!(answers.get(&host("dc")).is_some() && answers.get(&host("old")).is_none());
    }
}
