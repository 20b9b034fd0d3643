//! The measured window of a load: warm up, note the meters, let it run, note them again, stop.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{task::JoinSet, time::sleep};

use crate::meter::Meter;

const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// No load keeps more latencies than this; 4 octets each.
const MAX_LATENCIES: usize = 4 << 20;

/// How long to load.
#[derive(Clone, Copy)]
pub struct Times {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What a load found, as printed.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Operations, or cycles, or sessions.
    pub operations: u64,
    pub seconds: f64,
    /// CPU of the metered processes.
    pub cpu_ns: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Memory of the metered processes before and after.
    pub pss_before_kib: u64,
    pub pss_after_kib: u64,
    /// Share of the TLS handshakes that were resumed, of those in the window.
    pub resumed: f64,
}

/// The phases of a load; it begins, warming up, with neither.
const MEASURING: u8 = 1;
const STOPPING: u8 = 2;

/// What the tasks of a load share.
#[derive(Clone, Default)]
pub struct Tally(Arc<Counters>);

#[derive(Default)]
struct Counters {
    phase: AtomicU8,
    operations: AtomicU64,
    resumed: AtomicU64,
}

impl Tally {
    /// No new request is to be sent.
    pub fn stopping(&self) -> bool {
        self.0.phase.load(Relaxed) == STOPPING
    }

    /// One operation came to its end.
    pub fn operation(&self, latency: Duration, latencies: &mut Latencies) {
        self.operations([latency].into_iter(), latencies);
    }

    /// Some operations came to their ends at once.
    pub fn operations(&self, ended: impl ExactSizeIterator<Item = Duration>, latencies: &mut Latencies) {
        if self.0.phase.load(Relaxed) == MEASURING {
            self.0.operations.fetch_add(ended.len() as u64, Relaxed);
            ended.for_each(|latency| latencies.record(latency));
        }
    }

    /// One handshake resumed an earlier session.
    pub fn resumed(&self) {
        if self.0.phase.load(Relaxed) == MEASURING {
            self.0.resumed.fetch_add(1, Relaxed);
        }
    }
}

/// Latencies in units of 100 ns, each up to seven minutes.
#[derive(Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    fn record(&mut self, latency: Duration) {
        if self.0.len() < MAX_LATENCIES {
            let units = latency.as_secs().saturating_mul(10_000_000) + u64::from(latency.subsec_nanos() / 100);
            self.0.push(u32::try_from(units).unwrap_or(u32::MAX));
        }
    }

    /// The value, in µs, that a share of all latencies doesn't exceed; 0 of none.
    fn quantile_us(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).map_or(0.0, |&units| f64::from(units) / 10.0)
    }
}

/// Runs `tasks`, which end once `tally` is stopping, for the given times. A task that ends earlier ends the load.
pub async fn measure(
    mut tasks: JoinSet<io::Result<Latencies>>,
    tally: &Tally,
    times: Times,
    meter: &Meter,
) -> io::Result<Report> {
    let pss_before_kib = meter.pss_kib()?;
    undisturbed(&mut tasks, times.warm_up).await?;

    tally.0.phase.store(MEASURING, Relaxed);
    let (started, cpu_before) = (Instant::now(), meter.cpu()?);
    undisturbed(&mut tasks, times.measured).await?;
    let (elapsed, cpu) = (started.elapsed(), meter.cpu()? - cpu_before);
    tally.0.phase.store(STOPPING, Relaxed);

    let pss_after_kib = meter.pss_kib()?;
    let mut all = tokio::time::timeout(DRAIN_TIMEOUT, drained(tasks))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "answers still missing 20 s after the load"))??;
    all.0.sort_unstable();
    let operations = tally.0.operations.load(Relaxed);
    if operations == 0 {
        return Err(io::Error::other("no operation ended in the measured time"));
    }
    Ok(Report {
        operations,
        seconds: elapsed.as_secs_f64(),
        cpu_ns: cpu.as_nanos() as u64,
        p50_us: all.quantile_us(0.5),
        p99_us: all.quantile_us(0.99),
        pss_before_kib,
        pss_after_kib,
        resumed: tally.0.resumed.load(Relaxed) as f64 / operations as f64,
    })
}

async fn undisturbed(tasks: &mut JoinSet<io::Result<Latencies>>, time: Duration) -> io::Result<()> {
    tokio::select! {
        () = sleep(time) => Ok(()),
        Some(ended) = tasks.join_next() => {
            ended.map_err(io::Error::other)??;
            Err(io::Error::other("a session ended before the load did"))
        }
    }
}

async fn drained(mut tasks: JoinSet<io::Result<Latencies>>) -> io::Result<Latencies> {
    let mut all = Latencies::default();
    while let Some(ended) = tasks.join_next().await {
        all.0.extend(ended.map_err(io::Error::other)??.0);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let latencies = Latencies((1..=200).map(|us| us * 10).collect());
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| latencies.quantile_us(share)), [1.0, 100.0, 198.0, 200.0]);
        assert_eq!(Latencies::default().quantile_us(0.5), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn counts_only_the_measured_window() {
        let (tally, mut tasks) = (Tally::default(), JoinSet::new());
        let counted = tally.clone();
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            while !counted.stopping() {
                sleep(Duration::from_millis(100)).await;
                counted.operation(Duration::from_micros(7), &mut latencies);
            }
            Ok(latencies)
        });
        let times = Times { warm_up: Duration::from_millis(950), measured: Duration::from_secs(2) };
        let report = measure(tasks, &tally, times, &Meter::new(None)).await.expect("a report");
        assert_eq!((report.operations, report.p50_us, report.p99_us), (20, 7.0, 7.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_early_is_an_error() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Ok(Latencies::default()) });
        let times = Times { warm_up: Duration::ZERO, measured: Duration::from_secs(2) };
        assert!(measure(tasks, &Tally::default(), times, &Meter::new(None)).await.is_err());
    }
}
