//! `drain`, `enable`, `kill`, `reload`, `log-level`: the commands that change a running proxy.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::admin_client::{AdminArgs, AdminClient};
use super::output::{fail, print, printable};
use crate::admin::model::{Backend, Sessions};

const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// The options of `drain`.
#[derive(Debug, Clone, clap::Args)]
pub struct DrainArgs {
    /// The backend, as `status` names it
    pub name: String,
    /// Don't wait for its sessions to end
    #[arg(long)]
    pub no_wait: bool,
    /// Wait at most this many seconds; the backend stays drained
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait")]
    pub timeout: Option<u64>,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The options of `enable`.
#[derive(Debug, Clone, clap::Args)]
pub struct EnableArgs {
    /// The backend, as `status` names it
    pub name: String,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The options of `kill`.
#[derive(Debug, Clone, clap::Args)]
pub struct KillArgs {
    /// The session, as `sessions` numbers it
    pub session: u64,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The options of `reload`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReloadArgs {
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The options of `log-level`.
#[derive(Debug, Clone, clap::Args)]
pub struct LogLevelArgs {
    /// A level or a filter: debug, or info,ldaps_proxy::health=trace
    pub level: String,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Drains a backend and shows its sessions ending. Exits 1 if some are left at the timeout, or when it is no backend any more.
pub fn drain(args: &DrainArgs) -> ExitCode {
    finish(AdminClient::new(&args.admin).and_then(|client| {
        let mut backends: Vec<Backend> = client.post("/api/v1/drain", &json!({ "backend": args.name }))?;
        let started = Instant::now();
        let mut shown = String::new();
        while backends.iter().any(|backend| backend.sessions > 0) && !args.no_wait {
            let progress = progress(&backends);
            if shown != progress {
                print(&progress);
            }
            if args.timeout.is_some_and(|seconds| started.elapsed() >= Duration::from_secs(seconds)) {
                return Err("sessions are left; the backend stays drained".into());
            }
            shown = progress;
            std::thread::sleep(PROGRESS_PERIOD);
            let before = std::mem::replace(&mut backends, client.get("/api/v1/backends")?);
            backends.retain(|backend| backend.is_called(&args.name));
            let is_gone = |old: &&Backend| !backends.iter().any(|backend| backend.pool == old.pool);
            if let Some(gone) = before.iter().filter(|old| old.sessions > 0).find(is_gone) {
                return left(&client, &gone.name);
            }
        }
        Ok(progress(&backends))
    }))
}

/// Takes a backend back into service.
pub fn enable(args: &EnableArgs) -> ExitCode {
    let backends = AdminClient::new(&args.admin)
        .and_then(|client| client.post::<Vec<Backend>>("/api/v1/enable", &json!({ "backend": args.name })));
    let tell = |backends: Vec<Backend>| {
        if backends.is_empty() { "it serves once DNS names it again\n".to_owned() } else { progress(&backends) }
    };
    finish(backends.map(tell))
}

/// Ends a session.
pub fn kill(args: &KillArgs) -> ExitCode {
    let told = AdminClient::new(&args.admin)
        .and_then(|client| client.post::<Value>("/api/v1/kill", &json!({ "session": args.session })));
    finish(told.map(|_| format!("session {} is told to end\n", args.session)))
}

/// Reloads configuration and certificates, and shows what was changed.
pub fn reload(args: &ReloadArgs) -> ExitCode {
    #[derive(Deserialize)]
    struct Changes {
        changes: Vec<String>,
    }
    let changes = AdminClient::new(&args.admin).and_then(|client| client.post::<Changes>("/api/v1/reload", &json!({})));
    finish(changes.map(|Changes { changes }| {
        if changes.is_empty() { "reloaded, nothing has changed\n".into() } else { changes.join("\n") + "\n" }
    }))
}

/// Sets the log filter until a restart, or a reload that finds another `log.level` in the file.
pub fn log_level(args: &LogLevelArgs) -> ExitCode {
    let set = AdminClient::new(&args.admin)
        .and_then(|client| client.post::<Value>("/api/v1/log-level", &json!({ "level": args.level })));
    finish(set.map(|_| format!("log level is {}\n", printable(&args.level))))
}

/// What to say of a backend that a reload or DNS has taken away: its sessions go on, but no list of backends counts them.
fn left(client: &AdminClient, name: &str) -> Result<String, String> {
    let all: Sessions = client.get(&format!("/api/v1/sessions?limit={}", usize::MAX))?;
    match all.sessions.iter().filter(|session| session.backend.as_deref() == Some(name)).count() {
        0 => Ok(format!("{} is no backend any more, and no session is left on it\n", printable(name))),
        some => {
            Err(format!("{name} is no backend any more, but {some} sessions are left on it: `sessions` shows them"))
        }
    }
}

fn progress(backends: &[Backend]) -> String {
    let line = |backend: &Backend| {
        format!(
            "{} is {}: {} sessions, {} operations in flight\n",
            printable(&backend.name),
            backend.state,
            backend.sessions,
            backend.operations_in_flight
        )
    };
    backends.iter().map(line).collect()
}

fn finish(outcome: Result<String, String>) -> ExitCode {
    match outcome {
        Ok(text) => print(&text),
        Err(error) => fail(&error),
    }
}
