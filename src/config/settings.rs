//! The settings each part of the proxy takes, after parsing: values here can't be wrong.
//!
//! Every field carries the key of `contract` it comes from; defaults stand in the [`Default`] impls and nowhere else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// A whole configuration file, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[[listener]]`, at least one.
    pub listeners: Vec<Listener>,
    /// `[pools.NAME]`, each referred to by at least one listener or not at all.
    pub pools: BTreeMap<String, Arc<Pool>>,
    /// `[limits]`
    pub limits: Limits,
    /// `[login_throttle]`
    pub login_throttle: LoginThrottle,
    /// `[access_log]`
    pub access_log: AccessLog,
    /// `[log]`
    pub log: Log,
    /// `[admin]`
    pub admin: Admin,
    /// `[health]`: the address that serves only `/healthz` and `/readyz`.
    pub health_address: Option<SocketAddr>,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[trust] end_sessions`: on reload, end sessions no longer trusted.
    pub end_untrusted_sessions: bool,
    /// `[runtime] workers`; `None` is the number of cores this process may use.
    pub workers: Option<usize>,
}

/// `[[listener]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// `name`, by default the address as written. Unique.
    pub name: String,
    /// `address`
    pub address: SocketAddr,
    /// `protocol`
    pub protocol: ListenerProtocol,
    /// `trusted_networks`
    pub trusted_networks: Vec<IpNet>,
    /// `denied_networks`
    pub denied_networks: Vec<IpNet>,
    /// `trusted_networks_file`: one network a line, `#` comments.
    pub trusted_networks_file: Option<PathBuf>,
    /// `pool`: a key of [`Config::pools`].
    pub pool: String,
    /// `proxy_protocol_from`: peers whose PROXY header is required and believed.
    pub proxy_protocol_from: Vec<IpNet>,
    /// `referrals`
    pub referrals: Referrals,
    /// `public_name`: the host name clients use for us, for rewritten referrals.
    pub public_name: Option<String>,
    /// `[listener.policy]`
    pub policy: Policy,
    /// `[listener.tls]`, else `[tls]`. Always present for `ldaps`; for `ldap` its presence offers StartTLS.
    pub tls: Option<Arc<Tls>>,
}

/// `protocol` of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// TLS from the first byte.
    Ldaps,
    /// Cleartext, with StartTLS where the listener has a certificate.
    Ldap,
}

/// `referrals` of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Referrals {
    /// Forward as received.
    #[default]
    Pass,
    /// Point those naming the pool's own hosts or domain at `ldaps://<public_name>`.
    Rewrite,
    /// Remove those naming the pool's own hosts or domain.
    Drop,
}

/// `[listener.policy]`; `None` in an allow list means "all".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `read_only`
    pub read_only: bool,
    /// `allow_anonymous`
    pub allow_anonymous: bool,
    /// `allow_unauthenticated`
    pub allow_unauthenticated: bool,
    /// `allow_cleartext_bind`: on a cleartext listener, binds before StartTLS.
    pub allow_cleartext_bind: bool,
    /// `operations`
    pub operations: Option<Vec<crate::ldap::OperationKind>>,
    /// `extended_operations`: object identifiers.
    pub extended_operations: Option<Vec<String>>,
    /// `sasl_mechanisms`
    pub sasl_mechanisms: Option<Vec<String>>,
    /// `base_dns`
    pub base_dns: Option<Vec<String>>,
    /// `denied_controls`: object identifiers.
    pub denied_controls: Vec<String>,
    /// `sasl_layer`
    pub sasl_layer: SaslLayer,
    /// `max_size_limit`: entries a search may ask for.
    pub max_size_limit: Option<u32>,
    /// `bind_names`: patterns, `*` matches any run of characters, letters compare without case.
    pub bind_names: Option<Vec<String>>,
    /// `denied_bind_names`
    pub denied_bind_names: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_anonymous: true,
            allow_unauthenticated: false,
            allow_cleartext_bind: false,
            operations: None,
            extended_operations: None,
            sasl_mechanisms: None,
            base_dns: None,
            denied_controls: Vec::new(),
            sasl_layer: SaslLayer::Tunnel,
            max_size_limit: None,
            bind_names: None,
            denied_bind_names: Vec::new(),
        }
    }
}

/// `sasl_layer` of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaslLayer {
    /// A client that negotiates a SASL security layer becomes an opaque byte tunnel.
    #[default]
    Tunnel,
    /// Such a client is refused, since its operations can't be inspected.
    Refuse,
}

/// `[tls]` and `[listener.tls]`
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// The certificate for clients that send no server name, or an unknown one.
    pub default_certificate: CertificateFiles,
    /// `[[tls.additional]]`
    pub additional: Vec<CertificateFiles>,
    /// `min_version`
    pub min_version: TlsVersion,
    /// `policy`
    pub policy: TlsPolicy,
    /// `session_tickets`
    pub session_tickets: SessionTickets,
    /// `ticket_key_file`: keys shared by several copies.
    pub ticket_key_file: Option<PathBuf>,
    /// `client_certificates`, `client_ca`, `client_crl`
    pub client_certificates: ClientCertificates,
}

/// One certificate and its key, in the parts ACM imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// `certificate`: the body, or a bundle of body and chain.
    pub certificate: PathBuf,
    /// `private_key`
    pub private_key: PrivateKeySource,
    /// `certificate_chain`
    pub certificate_chain: Option<PathBuf>,
    /// `private_key_passphrase_file`: what the file, or the token, opens with.
    pub private_key_passphrase_file: Option<PathBuf>,
}

/// `private_key`: where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateKeySource {
    /// PEM.
    File(PathBuf),
    /// A `pkcs11:` URI: the key stays in a token and signs there.
    Token(Box<TokenKey>),
}

impl PrivateKeySource {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Token(_) => None,
        }
    }
}

impl From<PathBuf> for PrivateKeySource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// A private key by RFC 7512; what isn't given matches every token or object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenKey {
    /// The URI as it was written.
    pub uri: String,
    /// `token`: the token's label.
    pub token: Option<String>,
    /// `manufacturer` of the token.
    pub manufacturer: Option<String>,
    /// `model` of the token.
    pub model: Option<String>,
    /// `serial` of the token.
    pub serial: Option<String>,
    /// `slot-id`
    pub slot: Option<u64>,
    /// `object`: the key's label, CKA_LABEL.
    pub object: Option<String>,
    /// `id`: the key's CKA_ID.
    pub id: Option<Vec<u8>>,
    /// `module-path`, else `pkcs11_module`: the library to ask; always there once the configuration is read.
    pub module: Option<PathBuf>,
    /// `pkcs11_sessions`: signatures at a time.
    pub sessions: usize,
    /// `pin-source`
    pub pin_file: Option<PathBuf>,
}

/// `min_version`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// "1.2"
    #[default]
    V1_2,
    /// "1.3"
    V1_3,
}

/// `policy` of `[tls]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsPolicy {
    /// TLS 1.3 only.
    Modern,
    /// TLS 1.2 with AEAD and forward secrecy, and TLS 1.3.
    #[default]
    Intermediate,
    /// Only what FIPS 140 approves.
    Fips,
}

/// `session_tickets`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionTickets {
    /// Resumption in both versions.
    All,
    /// Resumption in TLS 1.2 only: Samba's own client library hangs on TLS 1.3 tickets.
    #[default]
    Tls12,
    /// No resumption.
    Off,
}

/// `client_certificates`, with what verifying them needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// Not asked for.
    #[default]
    Off,
    /// Asked for; a client without one may enter.
    Optional {
        /// `client_ca`
        ca: PathBuf,
        /// `client_crl`
        crl: Option<PathBuf>,
    },
    /// A client without a valid one ends at the handshake.
    Required {
        /// `client_ca`
        ca: PathBuf,
        /// `client_crl`
        crl: Option<PathBuf>,
    },
}

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

/// `[limits]`; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `max_connections`
    pub max_connections: usize,
    /// `connections_per_address`, 0 = off. IPv6 counts by /64.
    pub connections_per_address: usize,
    /// `connection_rate_per_address`: new connections a second, 0 = off.
    pub connection_rate_per_address: u32,
    /// `handshakes` being computed at once, of which each address gets its share. One that waits for its client is none of
    /// them.
    pub handshakes: usize,
    /// `handshake_timeout`
    pub handshake_timeout: Duration,
    /// `first_request_timeout`
    pub first_request_timeout: Duration,
    /// `request_timeout`: from a PDU's first byte to its last.
    pub request_timeout: Duration,
    /// `idle_timeout`: no operation in flight and no byte from the client.
    pub idle_timeout: Duration,
    /// `write_timeout`: a peer that takes no byte we have for it.
    pub write_timeout: Duration,
    /// `request_size_anonymous`
    pub request_size_anonymous: usize,
    /// `search_size`
    pub search_size: usize,
    /// `request_size`
    pub request_size: usize,
    /// `filter_depth`
    pub filter_depth: usize,
    /// `operations_in_flight` per session.
    pub operations_in_flight: usize,
    /// `operation_timeout`; `None` is off ("0s").
    pub operation_timeout: Option<Duration>,
    /// `buffer_memory`: bytes that all sessions' request and response buffers may hold together.
    pub buffer_memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 9000,
            connections_per_address: 0,
            connection_rate_per_address: 0,
            handshakes: 256,
            handshake_timeout: Duration::from_secs(10),
            first_request_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(3600),
            write_timeout: Duration::from_secs(30),
            request_size_anonymous: 250 * 1024,
            search_size: 250 * 1024,
            request_size: 16 * 1024 * 1024,
            filter_depth: 100,
            operations_in_flight: 256,
            operation_timeout: None,
            buffer_memory: 512 * 1024 * 1024,
        }
    }
}

/// `[login_throttle]`; `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginThrottle {
    /// `failures_per_name` within a window.
    pub failures_per_name: Option<u32>,
    /// `failures_per_address` within a window.
    pub failures_per_address: Option<u32>,
    /// `window`
    pub window: Duration,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self { failures_per_name: None, failures_per_address: None, window: Duration::from_secs(600) }
    }
}

/// `[access_log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// `output`, with `path` for a file.
    pub output: AccessLogOutput,
    /// `format`
    pub format: LogFormat,
    /// `detail`
    pub detail: AccessLogDetail,
    /// `redact_filters`
    pub redact_filters: bool,
    /// `sample`: of operations that neither failed nor were slow, one in this many is told; 0 = none.
    pub sample: u32,
    /// `slower_than`: operations that take longer are slow; `None` is off ("0s").
    pub slower_than: Option<Duration>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            output: AccessLogOutput::Off,
            format: LogFormat::Json,
            detail: AccessLogDetail::Operations,
            redact_filters: true,
            sample: 1,
            slower_than: None,
        }
    }
}

/// `output` of the access log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogOutput {
    /// None.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// `path`; SIGUSR1 reopens it.
    File(PathBuf),
    /// The systemd journal.
    Journald,
}

/// `detail` of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLogDetail {
    /// A line per operation and per session.
    #[default]
    Operations,
    /// A line per session.
    Sessions,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `level`: a tracing filter, such as "info" or "info,ldaps_proxy::health=debug".
    pub level: String,
    /// `format`
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// `format` of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admin {
    /// `address`
    pub address: Option<SocketAddr>,
    /// `socket`
    pub socket: Option<PathBuf>,
    /// `token_file`: with it, TCP may change state.
    pub token_file: Option<PathBuf>,
}

/// `[shutdown]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// `delay`: from the moment `/readyz` turns to the one the listeners close.
    pub delay: Duration,
    /// `drain_timeout`
    pub drain_timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::ZERO, drain_timeout: Duration::from_secs(30) }
    }
}
