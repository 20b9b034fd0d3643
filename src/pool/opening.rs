//! Few connections to one backend are opened at a time. Samba's accept queue holds ten; the kernel drops what comes on top,
//! and who is dropped tries again after a second, then after two more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

/// Connections to one backend that it may not have accepted yet.
const AT_ONCE: usize = 8;
/// A backend that has said nothing for this long may be at work on its answer, rather than late to accept. No less than what
/// the kernel waits before it tries again.
const HELD_FOR: Duration = Duration::from_secs(1);

/// The turns at one backend: first come, first served.
#[derive(Debug)]
pub(super) struct Openings(Arc<Semaphore>);

/// The right to connect now.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "dropping it ends the turn")] OwnedSemaphorePermit);

/// A connection that stands, though it may still wait to be accepted. Its turn ends when this is dropped, or after
/// [`HELD_FOR`].
#[derive(Debug)]
pub struct Opening(#[expect(dead_code, reason = "dropping it ends the turn")] AbortOnDropHandle<()>);

impl Openings {
    /// Waits for a turn. Put a timeout around it: it has none.
    pub(super) async fn turn(&self) -> Turn {
        Turn(Arc::clone(&self.0).acquire_owned().await.expect("the semaphore is never closed"))
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.available_permits()
    }
}

impl Default for Openings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turn {
    /// The connection stands.
    pub(super) fn connected(self) -> Opening {
        Opening(AbortOnDropHandle::new(tokio::spawn(async move {
            let _turn = self;
            sleep(HELD_FOR).await;
        })))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Lets every task that can run do so.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn eight_at_a_time_in_the_order_they_came() {
        let openings = Arc::new(Openings::default());
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            turns.push(openings.turn().await);
        }
        for number in 0..3 {
            let (openings, served) = (Arc::clone(&openings), Arc::clone(&served));
            tokio::spawn(async move {
                let turn = openings.turn().await;
                served.lock().unwrap().push(number);
                std::mem::forget(turn);
            });
            settle().await;
        }
        for expected in [&[][..], &[0], &[0, 1], &[0, 1, 2]] {
            assert_eq!(*served.lock().unwrap(), expected);
            turns.pop();
            settle().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_lasts_until_the_backend_is_heard_or_is_at_work() {
        let openings = Openings::default();
        let opening = openings.turn().await.connected();
        settle().await;
        assert_eq!(openings.left(), AT_ONCE - 1);
        drop(opening);
        settle().await;
        assert_eq!(openings.left(), AT_ONCE, "heard");
        let _opening = openings.turn().await.connected();
        settle().await;
        tokio::time::advance(HELD_FOR - Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(openings.left(), AT_ONCE - 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(openings.left(), AT_ONCE, "at work");
    }
}
