//! What the admin side knows of the proxy: plain data, filled by `app`, shown by the page, the API and the commands.
//!
//! Times are Unix seconds, 0 where they are not known. The field names are those of `/api/v1/`: add beside them, never rename.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The proxy at one moment, without its sessions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// When the process started.
    pub started: u64,
    /// No new session is taken; the old ones are finishing.
    pub draining: bool,
    /// Why `/readyz` says no; empty when it says yes.
    pub not_ready: Vec<String>,
    /// In the order of the configuration.
    pub listeners: Vec<Listener>,
    /// By pool, in the order of the configuration.
    pub backends: Vec<Backend>,
    /// In the order of the configuration.
    pub certificates: Vec<Certificate>,
    /// The newest reload, if there was one; one that was rejected stands until its like is applied.
    pub last_reload: Option<Reload>,
    /// The newest failures, newest first, bounded.
    pub recent_failures: Vec<Failure>,
}

/// A listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// `name`
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// "ldaps" or "ldap"
    pub protocol: String,
    /// The pool it serves.
    pub pool: String,
    /// Sessions open now.
    pub sessions: usize,
}

/// A backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// The name in labels, status and commands.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The name or address it was configured or discovered under.
    pub host: String,
    /// Whether it serves.
    pub state: BackendState,
    /// Why it is in this state, in words.
    pub reason: String,
    /// When it came into this state.
    pub since: u64,
    /// `weight`
    pub weight: u32,
    /// `tier`
    pub tier: u32,
    /// Sessions on it now.
    pub sessions: usize,
    /// Operations sent to it and not finished.
    pub operations_in_flight: usize,
    /// The newest probes, newest first, bounded.
    pub probes: Vec<Probe>,
}

impl Backend {
    /// Whether an operator may mean this backend by `name`: `host:port`, which is that of every pool that has it, or
    /// `pool/host:port`.
    pub fn is_called(&self, name: &str) -> bool {
        self.within_its_pool(name) == self.within_its_pool(&self.name)
    }

    fn within_its_pool<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.pool).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name)
    }
}

/// Whether a backend serves: what an operator asked goes before what the probes say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Not probed yet; used.
    #[default]
    Unknown,
    /// Serves.
    Up,
    /// Used only if nothing better is left.
    Degraded,
    /// Not used.
    Down,
    /// Takes no new session.
    Draining,
    /// Takes no session.
    Disabled,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        })
    }
}

/// One probe of a backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// When it ended.
    pub at: u64,
    /// "rootdse", "tcp", "bind" or "search"
    pub kind: String,
    /// How long it took.
    pub milliseconds: f64,
    /// Why it failed; `None` if it passed.
    pub failure: Option<String>,
}

/// A session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// The number `kill` takes.
    pub id: u64,
    /// `address:port`, as announced by PROXY protocol where that is believed.
    pub client: String,
    /// The listener it came in by.
    pub listener: String,
    /// The TLS version, or `None` in cleartext.
    pub tls: Option<String>,
    /// The name it is bound as, or `None` when anonymous.
    pub bind_name: Option<String>,
    /// The backend that serves it, or `None` before its first request.
    pub backend: Option<String>,
    /// When it began.
    pub started: u64,
    /// Whether it is a tunnel that is no longer inspected.
    pub tunnel: bool,
    /// Operations so far.
    pub operations: u64,
    /// Operations in flight.
    pub in_flight: usize,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
}

/// A certificate shown to clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// The label in metrics.
    pub name: String,
    /// Its subject.
    pub subject: String,
    /// The names it is valid for.
    pub names: Vec<String>,
    /// Its issuer.
    pub issuer: String,
    /// When it expires.
    pub not_after: u64,
    /// "ECDSA P-256", "RSA 2048", …
    pub key: String,
    /// SHA-256 of the DER, in hexadecimal.
    pub fingerprint: String,
}

/// A reload of configuration and certificates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reload {
    /// When it ended.
    pub at: u64,
    /// Whether it was applied; if not, nothing was changed.
    pub applied: bool,
    /// What was changed, or what is wrong: one line each.
    pub lines: Vec<String>,
}

/// Something that went wrong, for the list of recent failures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// When, for the last time.
    pub at: u64,
    /// A word of a closed list in [`crate::failure`].
    pub reason: String,
    /// Who met it: a client, a backend, a pool, a listener.
    pub subject: String,
    /// What happened, in words; the last time.
    pub detail: String,
    /// How many times, each within a minute of the one before.
    pub count: u64,
}

/// What `GET /api/v1/status` gives: the snapshot and what is derived from sessions and metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The version of the proxy.
    pub version: String,
    /// When this was taken.
    pub now: u64,
    /// The proxy itself.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// Sessions open now.
    pub sessions: usize,
    /// Rates and latency over the last minute.
    pub traffic: Traffic,
    /// Handshakes since the start, by TLS version.
    pub tls_versions: BTreeMap<String, u64>,
    /// Refusals since the start, by reason; those that happened.
    pub refusals: BTreeMap<String, u64>,
    /// Failovers since the start, by kind; those that happened.
    pub failovers: BTreeMap<String, u64>,
    /// Addresses with most sessions.
    pub top_clients: Vec<Top>,
    /// Names most sessions are bound as.
    pub top_bind_names: Vec<Top>,
}

/// Rates and latency over a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Seconds the window covers.
    pub seconds: f64,
    /// Operations a second.
    pub operations: f64,
    /// Connections a second, refused ones included.
    pub connections: f64,
    /// Failed operations a second: a result of 1–3, 8 or 51–54, 80: the server's trouble rather than the user's.
    pub errors: f64,
    /// The median operation took at most this long, in milliseconds; `None` without operations.
    pub p50_milliseconds: Option<f64>,
    /// 99 of 100 operations took at most this long, in milliseconds.
    pub p99_milliseconds: Option<f64>,
}

/// One row of a list of the busiest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Top {
    /// The address or the name.
    pub who: String,
    /// Sessions open now.
    pub sessions: usize,
    /// Operations of these sessions so far.
    pub operations: u64,
}

/// What `GET /api/v1/sessions` gives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sessions {
    /// When this was taken.
    pub now: u64,
    /// All sessions open.
    pub total: usize,
    /// Those asked for, oldest first.
    pub sessions: Vec<Session>,
}

/// The busiest `count` of the sessions' clients (without ports) and of their bind names.
pub fn busiest(sessions: &[Session], count: usize) -> (Vec<Top>, Vec<Top>) {
    let address = |session: &Session| session.client.rsplit_once(':').map(|(address, _)| address.to_owned());
    let clients = rank(sessions.iter().filter_map(|session| Some((address(session)?, session))), count);
    let names = rank(sessions.iter().filter_map(|session| Some((session.bind_name.clone()?, session))), count);
    (clients, names)
}

fn rank<'a>(sessions: impl Iterator<Item = (String, &'a Session)>, count: usize) -> Vec<Top> {
    let mut sums = BTreeMap::<String, Top>::new();
    for (who, session) in sessions {
        let top = sums.entry(who).or_default();
        top.sessions += 1;
        top.operations += session.operations;
    }
    let mut tops: Vec<_> = sums.into_iter().map(|(who, top)| Top { who, ..top }).collect();
    tops.sort_by_key(|top| std::cmp::Reverse((top.sessions, top.operations)));
    tops.truncate(count);
    tops
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(client: &str, bind_name: Option<&str>, operations: u64) -> Session {
        Session { client: client.into(), bind_name: bind_name.map(Into::into), operations, ..Session::default() }
    }

    #[test]
    fn the_busiest_are_ranked_by_sessions_and_then_by_operations() {
        let sessions = [
            session("10.0.0.1:4000", Some("cn=app"), 5),
            session("10.0.0.1:4001", Some("cn=app"), 5),
            session("[fd00::1]:4000", None, 100),
            session("10.0.0.2:4000", Some("cn=batch"), 1),
        ];
        let (clients, names) = busiest(&sessions, 2);
        let top = |who: &str, sessions, operations| Top { who: who.into(), sessions, operations };
        assert_eq!(clients, [top("10.0.0.1", 2, 10), top("[fd00::1]", 1, 100)]);
        assert_eq!(names, [top("cn=app", 2, 10), top("cn=batch", 1, 1)]);
    }

    #[test]
    fn a_backend_is_called_by_its_name_with_or_without_its_pool() {
        for name in ["10.0.1.10:389", "simple-ad/10.0.1.10:389"] {
            let backend = Backend { name: name.into(), pool: "simple-ad".into(), ..Backend::default() };
            assert!(backend.is_called("10.0.1.10:389") && backend.is_called("simple-ad/10.0.1.10:389"));
            for other in ["10.0.1.1:389", "other/10.0.1.10:389", "simple-ad", "simple-ad10.0.1.10:389", ""] {
                assert!(!backend.is_called(other), "{other}");
            }
        }
    }

    #[test]
    fn a_status_survives_its_own_json() {
        let status = Status {
            version: "0.1.0".into(),
            snapshot: Snapshot {
                backends: vec![Backend { state: BackendState::Draining, ..Backend::default() }],
                ..Snapshot::default()
            },
            ..Status::default()
        };
        let json = serde_json::to_string(&status).expect("serializes");
        assert!(json.contains(r#""state":"draining""#), "{json}");
        assert_eq!(serde_json::from_str::<Status>(&json).expect("deserializes"), status);
    }
}
