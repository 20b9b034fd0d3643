//! The settings each part of the proxy takes, after parsing: values here can't be wrong.
//!
//! Every field carries the key of `contract` it comes from; defaults stand in the [`Default`] impls and nowhere else.

mod listener;
mod pool;
mod process;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub use listener::*;
pub use pool::*;
pub use process::*;
pub use tls::*;

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
