//! What is kept of a backend's health beside the verdict itself: why, since when, the newest probes, how it starts.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Health;
use crate::config::ProbeKind;

/// As many probes as tell what is going on; the newest of each kind is always among them.
const PROBES_KEPT: usize = 10;
/// A backend that returns is given its whole weight after this long: Samba's workers and caches start empty.
const SLOW_START: Duration = Duration::from_secs(30);
/// A ramp's steps: fine enough for a weight of 1.
const STEPS: u32 = 16;

/// Why a backend is in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// In words.
    pub reason: String,
    /// When it came into this state.
    pub since: SystemTime,
    /// The newest probes, newest first.
    pub probes: Vec<ProbeRecord>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRecord {
    /// When it ended.
    pub at: SystemTime,
    /// What it asked.
    pub kind: ProbeKind,
    /// How long it took.
    pub duration: Duration,
    /// Why it failed; `None` if it passed.
    pub failure: Option<String>,
}

#[derive(Debug)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Debug, Clone)]
struct Entries {
    reason: String,
    since: SystemTime,
    probes: VecDeque<ProbeRecord>,
    /// It appeared while the proxy was running and hasn't passed a probe yet.
    newcomer: bool,
    /// It has been down, or is new, and wasn't up since.
    out: bool,
    /// When it came up after that, until it has its whole weight.
    returned: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(now: SystemTime) -> Self {
        Self(Mutex::new(Entries::new(now)))
    }

    /// As if nothing had been known.
    pub(super) fn begin_anew(&self, now: SystemTime) {
        *self.entries() = Entries::new(now);
    }

    pub(super) fn account(&self) -> Account {
        let entries = self.entries();
        Account {
            reason: entries.reason.clone(),
            since: entries.since,
            probes: entries.probes.iter().cloned().collect(),
        }
    }

    pub(super) fn keep(&self, probe: ProbeRecord) {
        let probes = &mut self.entries().probes;
        probes.push_front(probe);
        if probes.len() > PROBES_KEPT {
            let has_newer = |index: &usize| probes.range(..index).any(|newer| newer.kind == probes[*index].kind);
            let oldest = (0..probes.len()).rev().find(has_newer);
            probes.remove(oldest.unwrap_or(PROBES_KEPT));
        }
    }

    pub(super) fn judged(&self, before: Health, now: Health, reason: String) {
        let mut entries = self.entries();
        if before != now {
            entries.since = SystemTime::now();
            entries.newcomer = false;
            match now {
                Health::Down => (entries.out, entries.returned) = (true, None),
                Health::Up if std::mem::take(&mut entries.out) => entries.returned = Some(Instant::now()),
                Health::Up | Health::Degraded | Health::Unknown => {}
            }
        }
        entries.reason = reason;
    }

    pub(super) fn make_newcomer(&self) {
        let mut entries = self.entries();
        (entries.newcomer, entries.out) = (true, true);
        entries.reason = "discovered, not probed yet".to_owned();
    }

    pub(super) fn is_newcomer(&self) -> bool {
        self.entries().newcomer
    }

    pub(super) fn ramp(&self, now: Instant) -> u32 {
        let mut entries = self.entries();
        let Some(returned) = entries.returned else { return STEPS };
        let steps = sixteenths(now.saturating_duration_since(returned));
        if steps == STEPS {
            entries.returned = None;
        }
        steps
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Every change is whole before the guard goes, so a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn new(now: SystemTime) -> Self {
        Self {
            reason: "not probed yet".to_owned(),
            since: now,
            probes: VecDeque::new(),
            newcomer: false,
            out: false,
            returned: None,
        }
    }
}

/// The share of its weight a backend has this long after its return, 1..=[`STEPS`].
fn sixteenths(since: Duration) -> u32 {
    let steps = since.as_millis().saturating_mul(u128::from(STEPS)) / SLOW_START.as_millis();
    u32::try_from(steps).unwrap_or(STEPS).clamp(1, STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_is_gradual() {
        for (seconds, expected) in [(0, 1), (1, 1), (4, 2), (15, 8), (29, 15), (30, 16), (u64::MAX / 1000, 16)] {
            assert_eq!(sixteenths(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_one_that_was_down_starts_slowly() {
        let ledger = Ledger::new(SystemTime::now());
        ledger.judged(Health::Unknown, Health::Up, "answers".into());
        assert_eq!(ledger.ramp(Instant::now()), STEPS);
        ledger.judged(Health::Up, Health::Down, "refused".into());
        ledger.judged(Health::Down, Health::Up, "answers".into());
        assert_eq!(ledger.ramp(Instant::now()), 1);
        // Degraded for a moment under way: it goes on from where it was.
        tokio::time::advance(SLOW_START / 2).await;
        ledger.judged(Health::Up, Health::Degraded, "slow".into());
        ledger.judged(Health::Degraded, Health::Up, "answers".into());
        assert_eq!(ledger.ramp(Instant::now()), 8);
        tokio::time::advance(SLOW_START).await;
        assert_eq!(ledger.ramp(Instant::now()), STEPS);
        // The deep probe, which runs seldom, is the last to see that it is back.
        ledger.judged(Health::Up, Health::Down, "refused".into());
        ledger.judged(Health::Down, Health::Degraded, "the deep probe fails".into());
        tokio::time::advance(SLOW_START).await;
        ledger.judged(Health::Degraded, Health::Up, "answers".into());
        assert_eq!(ledger.ramp(Instant::now()), 1);
    }

    #[test]
    fn since_is_the_last_change_and_the_reason_the_newest() {
        let ledger = Ledger::new(SystemTime::UNIX_EPOCH);
        ledger.judged(Health::Unknown, Health::Down, "refused".into());
        let since = ledger.account().since;
        assert!(since > SystemTime::UNIX_EPOCH);
        ledger.judged(Health::Down, Health::Down, "timed out".into());
        assert_eq!(ledger.account(), Account { reason: "timed out".into(), since, probes: Vec::new() });
    }

    #[test]
    fn probes_are_bounded_newest_first_and_the_newest_of_each_kind_stays() {
        let ledger = Ledger::new(SystemTime::UNIX_EPOCH);
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        for second in 0..50 {
            // The deep probe runs seldom: the cheap one must not push it out.
            let kind = if second < 2 { ProbeKind::Search } else { ProbeKind::RootDse };
            ledger.keep(ProbeRecord { at: at(second), kind, duration: Duration::ZERO, failure: None });
        }
        let probes = ledger.account().probes;
        assert_eq!(probes.len(), PROBES_KEPT);
        assert_eq!(probes[0].at, at(49));
        assert_eq!((probes[8].at, probes[9].at), (at(41), at(1)));
    }
}
