//! Starting, draining and ending: signals, descriptors and systemd.

mod descriptors;
mod heartbeat;
mod memory;
mod signals;
mod sockets;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, interval};

pub use descriptors::fit_descriptors;
pub use signals::Signals;
pub use sockets::Inherited;

use crate::app::Proxy;
use signals::Signal;

/// What ending takes besides the time that clients get.
const ENDING: Duration = Duration::from_secs(15);
/// How often systemd is told how much time a drain still has.
const MORE_TIME: Duration = Duration::from_secs(30 * 60);

/// Obeys signals until the proxy has ended: SIGTERM or SIGINT drains, a second one ends now, SIGHUP reloads, SIGUSR1
/// reopens logs.
pub async fn serve(proxy: &Arc<Proxy>, mut signals: Signals) {
    tokio::spawn(memory::give_back(Arc::clone(proxy)));
    tell_systemd(&[NotifyState::Ready]);
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        // Not part of this future, which runs outside the worker threads that it shall prove alive.
        tokio::spawn(heartbeat::beat(Arc::clone(proxy)));
    }
    loop {
        match signals.next().await {
            Signal::Terminate => break,
            Signal::Reload => {
                let since = NotifyState::monotonic_usec_now().ok();
                tell_systemd(&[Some(NotifyState::Reloading), since].into_iter().flatten().collect::<Vec<_>>());
                let ends = tokio::select! {
                    // What came of it is in the log, the metrics and the status.
                    _ = proxy.reload_all() => false,
                    // It may wait long for DNS or a token. Nothing has changed while it waits: see `read_and_swap`.
                    () = signals.termination() => true,
                };
                tell_systemd(&[NotifyState::Ready]);
                if ends {
                    tracing::info!("the reload is given up, nothing was changed");
                    break;
                }
            }
            Signal::Reopen => proxy.reopen_logs(),
        }
    }
    tell_systemd(&[NotifyState::Stopping]);
    // Whatever TimeoutStopSec= says, clients get the time that the configuration gives them.
    let patience = proxy.patience().saturating_add(ENDING);
    tokio::select! {
        () = proxy.drain(until_hurried(proxy, signals)) => {}
        () = ask_for_time(patience, |left| tell_systemd(&[NotifyState::ExtendTimeoutUsec(left)])) => {}
    }
}

/// Tells again and again how much of `patience` is left, in µs: what one message can say is 71 minutes. Never returns.
async fn ask_for_time(patience: Duration, mut tell: impl FnMut(u32)) {
    let began = Instant::now();
    let mut ticks = interval(MORE_TIME);
    loop {
        ticks.tick().await;
        let left = patience.saturating_sub(began.elapsed());
        tell(u32::try_from(left.as_micros()).unwrap_or(u32::MAX));
    }
}

/// Waits for a second SIGTERM or SIGINT. A drain may last for hours, and logs grow meanwhile.
async fn until_hurried(proxy: &Proxy, mut signals: Signals) {
    loop {
        match signals.next().await {
            Signal::Terminate => return,
            Signal::Reopen => proxy.reopen_logs(),
            Signal::Reload => tracing::info!("nothing is reloaded any more: draining"),
        }
    }
}

fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_is_asked_for_again_before_what_was_asked_for_is_over() {
        let patience = Duration::from_secs(3 * 3600);
        let (began, mut told) = (Instant::now(), Vec::new());
        let asking = ask_for_time(patience, |left| told.push(Instant::now() + Duration::from_micros(left.into())));
        assert!(tokio::time::timeout(patience, asking).await.is_err());
        assert_eq!(told.last(), Some(&(began + patience)));
        let asked = (1..).map(|times| began + times * MORE_TIME);
        assert!(told.iter().zip(asked).all(|(&until, asked_again)| until > asked_again || until == began + patience));
    }
}
