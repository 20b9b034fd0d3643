//! Bound sessions that say nothing: what each costs the proxy in memory.

use std::{
    io,
    time::{Duration, Instant},
};

use clap::{Args, value_parser};
use tokio::{task::JoinSet, time::sleep};

use crate::{client::Target, meter::Meter, window::Report};

/// Sessions opened at a time.
const AT_ONCE: u32 = 32;
const SETTLE_STEP: Duration = Duration::from_millis(500);
const SETTLE_STEPS: u32 = 20;

#[derive(Args)]
pub struct Idle {
    #[arg(long, default_value_t = 4000, value_parser = value_parser!(u32).range(1..=9500))]
    sessions: u32,
}

impl Idle {
    /// Reports the memory before the first session and once it has stopped changing with all open.
    pub async fn run(self, target: &Target, meter: &Meter) -> io::Result<Report> {
        let (started, cpu_before, pss_before_kib) = (Instant::now(), meter.cpu()?, meter.pss_kib()?);
        let mut opening = JoinSet::new();
        for first in 0..AT_ONCE {
            let target = target.clone();
            opening.spawn(async move {
                let mut open = Vec::new();
                for n in (first..self.sessions).step_by(AT_ONCE as usize) {
                    let mut connection = target.open(n, Some(4096)).await?;
                    connection.bind().await?;
                    connection.forget_buffer();
                    open.push(connection);
                }
                io::Result::Ok(open)
            });
        }
        let mut sessions = Vec::new();
        while let Some(opened) = opening.join_next().await {
            sessions.extend(opened.map_err(io::Error::other)??);
        }
        let (elapsed, cpu) = (started.elapsed(), meter.cpu()? - cpu_before);
        let pss_after_kib = settled(meter).await?;
        for session in &mut sessions {
            session.bind().await?; // all are still alive, so the memory was all of theirs
        }
        Ok(Report {
            operations: u64::from(self.sessions),
            seconds: elapsed.as_secs_f64(),
            cpu_ns: cpu.as_nanos() as u64,
            pss_before_kib,
            pss_after_kib,
            ..Report::default()
        })
    }
}

/// The memory once two looks in a row agree within 0.1 %, or after ten seconds.
async fn settled(meter: &Meter) -> io::Result<u64> {
    let mut last = meter.pss_kib()?;
    for _ in 0..SETTLE_STEPS {
        sleep(SETTLE_STEP).await;
        let now = meter.pss_kib()?;
        if now.abs_diff(last) <= now / 1000 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}
