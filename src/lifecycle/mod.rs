//! Starting, draining and ending: signals, descriptors and systemd.

mod descriptors;
mod signals;

use std::io;
use std::sync::Arc;

use sd_notify::NotifyState;

pub use descriptors::raise_limit;

use crate::app::Proxy;
use signals::Signals;

/// Obeys signals until the proxy has ended: SIGTERM or SIGINT drains, a second one ends now, SIGHUP reloads, SIGUSR1
/// reopens logs.
///
/// # Errors
/// Signals that can't be received.
pub async fn serve(proxy: &Arc<Proxy>) -> io::Result<()> {
    let mut signals = Signals::new()?;
    tell_systemd(&[NotifyState::Ready]);
    loop {
        match signals.next().await {
            signals::Signal::Terminate => break,
            signals::Signal::Reload => {
                let since = NotifyState::monotonic_usec_now().ok();
                tell_systemd(&[Some(NotifyState::Reloading), since].into_iter().flatten().collect::<Vec<_>>());
                // What came of it is in the log, the metrics and the status.
                let _ = proxy.reload_all().await;
                tell_systemd(&[NotifyState::Ready]);
            }
            signals::Signal::Reopen => proxy.reopen_logs(),
        }
    }
    tell_systemd(&[NotifyState::Stopping]);
    proxy.drain(signals.termination()).await;
    Ok(())
}

fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
