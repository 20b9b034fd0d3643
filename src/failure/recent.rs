//! The newest failures, kept for the status page.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::ClosedList;

/// As many as an operator reads.
const CAPACITY: usize = 100;
/// A diagnostic may be as long as its sender likes.
const MAX_DETAIL_CHARS: usize = 300;

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentFailure {
    /// When.
    pub at: SystemTime,
    /// The text of a value of a closed list.
    pub reason: &'static str,
    /// Who met it: a client, a backend.
    pub subject: String,
    /// What happened, in words, without secrets.
    pub detail: String,
}

/// The newest hundred failures.
#[derive(Debug, Default)]
pub struct RecentFailures(Mutex<VecDeque<RecentFailure>>);

impl RecentFailures {
    /// Keeps a failure in the place of the oldest.
    pub fn record(&self, at: SystemTime, reason: impl ClosedList, subject: impl Into<String>, detail: &str) {
        let detail = detail.chars().take(MAX_DETAIL_CHARS).collect();
        let failure = RecentFailure { at, reason: reason.as_str(), subject: subject.into(), detail };
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.truncate(CAPACITY - 1);
        failures.push_front(failure);
    }

    /// All that are kept, newest first.
    pub fn newest(&self) -> Vec<RecentFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Refusal;

    #[test]
    fn the_newest_are_kept_and_nothing_grows() {
        let failures = RecentFailures::default();
        for number in 0..250 {
            failures.record(SystemTime::UNIX_EPOCH, Refusal::NoBackend, number.to_string(), &"x".repeat(1000));
        }
        let newest = failures.newest();
        assert_eq!(newest.len(), CAPACITY);
        assert_eq!(newest[0].subject, "249");
        assert_eq!(newest[0].reason, "no_backend");
        assert_eq!(newest[0].detail.len(), MAX_DETAIL_CHARS);
    }
}
