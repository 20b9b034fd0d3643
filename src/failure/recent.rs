//! The newest failures, kept for the status page and the API.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::ClosedList;

/// As many as an operator reads.
const CAPACITY: usize = 100;
/// As many of one reason: a client that fails all the time must not push out what happened once.
const MOST_OF_A_REASON: usize = 20;
/// The same happening to the same subject again within this long is one failure that has happened several times.
const TOGETHER: Duration = Duration::from_secs(60);
/// A diagnostic may be as long as its sender likes.
const MAX_DETAIL_CHARS: usize = 300;

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentFailure {
    /// When, for the last time.
    pub at: SystemTime,
    /// The text of a value of a closed list.
    pub reason: &'static str,
    /// Who met it: a client, a backend, a pool, a listener.
    pub subject: String,
    /// What happened, in words, without secrets; the last time.
    pub detail: String,
    /// How many times.
    pub count: u64,
}

/// The newest hundred failures.
#[derive(Debug, Default)]
pub struct RecentFailures(Mutex<VecDeque<RecentFailure>>);

impl RecentFailures {
    /// Keeps a failure: with the one like it that has just been, or in the place of the oldest.
    pub fn record(&self, at: SystemTime, reason: impl ClosedList, subject: impl Display, detail: impl Display) {
        let (reason, subject) = (reason.as_str(), subject.to_string());
        let detail = detail.to_string().chars().take(MAX_DETAIL_CHARS).collect();
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_like = |known: &RecentFailure| {
            let ago = at.duration_since(known.at).unwrap_or_default();
            known.reason == reason && known.subject == subject && ago <= TOGETHER
        };
        let known = failures.iter().position(is_like).and_then(|index| failures.remove(index));
        let count = known.map_or(0, |known| known.count) + 1;
        let mut alike = failures.iter().enumerate().filter(|(_, known)| known.reason == reason);
        if let Some((oldest, _)) = alike.nth(MOST_OF_A_REASON - 1) {
            failures.remove(oldest);
        }
        failures.truncate(CAPACITY - 1);
        failures.push_front(RecentFailure { at, reason, subject, detail, count });
    }

    /// All that are kept, newest first.
    pub fn newest(&self) -> Vec<RecentFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{EndReason, Refusal};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn nothing_grows() {
        let failures = RecentFailures::default();
        for number in 0..1000 {
            let reason = Refusal::ALL[number % Refusal::ALL.len()];
            failures.record(NOW, reason, number, "x".repeat(1000));
        }
        let newest = failures.newest();
        assert_eq!(newest.len(), CAPACITY);
        assert_eq!(newest[0].subject, "999");
        assert_eq!(newest[0].detail.len(), MAX_DETAIL_CHARS);
    }

    #[test]
    fn many_of_one_reason_leave_room_for_the_others() {
        let failures = RecentFailures::default();
        failures.record(NOW, Refusal::NoBackend, "simple-ad", "");
        for number in 0..1000 {
            failures.record(NOW, Refusal::ReadOnly, number, "");
        }
        let newest = failures.newest();
        assert_eq!(newest.len(), MOST_OF_A_REASON + 1);
        assert_eq!((newest[0].subject.as_str(), newest[MOST_OF_A_REASON].reason), ("999", "no_backend"));
        assert_eq!(newest[MOST_OF_A_REASON - 1].subject, "980", "the oldest of its reason has gone");
    }

    #[test]
    fn the_same_again_is_one_that_has_happened_several_times() {
        let failures = RecentFailures::default();
        let at = |second| NOW + Duration::from_secs(second);
        failures.record(at(0), Refusal::ReadOnly, "10.0.0.1", "first");
        failures.record(at(1), Refusal::ReadOnly, "10.0.0.2", "");
        failures.record(at(1), EndReason::IdleTimeout, "10.0.0.1", "");
        failures.record(at(50), Refusal::ReadOnly, "10.0.0.1", "second");
        failures.record(at(200), Refusal::ReadOnly, "10.0.0.1", "much later");
        let kept: Vec<_> = failures.newest().into_iter().map(|one| (one.subject, one.detail, one.count)).collect();
        let row = |subject: &str, detail: &str, count| (subject.to_owned(), detail.to_owned(), count);
        assert_eq!(
            kept,
            [
                row("10.0.0.1", "much later", 1),
                row("10.0.0.1", "second", 2),
                row("10.0.0.1", "", 1),
                row("10.0.0.2", "", 1)
            ]
        );
    }
}
