//! A client and what serves it: bind state, operations in flight, and the loop that moves PDUs both ways.
//!
//! [`State`] decides, without sockets; `run` moves octets. `establish` opens the upstream and replays the bind on it.

mod bind;
mod buffer;
mod establish;
mod operations;
mod pins;
mod registry;
mod replay;
mod run;
mod state;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub use registry::{Command, Entry, Facts, Handle, Registry};
pub use replay::ReplayGuard;
pub use state::StartTls;

use crate::config::Limits;
use crate::failure::EndReason;
use crate::metrics::{ListenerMetrics, Metrics};
use crate::pool::{NoBackend, Pool};
use run::{Outcome, Parts, Run};
use state::State;

/// What all sessions of one listener share.
pub struct Settings {
    /// Where their operations go.
    pub pool: Arc<Pool>,
    /// The pool's memory of replayed binds.
    pub replay_guard: Arc<ReplayGuard>,
    /// `[limits]`
    pub limits: Limits,
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    /// The listener's metrics.
    pub listener: ListenerMetrics,
    /// Keeps an outage from flooding the log.
    pub no_backend: Outage,
}

/// Says that a pool has no backend, at most once a second.
#[derive(Debug, Default)]
pub struct Outage {
    last: Mutex<Option<Instant>>,
}

impl Outage {
    fn warn(&self, pool: &str, error: &NoBackend, now: Instant) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_none_or(|last| now >= last + Duration::from_secs(1)) {
            *last = Some(now);
            tracing::error!(pool, attempts = ?error.attempts, "no backend can be reached");
        }
    }
}

/// Serves `client` until the session ends.
pub async fn serve<T: AsyncRead + AsyncWrite + Unpin>(
    settings: Arc<Settings>,
    entry: Entry,
    client: T,
    start_tls: StartTls,
) -> EndReason {
    let state = State::new(settings.pool.settings().failover.clone(), start_tls);
    let mut run = Run::new(settings, Parts { client, state, entry });
    match (&mut run).await {
        Outcome::Ended(reason) => reason,
        Outcome::StartTls => EndReason::HandshakeFailed,
    }
}
