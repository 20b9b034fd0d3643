//! `status`: what the proxy is doing, as a table, once or live.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::admin_client::{AdminArgs, AdminClient};
use super::output::{fail, print, printable, table};
use crate::admin::duration;
use crate::admin::model::Status;

const WATCH_PERIOD: Duration = Duration::from_secs(2);
/// To the top left corner, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// The options of `status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// Show it again every two seconds
    #[arg(long, short)]
    pub watch: bool,
    /// Print the JSON of /api/v1/status
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Prints the status; with `--watch` until the proxy is gone or the reader is.
pub fn run(args: &StatusArgs) -> ExitCode {
    let client = match AdminClient::new(&args.admin) {
        Ok(client) => client,
        Err(error) => return fail(&error),
    };
    loop {
        let text = if args.json {
            client.get("/api/v1/status").map(|status: serde_json::Value| format!("{status:#}\n"))
        } else {
            client.get("/api/v1/status").map(|status: Status| render(&status))
        };
        match text {
            Ok(text) if !args.watch => return print(&text),
            Ok(text) => {
                if write!(std::io::stdout(), "{CLEAR}{text}").and_then(|()| std::io::stdout().flush()).is_err() {
                    return ExitCode::SUCCESS;
                }
            }
            Err(error) if args.watch => println!("{CLEAR}{error}"),
            Err(error) => return fail(&error),
        }
        std::thread::sleep(WATCH_PERIOD);
    }
}

/// The status as text for a terminal.
fn render(status: &Status) -> String {
    let snapshot = &status.snapshot;
    let since = |at: u64| if at == 0 { "–".into() } else { duration(status.now.saturating_sub(at)) };
    let state = match (snapshot.draining, snapshot.not_ready.as_slice()) {
        (true, _) => "draining".into(),
        (false, []) => "ready".into(),
        (false, reasons) => format!("not ready: {}", reasons.join("; ")),
    };
    let traffic = &status.traffic;
    let milliseconds = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2} ms"));
    let mut text = format!(
        "ldaps-proxy {}, up {}, {}\n{} sessions, {:.1} operations/s, {:.1} errors/s, median {}, p99 {}\n\n",
        status.version,
        since(snapshot.started),
        printable(&state),
        status.sessions,
        traffic.operations,
        traffic.errors,
        milliseconds(traffic.p50_milliseconds),
        milliseconds(traffic.p99_milliseconds),
    );
    let backends: Vec<_> = snapshot
        .backends
        .iter()
        .map(|backend| {
            vec![
                backend.name.clone(),
                backend.pool.clone(),
                backend.state.to_string(),
                since(backend.since),
                backend.sessions.to_string(),
                backend.operations_in_flight.to_string(),
                backend.probes.first().map_or("–".into(), |probe| format!("{:.2} ms", probe.milliseconds)),
                backend.reason.clone(),
            ]
        })
        .collect();
    text += &table(&["BACKEND", "POOL", "STATE", "FOR", "SESSIONS", "IN FLIGHT", "PROBE", "REASON"], &backends);
    let certificates: Vec<_> = snapshot
        .certificates
        .iter()
        .map(|certificate| {
            let left = certificate.not_after.checked_sub(status.now);
            let expiry = left.map_or("expired".into(), |left| format!("in {} days", left / 86_400));
            vec![certificate.name.clone(), expiry, certificate.names.join(", ")]
        })
        .collect();
    if !certificates.is_empty() {
        text += "\n";
        text += &table(&["CERTIFICATE", "EXPIRES", "NAMES"], &certificates);
    }
    let failures: Vec<_> = snapshot
        .recent_failures
        .iter()
        .take(10)
        .map(|failure| {
            let times = if failure.count > 1 { format!("{}×", failure.count) } else { String::new() };
            vec![since(failure.at), times, failure.reason.clone(), failure.subject.clone(), failure.detail.clone()]
        })
        .collect();
    if !failures.is_empty() {
        text += "\n";
        text += &table(&["AGO", "", "FAILURE", "WHO", "WHAT"], &failures);
    }
    if let Some(reload) = snapshot.last_reload.as_ref().filter(|reload| !reload.applied) {
        text += &format!("\nThe last reload, {} ago, was rejected:\n", since(reload.at));
        for line in &reload.lines {
            text += &format!("  {}\n", printable(line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::model::{Backend, BackendState, Reload, Snapshot};

    #[test]
    fn the_status_names_what_is_wrong() {
        let status = Status {
            now: 1_800_000_000,
            version: "1.0".into(),
            sessions: 3,
            snapshot: Snapshot {
                started: 1_800_000_000 - 3600,
                not_ready: vec!["no backend is usable".into()],
                backends: vec![Backend {
                    name: "10.0.1.10:389".into(),
                    pool: "simple-ad".into(),
                    state: BackendState::Down,
                    reason: "connection refused".into(),
                    since: 1_800_000_000 - 65,
                    ..Backend::default()
                }],
                last_reload: Some(Reload { lines: vec!["bad key".into()], ..Reload::default() }),
                ..Snapshot::default()
            },
            ..Status::default()
        };
        let text = render(&status);
        assert!(text.starts_with("ldaps-proxy 1.0, up 1 h, not ready: no backend is usable\n3 sessions, "), "{text}");
        let backend = text.lines().find(|line| line.starts_with("10.0.1.10:389")).expect("a line for the backend");
        let cells: Vec<_> = backend.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect();
        assert_eq!(cells, ["10.0.1.10:389", "simple-ad", "down", "1 min 5 s", "0", "0", "–", "connection refused"]);
        assert!(text.ends_with("was rejected:\n  bad key\n"), "{text}");
    }
}
