//! Waiting longer for a backend that works than for one of which nobody knows.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Backend, Health, Pool};
use crate::config::ProbeKind;

/// How long is waited beyond a deadline at most.
const MOST_PATIENCE: Duration = Duration::from_secs(25);
/// How often it is asked whether hope remains.
const ROUND: Duration = Duration::from_secs(1);

/// Waits until `deadline`, and beyond it as long as `hope` remains.
pub async fn patiently<F: Future>(deadline: Instant, hope: impl Fn() -> bool, future: F) -> Option<F::Output> {
    let last = deadline + MOST_PATIENCE;
    let mut future = std::pin::pin!(future);
    let mut until = deadline;
    loop {
        match timeout_at(until, future.as_mut()).await {
            Ok(output) => return Some(output),
            Err(_) if until < last && hope() => until += ROUND,
            Err(_) => return None,
        }
    }
}

impl Pool {
    /// Whether probes say that this backend answers. That a port is open says nothing.
    pub fn vouches_for(&self, backend: &Backend) -> bool {
        self.settings.health.cheap.kind != ProbeKind::Tcp && matches!(backend.health(), Health::Up | Health::Degraded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_hope_or_with_patience() {
        for (hope, expected) in [(0, 5), (8, 8), (1000, 30)] {
            let began = Instant::now();
            let has_hope = || began.elapsed() < Duration::from_secs(hope);
            let outcome = patiently(began + Duration::from_secs(5), has_hope, std::future::pending::<()>()).await;
            assert_eq!((outcome, began.elapsed().as_secs()), (None, expected));
        }
        let late = Instant::now() - Duration::from_secs(1);
        assert_eq!(patiently(late, || false, std::future::ready(1)).await, Some(1), "what is ready is taken");
    }
}
