//! One probe's rhythm at one backend.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::judgement::{Depth, Failure, Outcome};
use super::prober::Prober;
use crate::pool::{Backend, ProbeRecord};

/// Deep probes of a pool's backends begin apart.
const DEEP_PROBES_BEGIN_WITHIN: Duration = Duration::from_secs(1);

/// What a probe found.
pub(super) struct Report {
    pub backend: Arc<Backend>,
    pub depth: Depth,
    pub outcome: Outcome,
}

/// Asks at every interval, and at once, over a new connection, when `hurry` is rung, for as long as someone listens.
pub(super) async fn check(mut prober: Prober, depth: Depth, hurry: Arc<Notify>, reports: mpsc::Sender<Report>) {
    if depth == Depth::Deep {
        sleep(DEEP_PROBES_BEGIN_WITHIN.mul_f64(fastrand::f64())).await;
    }
    loop {
        let started = Instant::now();
        let patience = prober.settings().timeout;
        let outcome = match timeout(patience, prober.probe()).await {
            Ok(outcome) => outcome.map(|()| started.elapsed()),
            Err(_) => Err(Failure::Silent(patience)),
        };
        record(&prober, &outcome, started.elapsed());
        let backend = Arc::clone(prober.backend());
        if reports.send(Report { backend, depth, outcome }).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep_until(started + jittered(prober.settings().interval)) => {}
            // Real traffic has met trouble, perhaps only with new connections.
            () = hurry.notified() => prober.start_afresh(),
        }
    }
}

fn record(prober: &Prober, outcome: &Outcome, duration: Duration) {
    match outcome {
        Ok(latency) => prober.backend().metrics().probe_passed(*latency),
        Err(failure) => {
            prober.backend().metrics().probe_failed();
            tracing::debug!(backend = prober.backend().name(), kind = %prober.settings().kind, %failure, "a probe failed");
        }
    }
    prober.backend().keep_probe(ProbeRecord {
        at: SystemTime::now(),
        kind: prober.settings().kind,
        duration,
        failure: outcome.as_ref().err().map(ToString::to_string),
    });
}

/// Up to a tenth less, so that copies of the proxy don't ask in step; never more, so that fall × interval + timeout is
/// the longest a dead backend stays unnoticed.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - fastrand::f64() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_come_early_at_random_and_never_late() {
        let interval = Duration::from_secs(1);
        let intervals: Vec<_> = (0..100).map(|_| jittered(interval)).collect();
        assert!(intervals.iter().all(|one| *one <= interval && *one >= interval.mul_f64(0.9)));
        assert!(intervals.iter().any(|one| *one != intervals[0]));
    }
}
