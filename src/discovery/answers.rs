//! What DNS has said, for how long it holds, and when to ask again. Pure: time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoints::{self, MOST_ENDPOINTS};
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
/// Failed lookups after which a target of a service keeps nothing in force that the service has left: the record of a host that is
/// no more may stay for years. By default that is after 75 s.
const GIVEN_UP_AFTER: u32 = 5;

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
    /// Services that were named before and led somewhere: in force until it is known where those named now are.
    former: Vec<Service>,
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

    /// The services of this name that are in force: those that DNS names and, while it isn't known where these are, those it named
    /// before.
    pub fn services(&self, name: &str) -> Vec<Service> {
        let entry = self.entries.get(&Question::Service(name.to_owned()));
        let Some(Entry { answer: Some(Answer::Services(named)), former, .. }) = entry else { return Vec::new() };
        let former = if self.is_settled(named) { &[][..] } else { former };
        [named, former].concat()
    }

    /// Whether enough is known of where these services are to leave those that were named before: at least of one, and of each whose
    /// host hasn't been asked for in vain again and again.
    fn is_settled(&self, services: &[Service]) -> bool {
        let host = |service: &Service| self.entries.get(&Question::Host(service.target.clone()));
        let is_known = |service: &Service| host(service).is_some_and(|host| host.answer.is_some());
        let is_given_up = |service: &Service| host(service).is_some_and(|host| host.failures >= GIVEN_UP_AFTER);
        services.is_empty()
            || (services.iter().any(is_known)
                && services.iter().all(|service| is_known(service) || is_given_up(service)))
    }

    /// What is left in force of a service when it gets this answer.
    fn former(&self, question: &Question, answer: &Answer) -> Vec<Service> {
        let (Question::Service(name), Answer::Services(named)) = (question, answer) else { return Vec::new() };
        let is_named = |service: &Service| {
            named.iter().any(|other| (other.target.as_str(), other.port) == (service.target.as_str(), service.port))
        };
        let leads_somewhere = |service: &Service| self.get(&Question::Host(service.target.clone())).is_some();
        let mut former = self.services(name);
        former.retain(|service| !is_named(service) && leads_somewhere(service));
        former.truncate(MOST_ENDPOINTS);
        former
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
        let former = self.former(&question, &answer);
        self.entries.insert(question, Entry { answer: Some(answer), former, due, failures: 0 });
    }

    /// Takes that there was no answer; how many times in a row that makes.
    pub fn fail(&mut self, question: Question, now: Instant) -> u32 {
        let new = || Entry { answer: None, former: Vec::new(), due: now, failures: 0 };
        let entry = self.entries.entry(question).or_insert_with(new);
        let first = self.min_ttl.max(SHORTEST_WAIT);
        let wait = first.saturating_mul(1 << entry.failures.min(16)).min(LONGEST_WAIT.max(first));
        entry.failures = entry.failures.saturating_add(1);
        entry.due = now + wait;
        entry.failures
    }

    /// Takes over what `before` knows. It is due at once.
    pub fn succeed(&mut self, before: &Self, now: Instant) {
        for (question, entry) in &before.entries {
            let taken_over = || Entry { due: now, failures: 0, ..entry.clone() };
            self.entries.entry(question.clone()).or_insert_with(taken_over);
        }
    }

    /// Forgets what nobody asks any more, and what is no longer in force of a service.
    pub fn prune(&mut self, sources: &[BackendSource]) {
        let is_over = |entry: &Entry| match &entry.answer {
            Some(Answer::Services(named)) => self.is_settled(named),
            _ => false,
        };
        let over: Vec<_> =
            self.entries.iter().filter(|(_, entry)| is_over(entry)).map(|(question, _)| question.clone()).collect();
        for question in over {
            self.entries.entry(question).and_modify(|entry| entry.former.clear());
        }
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

    /// A stale record, of a domain controller that is no more, mustn't keep alive what DNS has really dropped.
    #[test]
    fn a_new_host_that_is_asked_for_in_vain_holds_up_a_service_only_for_so_long() {
        const NAME: &str = "_ldap._tcp.x";
        let sources = [BackendSource { address: BackendAddress::Service(NAME.into()), ..sources()[0].clone() }];
        let now = Instant::now();
        let name = |answers: &mut Answers, hosts: &[&str]| {
            let service = |host: &&str| Service { priority: 0, weight: 1, port: 389, target: (*host).to_owned() };
            let services = Answer::Services(hosts.iter().map(service).collect());
            answers.learn(Question::Service(NAME.into()), services, Duration::ZERO, now);
        };
        let hosts = |answers: &Answers| -> Vec<String> {
            answers.endpoints(&sources).into_iter().map(|endpoint| endpoint.host).collect()
        };
        let mut answers = Answers::new(&Discovery::default());
        name(&mut answers, &["a", "b"]);
        for (host_name, last) in [("a", 1), ("b", 2)] {
            answers.learn(host(host_name), addresses(&[last]), Duration::ZERO, now);
        }
        name(&mut answers, &["a", "stale"]);
        for _ in 1..GIVEN_UP_AFTER {
            answers.fail(host("stale"), now);
            answers.prune(&sources);
            assert_eq!(hosts(&answers), ["a", "b"]);
        }
        answers.fail(host("stale"), now);
        answers.prune(&sources);
        assert_eq!(hosts(&answers), ["a"]);
        // Where nothing else is left there is no end to it.
        name(&mut answers, &["stale"]);
        answers.prune(&sources);
        assert_eq!(hosts(&answers), ["a"]);
        // A target "." says that there is no service.
        name(&mut answers, &[]);
        answers.prune(&sources);
        assert_eq!((hosts(&answers), answers.entries.len()), (Vec::<String>::new(), 1));
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
