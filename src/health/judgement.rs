//! From the results of probes, and what real traffic met, to one verdict about a backend. Pure: time is an argument.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::outlier::Ejection;
use super::streak::Streak;
use crate::config;
use crate::pool::Health;

/// Which of a pool's two probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// `[pools.NAME.health]`: frequent, on one connection.
    Cheap,
    /// `[pools.NAME.health.deep]`: seldom, connecting anew.
    Deep,
}

/// Why a probe failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer within this time.
    Silent(Duration),
    /// It can't be connected to, or the connection broke.
    Unreachable(String),
    /// It answers on a connection from before, and a new one can't be had, for this reason.
    Closed(String),
    /// An answer, but not the one that a working backend gives.
    Wrong(String),
    /// It answers anonymous requests, and refuses every simple bind (result 8).
    StrongerAuthRequired,
    /// The service account's bind got invalidCredentials: no fault of the backend.
    CredentialsRefused(String),
    /// The question couldn't be asked, for a reason on this side.
    NotAsked(String),
}

impl Failure {
    /// Whether it says anything of the backend.
    fn is_the_backends(&self) -> bool {
        !matches!(self, Self::CredentialsRefused(_) | Self::NotAsked(_))
    }

    /// Whether it is enough where real traffic has met trouble. A crowd that overruns the accept queue for a moment isn't.
    fn is_decisive(&self) -> bool {
        !matches!(self, Self::Closed(_))
    }

    /// Whether nothing came back.
    fn is_silence(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Unreachable(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(patience) => write!(f, "no answer within {patience:?}"),
            Self::Unreachable(why) | Self::Wrong(why) | Self::NotAsked(why) => f.write_str(why),
            Self::Closed(why) => write!(f, "it answers on an old connection, but takes no new one: {why}"),
            Self::StrongerAuthRequired => f.write_str(
                "anonymous requests pass, but binds get strongerAuthRequired (8): users can't log in through cleartext; set \
                 the pool's protocol to \"ldaps\" or \"starttls\", or on the DC `ldap server require strong auth = no`",
            ),
            Self::CredentialsRefused(diagnostic) => {
                write!(f, "the bind of the probe's account got invalidCredentials (49), {diagnostic:?}")
            }
        }
    }
}

/// What came of a probe: how long it took, or why it failed.
pub type Outcome = Result<Duration, Failure>;

/// What is thought of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The state it should be in.
    pub health: Health,
    /// Why, in words.
    pub reason: String,
    /// It doesn't answer at all: what it was sent before won't be answered either.
    pub silent: bool,
}

/// Everything the verdict about one backend depends on.
#[derive(Debug, Clone)]
pub struct Judgement {
    cheap: Track,
    deep: Option<Track>,
    ejection: Ejection,
    /// Real traffic met trouble: the next failed probe decides alone.
    suspected: bool,
}

/// One probe's results.
#[derive(Debug, Clone)]
struct Track {
    answers: Streak,
    swift: Streak,
    /// Whether anything comes back, right or wrong.
    speaks: Streak,
    max_latency: Option<Duration>,
    /// The newest failure, or why it isn't swift.
    trouble: String,
}

impl Judgement {
    /// Nothing is known yet.
    pub fn new(settings: &config::Health) -> Self {
        Self {
            cheap: Track::new(&settings.cheap),
            deep: settings.deep.as_ref().map(Track::new),
            ejection: Ejection::default(),
            suspected: false,
        }
    }

    /// Goes on under the settings `now`, after `before`.
    #[must_use]
    pub fn under(self, before: &config::Health, now: &config::Health) -> Self {
        let cheap = self.cheap.under(&before.cheap, &now.cheap);
        let deep = now.deep.as_ref().map(|probe| match (self.deep, &before.deep) {
            (Some(track), Some(before)) => track.under(before, probe),
            _ => Track::new(probe),
        });
        Self { cheap, deep, ..self }
    }

    /// Takes a probe's result.
    pub fn take(&mut self, depth: Depth, outcome: &Outcome) {
        let track = match depth {
            Depth::Cheap => &mut self.cheap,
            Depth::Deep => match &mut self.deep {
                Some(deep) => deep,
                None => return,
            },
        };
        track.take(outcome);
        if depth == Depth::Cheap
            && std::mem::take(&mut self.suspected)
            && let Err(failure) = outcome
            && failure.is_decisive()
        {
            self.cheap.fail(failure);
        }
    }

    /// Real traffic met trouble: if the next probe fails, that is enough.
    pub fn suspect(&mut self) {
        self.suspected = true;
    }

    /// Takes it out of service although its probes may pass; for how long.
    pub fn eject(&mut self, now: Instant) -> Duration {
        self.ejection.begin(now)
    }

    /// Its probes have taken it down; how long it stays out even if they pass again, if it has failed before lately.
    pub fn relapse(&mut self, now: Instant) -> Option<Duration> {
        self.ejection.relapse(now)
    }

    /// Ends its ejection early: no better backend is left.
    pub fn pardon(&mut self, now: Instant) {
        self.ejection.end(now);
    }

    /// Whether it is ejected.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.lasts(now)
    }

    /// What to think of it now.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let verdict = |health, reason: &str| Verdict { health, reason: reason.to_owned(), silent: false };
        match self.cheap.answers.works() {
            Some(false) => {
                return Verdict {
                    silent: self.cheap.speaks.works() == Some(false),
                    ..verdict(Health::Down, &self.cheap.trouble)
                };
            }
            _ if self.is_ejected(now) => {
                let reason = match self.ejection.is_relapse() {
                    true => "ejected: it has come and gone several times within minutes, though probes may pass now",
                    false => "ejected: several clients' connections to it failed or were lost, though probes may pass",
                };
                return verdict(Health::Down, reason);
            }
            None => return verdict(Health::Unknown, "not probed yet"),
            Some(true) => {}
        }
        let tracks = [Some(&self.cheap), self.deep.as_ref()];
        for track in tracks.into_iter().flatten() {
            if track.answers.works() == Some(false) || track.swift.works() == Some(false) {
                return verdict(Health::Degraded, &track.trouble);
            }
        }
        verdict(Health::Up, "answers its probes")
    }
}

impl Track {
    fn new(probe: &config::Probe) -> Self {
        Self {
            answers: Streak::new(probe.rise, probe.fall),
            swift: Streak::new(probe.rise, probe.fall),
            speaks: Streak::new(1, probe.fall),
            max_latency: probe.max_latency,
            trouble: String::new(),
        }
    }

    /// A probe that has changed asks something else, or more patiently: what it found wrong before says nothing any more.
    fn under(self, before: &config::Probe, now: &config::Probe) -> Self {
        if before == now {
            return self;
        }
        let [answers, swift] = [&self.answers, &self.swift].map(|streak| streak.under(now.rise, now.fall));
        Self { answers, swift, speaks: self.speaks.under(1, now.fall), max_latency: now.max_latency, ..self }
    }

    fn take(&mut self, outcome: &Outcome) {
        match outcome {
            Ok(latency) => {
                self.answers.count(true);
                self.speaks.count(true);
                if let Some(most) = self.max_latency {
                    self.swift.count(*latency <= most);
                    if *latency > most && self.answers.works() == Some(true) {
                        self.trouble = format!("a probe took {latency:.1?}, max_latency is {most:?}");
                    }
                }
            }
            Err(failure) if failure.is_the_backends() => {
                self.answers.count(false);
                self.speaks.count(!failure.is_silence());
                self.trouble = failure.to_string();
            }
            Err(_) => {}
        }
    }

    /// This failure is enough.
    fn fail(&mut self, failure: &Failure) {
        if failure.is_the_backends() {
            self.answers.fail();
        }
        if failure.is_silence() {
            self.speaks.fail();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Outcome = Ok(Duration::from_millis(1));
    const SLOW: Outcome = Ok(Duration::from_millis(500));

    /// One slow probe is no reason to leave a backend that answers, if wrongly.
    #[test]
    fn as_many_failures_as_take_it_down_make_it_silent() {
        let wrong = || Err(Failure::Wrong("not synchronised".into()));
        let settings = config::Health {
            cheap: config::Probe { fall: 3, ..config::Probe::default() },
            ..config::Health::default()
        };
        for (outcomes, suspected, silent) in [
            (vec![refused()], false, true),
            (vec![FAST, refused(), refused(), refused()], false, true),
            (vec![FAST, wrong(), refused(), refused()], false, false),
            (vec![wrong(), refused(), refused()], false, false),
            (vec![wrong(), refused(), wrong(), refused(), refused()], false, false),
            (vec![wrong(), refused(), refused(), refused()], false, true),
            (vec![wrong(), refused()], true, true),
            (vec![refused(), wrong()], false, false),
        ] {
            let mut judgement = Judgement::new(&settings);
            let (last, before) = outcomes.split_last().expect("there are some");
            before.iter().for_each(|outcome| judgement.take(Depth::Cheap, outcome));
            if suspected {
                judgement.suspect();
            }
            judgement.take(Depth::Cheap, last);
            let verdict = judgement.verdict(Instant::now());
            assert_eq!((verdict.health, verdict.silent), (Health::Down, silent), "{outcomes:?} {suspected}");
        }
    }

    fn refused() -> Outcome {
        Err(Failure::Unreachable("connection refused".into()))
    }

    /// rise 2, fall 3, `max_latency` 100 ms, deep at rise 1, fall 2.
    fn judgement() -> Judgement {
        let cheap = config::Probe { max_latency: Some(Duration::from_millis(100)), ..config::Probe::default() };
        let deep = config::Probe { rise: 1, fall: 2, ..config::Probe::default() };
        Judgement::new(&config::Health { cheap, deep: Some(deep), panic_mode: false })
    }

    /// The states after each result.
    fn run(judgement: &mut Judgement, now: Instant, results: &[(Depth, Outcome)]) -> Vec<Health> {
        let step = |(depth, outcome): &(Depth, Outcome)| {
            judgement.take(*depth, outcome);
            judgement.verdict(now).health
        };
        results.iter().map(step).collect()
    }

    #[test]
    fn states_by_hand() {
        use Depth::{Cheap, Deep};
        use Health::{Degraded, Down, Unknown, Up};
        let wrong = || Err(Failure::Wrong("no entry".into()));
        let own = || Err(Failure::CredentialsRefused("data 52e".into()));
        for (results, states) in [
            (vec![(Cheap, FAST), (Cheap, refused()), (Cheap, refused()), (Cheap, refused())], vec![Up, Up, Up, Down]),
            (vec![(Cheap, refused()), (Cheap, FAST), (Cheap, FAST)], vec![Down, Down, Up]),
            // The first slow answer decides as the first failure does; two fast ones mend it.
            (vec![(Cheap, SLOW), (Cheap, FAST), (Cheap, FAST)], vec![Degraded, Degraded, Up]),
            (vec![(Cheap, FAST), (Cheap, SLOW), (Cheap, SLOW), (Cheap, SLOW)], vec![Up, Up, Up, Degraded]),
            // The deep probe degrades, it never takes down; alone it says nothing.
            (vec![(Deep, wrong()), (Cheap, FAST), (Deep, FAST)], vec![Unknown, Degraded, Up]),
            (vec![(Cheap, FAST), (Deep, FAST), (Deep, wrong()), (Deep, wrong())], vec![Up, Up, Up, Degraded]),
            (vec![(Cheap, FAST), (Deep, wrong()), (Cheap, refused())], vec![Up, Degraded, Degraded]),
            // The proxy's own account is no fault of the backend's.
            (vec![(Cheap, FAST), (Deep, own()), (Deep, own()), (Cheap, own())], vec![Up; 4]),
            (vec![(Deep, wrong()), (Cheap, FAST), (Deep, own())], vec![Unknown, Degraded, Degraded]),
        ] {
            assert_eq!(run(&mut judgement(), Instant::now(), &results), states, "{results:?}");
        }
    }

    #[test]
    fn a_suspect_is_down_at_its_first_failed_probe() {
        let now = Instant::now();
        let mut judgement = judgement();
        assert_eq!(run(&mut judgement, now, &[(Depth::Cheap, FAST)]), [Health::Up]);
        judgement.suspect();
        assert_eq!(run(&mut judgement, now, &[(Depth::Cheap, FAST), (Depth::Cheap, refused())]), [Health::Up; 2]);
        judgement.suspect();
        assert_eq!(run(&mut judgement, now, &[(Depth::Cheap, refused())]), [Health::Down]);
        let verdict = judgement.verdict(now);
        assert_eq!((verdict.reason.as_str(), verdict.silent), ("connection refused", true));
    }

    /// All sessions of a dead domain controller come to the other one at once: that it then drops a connection is no reason to take
    /// it down as well, and those on it with it.
    #[test]
    fn a_suspect_that_takes_no_new_connections_is_down_at_the_usual_number_and_never_silent() {
        let now = Instant::now();
        let mut judgement = judgement();
        run(&mut judgement, now, &[(Depth::Cheap, FAST)]);
        let closed = || (Depth::Cheap, Err(Failure::Closed("no answer within 1s".into())));
        judgement.suspect();
        assert_eq!(run(&mut judgement, now, &[closed(), closed(), closed()]), [Health::Up, Health::Up, Health::Down]);
        let verdict = judgement.verdict(now);
        assert_eq!(
            (verdict.reason.as_str(), verdict.silent),
            ("it answers on an old connection, but takes no new one: no answer within 1s", false)
        );
    }

    #[test]
    fn an_ejected_one_returns_through_health() {
        let now = Instant::now();
        let mut judgement = judgement();
        run(&mut judgement, now, &[(Depth::Cheap, FAST)]);
        let length = judgement.eject(now);
        assert_eq!(run(&mut judgement, now, &[(Depth::Cheap, FAST)]), [Health::Down]);
        assert!(!judgement.verdict(now).silent, "what its sessions wait for may still come");
        assert_eq!(run(&mut judgement, now + length, &[(Depth::Cheap, FAST)]), [Health::Up]);
        judgement.eject(now);
        assert_eq!(
            run(&mut judgement, now, &[(Depth::Cheap, refused()), (Depth::Cheap, refused())]),
            [Health::Down; 2]
        );
        assert_eq!(run(&mut judgement, now + length * 2, &[(Depth::Cheap, refused())]), [Health::Down]);
    }
}
