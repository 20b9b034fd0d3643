//! What systemd hears while we run: that we are alive, and a line for `systemctl status`.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use super::tell_systemd;
use super::workers::Workers;
use crate::app::{Proxy, Vitals};

/// How old the line in `systemctl status` may get.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// Beats within the time the watchdog allows: one may come late.
const BEATS: u32 = 3;

/// Beats until the process ends. Run it as a task of its own: then a beat proves that the runtime still runs tasks and
/// timers. It adds that no worker thread hangs, that the state isn't locked for good and that every listener accepts.
pub(super) async fn beat(proxy: Arc<Proxy>) {
    let every = interval_for(sd_notify::watchdog_enabled());
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut workers = Workers::new();
    let mut shown = String::new();
    loop {
        ticks.tick().await;
        let Vitals { alive, status } = proxy.vitals();
        let stuck = workers.stuck();
        if stuck > 0 {
            tracing::error!(stuck, "worker threads hang: the watchdog isn't told that all is well");
        } else if alive {
            tell_systemd(&[NotifyState::Watchdog]);
        }
        if status != shown {
            tell_systemd(&[NotifyState::Status(&status)]);
            shown = status;
        }
    }
}

fn interval_for(watchdog: Option<Duration>) -> Duration {
    watchdog.map_or(STATUS_INTERVAL, |limit| STATUS_INTERVAL.min(limit / BEATS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_beats_fit_into_what_the_watchdog_allows() {
        assert_eq!(interval_for(None), STATUS_INTERVAL);
        assert_eq!(interval_for(Some(Duration::from_secs(30))), STATUS_INTERVAL);
        assert_eq!(interval_for(Some(Duration::from_secs(3))), Duration::from_secs(1));
    }
}
