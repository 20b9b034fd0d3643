//! One server of a pool, and everything the rest of the proxy knows of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::account::{Account, Ledger, ProbeRecord};
use super::opening::Openings;
use super::warm::Stock;
use crate::balance::{self, Candidate};
use crate::metrics::{BackendMetrics, Share};

/// What the probes say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Health {
    /// Not probed yet. Believed to work where the proxy has just started, so that it serves at once; not believed where
    /// the backend has appeared under way.
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

/// How willingly a backend is chosen, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Without doubt.
    Good,
    /// If nothing better is left.
    Degraded,
    /// If nothing else is left at all.
    Down,
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
    /// An operation was not answered within `limits.operation_timeout`.
    TimedOut,
}

/// Where a backend is and how much it should take: an address of the configuration, or an answer of DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name or address it was configured or discovered under: what its certificate must be for.
    pub host: String,
    /// Its share among equals, 1 or more.
    pub weight: u32,
    /// The lowest tier with a usable backend serves.
    pub tier: u32,
    /// Sessions it may serve at once, 0 = no bound.
    pub max_sessions: usize,
}

/// What a pool's backends ring, each for one task that waits.
#[derive(Debug, Default)]
pub(super) struct Bells {
    /// A session may find a seat that it didn't find before.
    pub seats: Notify,
    /// A backend may want warm upstreams.
    pub stock: Notify,
}

/// A configured or discovered server.
pub struct Backend {
    name: String,
    address: SocketAddr,
    host: String,
    identity: u64,
    life: Arc<Life>,
    pub(super) stock: Stock,
    pub(super) openings: Openings,
    metrics: BackendMetrics,
}

/// What is known of a server and asked of it. It goes on when a reload makes the pool anew, and when DNS drops the server and
/// names it again: sessions that began before belong to the same server, though to another object of it.
pub(super) struct Life {
    weight: AtomicU32,
    tier: AtomicU32,
    max_sessions: AtomicUsize,
    health: AtomicU8,
    duty: AtomicU8,
    sessions: AtomicUsize,
    /// The same in the metrics. One lock for all of them, so that the newest count is the one that stays.
    shown: Mutex<Share>,
    ledger: Ledger,
    /// To the health side of the newest pool.
    events: ArcSwap<mpsc::Sender<Event>>,
    /// Those of every pool that still has sessions.
    bells: Mutex<Vec<Weak<Bells>>>,
}

impl Backend {
    /// A backend that is believed to work until it is probed.
    pub fn new(endpoint: &Endpoint, name: String, metrics: BackendMetrics, events: mpsc::Sender<Event>) -> Self {
        let life = Life {
            weight: AtomicU32::new(0),
            tier: AtomicU32::new(0),
            max_sessions: AtomicUsize::new(0),
            health: AtomicU8::new(Health::Unknown as u8),
            duty: AtomicU8::new(Duty::Enabled as u8),
            sessions: AtomicUsize::new(0),
            shown: Mutex::new(metrics.sessions()),
            ledger: Ledger::new(SystemTime::now()),
            events: ArcSwap::from_pointee(events),
            bells: Mutex::default(),
        };
        Self::with(endpoint, name, metrics, Arc::new(life))
    }

    /// A server that goes on living, in a pool that was made anew or that DNS names it to again.
    pub(super) fn successor(
        endpoint: &Endpoint,
        name: String,
        metrics: BackendMetrics,
        events: mpsc::Sender<Event>,
        life: Arc<Life>,
    ) -> Self {
        life.events.store(Arc::new(events));
        // Its series may have been forgotten, or have another name now.
        *life.shown() = metrics.sessions();
        life.show();
        Self::with(endpoint, name, metrics, life)
    }

    fn with(endpoint: &Endpoint, name: String, metrics: BackendMetrics, life: Arc<Life>) -> Self {
        let backend = Self {
            identity: balance::identity(&endpoint.address.to_string()),
            name,
            address: endpoint.address,
            host: endpoint.host.clone(),
            life,
            stock: Stock::default(),
            openings: Openings::default(),
            metrics,
        };
        backend.rank(endpoint);
        backend.metrics.up(backend.standing() != Standing::Down);
        backend.metrics.drained(backend.duty() != Duty::Enabled);
        backend
    }

    /// What outlives it as long as it has sessions.
    pub(super) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// Whether it is the same server, perhaps in the pool as it was before a reload, or before DNS dropped it.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.life, &other.life)
    }

    /// `host:port` as resolved, or `pool/host:port` where pools share it: its label in metrics, status and commands.
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
        self.life.weight.load(Ordering::Relaxed)
    }

    /// The lowest tier with a usable backend serves.
    pub fn tier(&self) -> u32 {
        self.life.tier.load(Ordering::Relaxed)
    }

    /// Sessions it may serve at once, 0 = no bound.
    pub fn max_sessions(&self) -> usize {
        self.life.max_sessions.load(Ordering::Relaxed)
    }

    /// Takes what a newer answer of DNS says of the same address.
    pub(super) fn rank(&self, endpoint: &Endpoint) {
        self.life.weight.store(endpoint.weight.max(1), Ordering::Relaxed);
        self.life.tier.store(endpoint.tier, Ordering::Relaxed);
        self.life.max_sessions.store(endpoint.max_sessions, Ordering::Relaxed);
    }

    /// Sessions it serves now.
    pub fn sessions(&self) -> usize {
        self.life.sessions.load(Ordering::Relaxed)
    }

    /// What the probes say.
    pub fn health(&self) -> Health {
        match self.life.health.load(Ordering::Relaxed) {
            0 => Health::Unknown,
            1 => Health::Up,
            2 => Health::Degraded,
            _ => Health::Down,
        }
    }

    /// Takes the probes' verdict and why, in words; returns the one before. One that was down starts slowly.
    pub fn set_health(&self, health: Health, reason: impl Into<String>) -> Health {
        let before = self.health();
        self.life.ledger.judged(before, health, reason.into());
        self.life.health.store(health as u8, Ordering::Relaxed);
        self.metrics.up(health != Health::Down);
        self.tell_news();
        before
    }

    /// What an operator has asked.
    pub fn duty(&self) -> Duty {
        match self.life.duty.load(Ordering::Relaxed) {
            0 => Duty::Enabled,
            1 => Duty::Draining,
            _ => Duty::Disabled,
        }
    }

    /// Takes an operator's wish.
    pub fn set_duty(&self, duty: Duty) {
        self.life.duty.store(duty as u8, Ordering::Relaxed);
        self.metrics.drained(duty != Duty::Enabled);
        self.tell_news();
    }

    /// Why it is in its state, since when, and the newest probes.
    pub fn account(&self) -> Account {
        self.life.ledger.account()
    }

    /// Keeps a probe for [`Backend::account`].
    pub fn keep_probe(&self, probe: ProbeRecord) {
        self.life.ledger.keep(probe);
    }

    /// Where what it does is counted.
    pub fn metrics(&self) -> &BackendMetrics {
        &self.metrics
    }

    /// How willingly it is chosen.
    pub fn standing(&self) -> Standing {
        match self.health() {
            Health::Unknown if self.life.ledger.is_newcomer() => Standing::Down,
            Health::Unknown | Health::Up => Standing::Good,
            Health::Degraded => Standing::Degraded,
            Health::Down => Standing::Down,
        }
    }

    /// Whether a session may be sent here without doubt: the question `/readyz` asks.
    pub fn is_usable(&self) -> bool {
        self.duty() == Duty::Enabled && self.standing() != Standing::Down
    }

    /// Tells the health side what real traffic met. A full queue drops the report: the data path never waits.
    pub fn report(self: &Arc<Self>, client: IpAddr, kind: EventKind) {
        match kind {
            EventKind::Connected(duration) => self.metrics.connected(duration),
            EventKind::ConnectFailed => self.metrics.connect_failed(),
            EventKind::Lost { .. } => self.metrics.lost(),
            EventKind::TimedOut => {}
        }
        let _ = self.life.events.load().try_send(Event { backend: Arc::clone(self), client, kind });
    }

    /// Not believed until its first probe passes.
    pub(super) fn make_newcomer(&self) {
        self.life.ledger.make_newcomer();
        self.metrics.up(false);
    }

    /// Takes the bells of its pool.
    pub(super) fn hang(&self, bells: &Arc<Bells>) {
        let mut hung = self.life.bells();
        hung.retain(|known| known.strong_count() > 0);
        if !hung.iter().any(|known| known.as_ptr() == Arc::as_ptr(bells)) {
            hung.push(Arc::downgrade(bells));
        }
    }

    /// The sixteenths of its weight it has after coming back: 16 for all but those that have just been down.
    pub(super) fn ramp(&self, now: Instant) -> u32 {
        self.life.ledger.ramp(now)
    }

    /// `sixteenths` of its weight, or the whole of it.
    pub(super) fn candidate(&self, sixteenths: Option<u32>) -> Candidate {
        Candidate {
            weight: self.weight().saturating_mul(sixteenths.unwrap_or(1)),
            sessions: self.sessions(),
            identity: self.identity,
        }
    }

    /// Counts one session for as long as the seat lives; `None` where all seats are taken.
    pub(super) fn occupy(self: &Arc<Self>) -> Option<Seat> {
        let most = match self.max_sessions() {
            0 => usize::MAX,
            most => most,
        };
        self.life
            .sessions
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sessions| (sessions < most).then_some(sessions + 1))
            .ok()?;
        self.life.show();
        Some(Seat { backend: Arc::clone(self) })
    }

    /// Its state has changed.
    fn tell_news(&self) {
        self.life.ring(|bells| {
            bells.seats.notify_one();
            bells.stock.notify_one();
        });
    }
}

impl Life {
    /// As if nothing had been known, but for the sessions it still has.
    pub(super) fn begin_anew(&self) {
        self.ledger.begin_anew(SystemTime::now());
        self.health.store(Health::Unknown as u8, Ordering::Relaxed);
    }

    /// Shows how many sessions there are now.
    fn show(&self) {
        let mut shown = self.shown();
        shown.set(self.sessions.load(Ordering::Relaxed));
    }

    fn shown(&self) -> MutexGuard<'_, Share> {
        // A share is replaced and set, never left in between.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, pull: impl Fn(&Bells)) {
        self.bells().iter().filter_map(Weak::upgrade).for_each(|bells| pull(&bells));
    }

    fn bells(&self) -> MutexGuard<'_, Vec<Weak<Bells>>> {
        // Every change is whole before the guard goes.
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Seat {
    /// Whose place it is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.backend.life.sessions.fetch_sub(1, Ordering::Relaxed);
        self.backend.life.show();
        if self.backend.max_sessions() != 0 {
            self.backend.life.ring(|bells| bells.seats.notify_one());
        }
    }
}
