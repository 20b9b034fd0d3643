//! Connections that handshake, bind, search, unbind and go, over and over.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use clap::{Args, value_parser};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    client::Target,
    meter::Meter,
    pdu::{self, Template},
    window::{Latencies, Report, Tally, Times, measure},
};

#[derive(Args)]
pub struct Churn {
    /// Cycles at a time.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=1000))]
    workers: u32,
}

impl Churn {
    /// Counts cycles; each worker resumes only its own sessions.
    pub async fn run(self, target: &Target, times: Times, meter: &Meter) -> io::Result<Report> {
        let tally = Tally::default();
        let connections = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..self.workers {
            tasks.spawn(work(target.with_own_session_cache(), Arc::clone(&connections), tally.clone()));
        }
        measure(tasks, &tally, times, meter).await
    }
}

async fn work(target: Target, connections: Arc<AtomicU32>, tally: Tally) -> io::Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut search = Template::new(&[pdu::search_request("ou=1x500,dc=bench")], 1);
    while !tally.stopping() {
        let started = Instant::now();
        let mut connection = target.open(connections.fetch_add(1, Relaxed), None).await?;
        if connection.resumed() {
            tally.resumed();
        }
        connection.bind().await?;
        if connection.ask(&mut search, &[2]).await? != 1 {
            return Err(io::Error::other("the entry is missing"));
        }
        connection.unbind().await?;
        tally.operation(started.elapsed(), &mut latencies);
    }
    Ok(latencies)
}
