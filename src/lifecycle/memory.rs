//! What a crowd of sessions has used goes back to the machine once it has left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::app::Proxy;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Gives memory back until the process ends.
pub(super) async fn give_back(proxy: Arc<Proxy>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut crowd = Crowd::default();
    loop {
        ticks.tick().await;
        if crowd.has_left(proxy.session_count()) && tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

/// The most sessions there were since memory was last given back.
#[derive(Debug, Default)]
struct Crowd {
    most: usize,
}

impl Crowd {
    /// Fewer are not worth the walk through the heap.
    const SMALLEST: usize = 500;

    /// Whether at least half of a crowd has left.
    fn has_left(&mut self, sessions: usize) -> bool {
        self.most = self.most.max(sessions);
        let left = sessions <= self.most / 2 && self.most - sessions >= Self::SMALLEST;
        if left {
            self.most = sessions;
        }
        left
    }
}

/// glibc keeps freed pages for later unless they lie at the end of its heap: 105 MB after 9,000 sessions, of which it needs 14.
#[cfg(target_env = "gnu")]
fn trim() {
    #[allow(unsafe_code)]
    // SAFETY: malloc_trim(3) may be called at any time from any thread (MT-Safe); it touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_left_once_half_of_it_has() {
        let mut crowd = Crowd::default();
        let seen = [0, 400, 0, 9000, 5000, 4500, 4000, 2251, 2250, 1000, 600, 100, 0];
        let left: Vec<_> = seen.into_iter().filter(|sessions| crowd.has_left(*sessions)).collect();
        assert_eq!(left, [4500, 2250, 1000, 100]);
    }
}
