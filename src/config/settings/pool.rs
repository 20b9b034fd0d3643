//! `[pools.NAME]`: backends, their health, failover and discovery.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[pools.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// NAME
    pub name: String,
    /// `backends`, at least one.
    pub backends: Vec<BackendSource>,
    /// `balance`
    pub balance: Balance,
    /// `connect_timeout`: one attempt.
    pub connect_timeout: Duration,
    /// `connect_budget`: all attempts for one request.
    pub connect_budget: Duration,
    /// `protocol`
    pub protocol: BackendProtocol,
    /// `ca_file`: `None` is the system's roots.
    pub ca_file: Option<PathBuf>,
    /// `server_name`: the name the backend's certificate must carry, instead of the host configured.
    pub server_name: Option<String>,
    /// `send_proxy_protocol`
    pub send_proxy_protocol: bool,
    /// `warm`: connections kept open and unused per backend.
    pub warm: usize,
    /// `queue`: requests that may wait for a backend at its `max_sessions`.
    pub queue: usize,
    /// `queue_timeout`
    pub queue_timeout: Duration,
    /// `rebalance`: move idle, unpinned sessions when a backend returns (off).
    pub rebalance: bool,
    /// `[pools.NAME.health]`
    pub health: Health,
    /// `[pools.NAME.failover]`
    pub failover: Failover,
    /// `[pools.NAME.discovery]`
    pub discovery: Discovery,
}

impl Pool {
    /// A pool of this name with these backends and every other key at its default.
    pub fn new(name: impl Into<String>, backends: Vec<BackendSource>) -> Self {
        Self {
            name: name.into(),
            backends,
            balance: Balance::default(),
            connect_timeout: Duration::from_secs(2),
            connect_budget: Duration::from_secs(5),
            protocol: BackendProtocol::default(),
            ca_file: None,
            server_name: None,
            send_proxy_protocol: false,
            warm: 0,
            queue: 0,
            queue_timeout: Duration::from_secs(2),
            rebalance: false,
            health: Health::default(),
            failover: Failover::default(),
            discovery: Discovery::default(),
        }
    }
}

/// One element of `backends`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSource {
    /// Where to find it.
    pub address: BackendAddress,
    /// `weight`, 1 or more.
    pub weight: u32,
    /// `tier`: the lowest with a usable backend serves.
    pub tier: u32,
    /// `max_sessions`, 0 = no bound.
    pub max_sessions: usize,
}

/// `address` of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A host name and port, resolved to all its A and AAAA records.
    Host {
        /// The name, without a trailing dot.
        name: String,
        /// Port, 389 where none is written (636 for `ldaps`).
        port: u16,
    },
    /// `srv:NAME`
    Service(String),
}

/// `balance`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Fewest sessions for its weight.
    #[default]
    LeastConnections,
    /// Each in turn, by weight.
    RoundRobin,
    /// The first usable one in the order written.
    FirstAvailable,
    /// By the client's address.
    SourceHash,
    /// The less busy of two drawn at random.
    PowerOfTwo,
}

/// `protocol` of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendProtocol {
    /// Cleartext.
    #[default]
    Ldap,
    /// TLS from the first byte, verified.
    Ldaps,
    /// StartTLS, verified.
    StartTls,
}

/// `[pools.NAME.health]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Health {
    /// The frequent probe.
    pub cheap: Probe,
    /// `[pools.NAME.health.deep]`
    pub deep: Option<Probe>,
    /// `panic_mode`: use all backends when none is healthy (off).
    pub panic_mode: bool,
}

/// One kind of probe and its rhythm.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// `probe`
    pub kind: ProbeKind,
    /// `interval`
    pub interval: Duration,
    /// `timeout`
    pub timeout: Duration,
    /// `rise`: passes in a row that bring a backend up.
    pub rise: u32,
    /// `fall`: failures in a row that take it down.
    pub fall: u32,
    /// `expect`: rootDSE attributes and a value each must have.
    pub expect: BTreeMap<String, String>,
    /// `bind_name`
    pub bind_name: Option<String>,
    /// `password_file`
    pub password_file: Option<PathBuf>,
    /// `base`
    pub base: String,
    /// `filter`
    pub filter: String,
    /// `min_entries`
    pub min_entries: usize,
    /// `max_latency`: slower passes count as degraded.
    pub max_latency: Option<Duration>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            kind: ProbeKind::RootDse,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            expect: BTreeMap::new(),
            bind_name: None,
            password_file: None,
            base: String::new(),
            filter: "(objectClass=*)".into(),
            min_entries: 1,
            max_latency: None,
        }
    }
}

impl Probe {
    /// The defaults of `[pools.NAME.health.deep]`: a login of the service account, seldom enough to weigh nothing.
    pub fn deep() -> Self {
        Self {
            kind: ProbeKind::Bind,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            ..Self::default()
        }
    }
}

/// `probe`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProbeKind {
    /// An anonymous read of the rootDSE.
    #[default]
    RootDse,
    /// A TCP connect.
    Tcp,
    /// A simple bind of the service account.
    Bind,
    /// Bind where a name is given, then a search with content.
    Search,
}

impl ProbeKind {
    /// The name in configuration, status and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RootDse => "rootdse",
            Self::Tcp => "tcp",
            Self::Bind => "bind",
            Self::Search => "search",
        }
    }
}

/// `[pools.NAME.failover]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// `mode`
    pub mode: FailoverMode,
    /// `replay_bind`
    pub replay_bind: bool,
    /// `replay_max_age`
    pub replay_max_age: Duration,
    /// `write_affinity`
    pub write_affinity: Duration,
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            mode: FailoverMode::Session,
            replay_bind: true,
            replay_max_age: Duration::from_secs(12 * 3600),
            write_affinity: Duration::from_secs(30),
        }
    }
}

/// `mode` of failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailoverMode {
    /// A session outlives its upstream.
    #[default]
    Session,
    /// Only connecting tries several backends; a lost upstream ends the session.
    Connect,
    /// One backend is tried; a lost upstream ends the session.
    None,
}

/// `[pools.NAME.discovery]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// `name_servers`; empty is the system's.
    pub name_servers: Vec<SocketAddr>,
    /// `min_ttl`
    pub min_ttl: Duration,
    /// `max_ttl`
    pub max_ttl: Duration,
}

impl Default for Discovery {
    fn default() -> Self {
        Self { name_servers: Vec::new(), min_ttl: Duration::from_secs(5), max_ttl: Duration::from_secs(300) }
    }
}
