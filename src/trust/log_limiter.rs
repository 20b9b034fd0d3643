//! Keeps refusals from flooding the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// Admits a bounded number of log lines a second and counts the others.
#[derive(Debug)]
pub struct LogLimiter {
    lines_per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    second: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Default for LogLimiter {
    /// Ten lines a second.
    fn default() -> Self {
        Self::new(10)
    }
}

impl LogLimiter {
    /// Admits `lines_per_second` lines.
    pub fn new(lines_per_second: u32) -> Self {
        Self { lines_per_second, state: Mutex::default() }
    }

    /// Whether a line may be written at `now`: then how many have been suppressed since the last one that was, for the
    /// line to say so.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        // A panic while the lock is held leaves counters, never a broken invariant.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.second.is_none_or(|second| now.saturating_duration_since(second) >= SECOND) {
            state.second = Some(now);
            state.lines = 0;
        }
        if state.lines == self.lines_per_second {
            state.suppressed += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_a_count_of_the_others() {
        let limiter = LogLimiter::default();
        let start = Instant::now();
        let admitted = (0..25).filter(|&i| limiter.admit(start + Duration::from_millis(i * 10)) == Some(0)).count();
        assert_eq!(admitted, 10);
        assert_eq!(limiter.admit(start + Duration::from_millis(999)), None);
        assert_eq!(limiter.admit(start + SECOND), Some(16));
        assert_eq!(limiter.admit(start + SECOND), Some(0));
    }
}
