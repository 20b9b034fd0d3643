//! One server of a pool, and everything the rest of the proxy knows of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::balance::{self, Candidate};
use crate::config::BackendSource;
use crate::metrics::{BackendMetrics, Held};

/// What the probes say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Health {
    /// Not probed yet, believed to work: a proxy that has just started serves at once.
    Unknown,
    /// Serves.
    Up,
    /// Answers, but the deep probe fails or is too slow: used only if nothing better is left.
    Degraded,
    /// Fails its probes, or was ejected for what real traffic met: tried only when nothing else is left.
    Down,
}

/// What an operator has asked of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Duty {
    /// Normal service.
    Enabled,
    /// Takes no new session and finishes those it has.
    Draining,
    /// Takes no session at all.
    Disabled,
}

/// Something real traffic met at a backend. The data path reports, the health side judges.
#[derive(Debug, Clone)]
pub struct Event {
    /// Whom it is about.
    pub backend: Arc<Backend>,
    /// Whose session met it.
    pub client: IpAddr,
    /// What it was.
    pub kind: EventKind,
}

/// What an [`Event`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A connection was opened in this time.
    Connected(Duration),
    /// A connection could not be opened.
    ConnectFailed,
    /// A connection broke with this many operations in flight; 0 is an idle close, which is nobody's fault.
    Lost {
        /// Operations of the one session that had not been answered.
        in_flight: usize,
    },
}

/// A configured or discovered server.
pub struct Backend {
    name: String,
    address: SocketAddr,
    host: String,
    identity: u64,
    weight: AtomicU32,
    tier: AtomicU32,
    max_sessions: usize,
    health: AtomicU8,
    duty: AtomicU8,
    sessions: AtomicUsize,
    metrics: BackendMetrics,
    events: mpsc::Sender<Event>,
}

impl Backend {
    /// A backend at `address`, found under `host` (the name its certificate must carry).
    pub fn new(
        address: SocketAddr,
        host: String,
        source: &BackendSource,
        metrics: BackendMetrics,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let name = address.to_string();
        metrics.up(true);
        Self {
            identity: balance::identity(&name),
            name,
            address,
            host,
            weight: AtomicU32::new(source.weight),
            tier: AtomicU32::new(source.tier),
            max_sessions: source.max_sessions,
            health: AtomicU8::new(Health::Unknown as u8),
            duty: AtomicU8::new(Duty::Enabled as u8),
            sessions: AtomicUsize::new(0),
            metrics,
            events,
        }
    }

    /// `host:port` as resolved: its label in metrics, status and commands.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name or address it was configured or discovered under.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its share among equals, 1 or more.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// The lowest tier with a usable backend serves.
    pub fn tier(&self) -> u32 {
        self.tier.load(Ordering::Relaxed)
    }

    /// Takes the weight and tier of a newer DNS answer.
    pub fn rank(&self, weight: u32, tier: u32) {
        self.weight.store(weight.max(1), Ordering::Relaxed);
        self.tier.store(tier, Ordering::Relaxed);
    }

    /// Sessions it may serve at once, 0 = no bound.
    pub fn max_sessions(&self) -> usize {
        self.max_sessions
    }

    /// Sessions it serves now.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// What the probes say.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Unknown,
            1 => Health::Up,
            2 => Health::Degraded,
            _ => Health::Down,
        }
    }

    /// Takes the probes' verdict; returns the one before.
    pub fn set_health(&self, health: Health) -> Health {
        let before = self.health();
        self.health.store(health as u8, Ordering::Relaxed);
        self.metrics.up(health != Health::Down);
        before
    }

    /// What an operator has asked.
    pub fn duty(&self) -> Duty {
        match self.duty.load(Ordering::Relaxed) {
            0 => Duty::Enabled,
            1 => Duty::Draining,
            _ => Duty::Disabled,
        }
    }

    /// Takes an operator's wish.
    pub fn set_duty(&self, duty: Duty) {
        self.duty.store(duty as u8, Ordering::Relaxed);
        self.metrics.drained(duty != Duty::Enabled);
    }

    /// Where what it does is counted.
    pub fn metrics(&self) -> &BackendMetrics {
        &self.metrics
    }

    /// Whether a session may be sent here without doubt: the question `/readyz` asks.
    pub fn is_usable(&self) -> bool {
        self.duty() == Duty::Enabled && self.health() != Health::Down
    }

    /// Tells the health side what real traffic met. A full queue drops the report: the data path never waits.
    pub fn report(self: &Arc<Self>, client: IpAddr, kind: EventKind) {
        match kind {
            EventKind::Connected(duration) => self.metrics.connected(duration),
            EventKind::ConnectFailed => self.metrics.connect_failed(),
            EventKind::Lost { .. } => self.metrics.lost(),
        }
        let _ = self.events.try_send(Event { backend: Arc::clone(self), client, kind });
    }

    pub(super) fn candidate(&self) -> Candidate {
        Candidate { weight: self.weight(), sessions: self.sessions(), identity: self.identity }
    }

    /// Counts one session for as long as the guard lives.
    pub(super) fn occupy(self: &Arc<Self>) -> Seat {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Seat { _counted: self.metrics.session(), backend: Arc::clone(self) }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({}, {:?}, {:?})", self.name, self.health(), self.duty())
    }
}

/// One session's place at a backend.
#[derive(Debug)]
pub struct Seat {
    backend: Arc<Backend>,
    _counted: Held,
}

impl Seat {
    /// Whose place it is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.backend.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}
