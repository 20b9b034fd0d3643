//! `bench`: what measures ldaps-proxy beside its peers.
//!
//! `bench sink` is the directory behind the proxies ([`sink`]); `bench load` is the client in front of them, in three
//! shapes: [`steady`] sessions, connection [`churn`], and [`idle`] sessions. Both speak LDAP by prebuilt [`pdu`]s and
//! minimal framing, on one thread each, so that on a small machine the proxy stays the dearest process. [`meter`] reads what the proxy
//! costs from the kernel's own accounting. `bench floor` ([`floor`]) times the TLS library alone, `bench
//! terminator` ([`terminator`]) is what a proxy without any LDAP would be.
//! `bench/run` drives it all.

mod churn;
mod client;
mod floor;
mod idle;
mod meter;
mod pdu;
mod sink;
mod steady;
mod terminator;
mod window;

use std::{io, net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    client::Target,
    meter::Meter,
    window::{Report, Times},
};

#[derive(Parser)]
#[command(version, about = "Load generator and synthetic LDAP backend for ldaps-proxy; loopback only")]
enum Command {
    /// Answer LDAP on each address with synthetic entries, until ended.
    Sink {
        /// Loopback address to listen on; port 0 picks one. The addresses in use are printed on one line.
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        /// Take loads from standard input, too: a line for each, the words of a `bench load` in JSON. Its report follows on
        /// standard output as one line of JSON. One thread is then backend and client, and switches between no processes.
        #[arg(long)]
        loads: bool,
    },
    /// Put one load on a proxy and print one line of JSON.
    Load(Load),
    /// Time the server's share of the TLS library alone, per churn cycle, and print one line of JSON.
    Floor(floor::Floor),
    /// Terminate TLS and copy octets to a backend and back, without any LDAP: what the libraries alone cost.
    Terminator(terminator::Terminator),
}

#[derive(Args)]
struct Load {
    /// The proxy's (or, with --plain, the sink's) address.
    #[arg(long)]
    target: SocketAddr,
    /// Speak LDAP without TLS.
    #[arg(long)]
    plain: bool,
    /// The only TLS version offered; always AES-256-GCM and X25519.
    #[arg(long, value_enum, default_value = "1.3")]
    tls: TlsVersion,
    /// Resume TLS sessions instead of making full handshakes.
    #[arg(long)]
    resume: bool,
    /// Process whose tree is metered (CPU, PSS).
    #[arg(long)]
    pid: Option<i32>,
    /// Seconds of load before measuring.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(0..=60))]
    warm_up: u64,
    /// Seconds measured.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// Bound sessions that send the same request over and over.
    Steady(steady::Steady),
    /// Connections that handshake, bind, search, unbind and go.
    Churn(churn::Churn),
    /// Bound sessions that say nothing: what each costs in memory.
    Idle(idle::Idle),
}

#[derive(Clone, Copy, ValueEnum)]
enum TlsVersion {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let result = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Command::Sink { listen, loads } => {
                    sink::serve_on(&listen)?;
                    if loads { take_loads().await } else { std::future::pending().await }
                }
                Command::Load(load) => say(&run_load(load).await?),
                Command::Floor(floor) => floor.run(),
                Command::Terminator(terminator) => terminator.run().await,
            }
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Puts the loads on that standard input asks for, until it ends.
async fn take_loads() -> io::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        say(&run_line(&line).await)?;
    }
    Ok(())
}

/// The report of the load that a line asks for, or why there is none.
async fn run_line(line: &str) -> Result<Report, String> {
    let words: Vec<String> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let words = ["bench", "load"].into_iter().map(String::from).chain(words);
    match Command::try_parse_from(words).map_err(|error| error.to_string())? {
        Command::Load(load) => run_load(load).await.map_err(|error| error.to_string()),
        _ => Err("not a load".into()),
    }
}

fn say(report: &impl Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(report).map_err(io::Error::other)?);
    Ok(())
}

async fn run_load(load: Load) -> io::Result<Report> {
    let tls = (!load.plain).then_some(match load.tls {
        TlsVersion::Tls12 => &rustls::version::TLS12,
        TlsVersion::Tls13 => &rustls::version::TLS13,
    });
    let target = Target::new(load.target, tls, load.resume)?;
    let meter = Meter::new(load.pid);
    let times = Times { warm_up: Duration::from_secs(load.warm_up), measured: Duration::from_secs(load.seconds) };
    match load.workload {
        Workload::Steady(steady) => steady.run(&target, times, &meter).await,
        Workload::Churn(churn) => churn.run(&target, times, &meter).await,
        Workload::Idle(idle) => idle.run(&target, &meter).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_asks_for_no_load_is_told_why() {
        for (line, why) in [
            ("steady", "expected value"),
            (r#"["--target=127.0.0.1:1", "walk"]"#, "unrecognized subcommand 'walk'"),
            (r#"["--target=10.0.0.1:636", "steady"]"#, "only loopback addresses are allowed"),
        ] {
            let told = run_line(line).await.expect_err(line);
            assert!(told.contains(why), "{told}");
        }
    }
}
