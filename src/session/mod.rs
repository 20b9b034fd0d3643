//! A client and what serves it: bind state, operations in flight, and the loop that moves PDUs both ways.
//!
//! [`State`] decides, without sockets; `run` moves octets. `establish` opens the upstream and replays the bind on it.

mod bind;
mod copies;
mod establish;
mod memory;
mod operations;
mod pins;
mod registry;
mod replay;
mod run;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod throttle_tests;
mod verdict;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

pub use memory::Memory;
pub use registry::{Command, Entry, Facts, Handle, Registry};
pub use replay::ReplayGuard;
pub use state::StartTls;

use crate::access_log::AccessLog;
use crate::buffer::Source;
use crate::config::Limits;
use crate::failure::EndReason;
use crate::metrics::{ListenerMetrics, Metrics};
use crate::policy::Policy;
use crate::pool::{CurrentPool, NoBackend};
use crate::referral;
use crate::throttle::LoginThrottle;
use crate::tls::Handshake;
use run::{Carried, Outcome, Parts, Run};
use state::State;

/// What all sessions of one listener share.
pub struct Settings {
    /// Where their operations go.
    pub pool: CurrentPool,
    /// The pool's memory of replayed binds.
    pub replay_guard: Arc<ReplayGuard>,
    /// `[limits]`
    pub limits: Limits,
    /// `[listener.policy]`
    pub policy: Policy,
    /// `referrals`; `None` is "pass".
    pub referrals: Option<referral::Mode>,
    /// `[login_throttle]`
    pub throttle: Arc<LoginThrottle>,
    /// `[access_log]`
    pub access_log: AccessLog,
    /// `limits.buffer_memory`
    pub memory: Arc<Memory>,
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

/// One client's session, between two states of its transport.
pub struct Session<T> {
    settings: Arc<Settings>,
    parts: Parts<T>,
}

/// What serving came to.
pub enum Served<T> {
    /// The session is over.
    Ended(EndReason),
    /// The client was told to start TLS: handshake, then go on.
    StartTls(Box<Session<T>>),
}

impl<T> Served<T> {
    /// Why it ended; a session that asked for TLS where nobody can give it any has failed its handshake.
    pub fn reason(&self) -> EndReason {
        match self {
            Self::Ended(reason) => *reason,
            Self::StartTls(_) => EndReason::HandshakeFailed,
        }
    }
}

impl<T> Session<T> {
    /// A session that begins: anonymous.
    pub fn new(settings: Arc<Settings>, entry: Entry, client: T, start_tls: StartTls) -> Self {
        let state = State::new(settings.pool.now().settings().failover.clone(), start_tls);
        let (began, upstream) = (Instant::now(), Carried::default());
        Self { settings, parts: Parts { client, state, entry, began, failovers: 0, upstream } }
    }

    /// Takes the transport off, for a handshake on it.
    pub fn off_transport(self) -> (T, Session<()>) {
        let (client, parts) = self.parts.behind(());
        (client, Session { settings: self.settings, parts })
    }
}

impl Session<()> {
    /// Goes on over TLS.
    pub fn on_tls<T>(self, client: T, handshake: &Handshake) -> Session<T> {
        let ((), mut parts) = self.parts.behind(client);
        parts.state.start_tls();
        parts.entry.describe(Some(handshake), None);
        Session { settings: self.settings, parts }
    }

    /// Ends a session that was told to start TLS and couldn't.
    pub fn handshake_failed(self) -> EndReason {
        let reason = EndReason::HandshakeFailed;
        run::log_session(&self.settings, &self.parts.entry, self.parts.began, self.parts.failovers, reason);
        reason
    }
}

impl<T: Source + AsyncWrite + Unpin> Session<T> {
    /// Serves the client until it, the proxy or an operator ends the session, or the client starts TLS.
    pub fn serve(self) -> Serving<T> {
        Serving { run: Some(Run::new(self.settings, self.parts)) }
    }
}

/// A session at work. A type of its own, because what an async function makes of it takes three times the memory.
pub struct Serving<T> {
    /// Until it is over.
    run: Option<Run<T>>,
}

impl<T: Source + AsyncWrite + Unpin> Future for Serving<T> {
    type Output = Served<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Served<T>> {
        let run = self.run.as_mut().expect("a future that was ready isn't polled again");
        let outcome = ready!(Pin::new(&mut *run).poll(cx));
        if let Outcome::Ended(reason) = outcome {
            run.close_account(reason);
        }
        let run = self.run.take().expect("it was there a moment ago");
        Poll::Ready(match outcome {
            Outcome::Ended(reason) => Served::Ended(reason),
            Outcome::StartTls => {
                let (settings, parts) = run.into_parts();
                Served::StartTls(Box::new(Session { settings, parts }))
            }
        })
    }
}
