//! How the session is configured, from four octets.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use ldaps_proxy::access_log::AccessLog;
use ldaps_proxy::config::{self, Balance, FailoverMode, Limits, SaslLayer};
use ldaps_proxy::metrics::Metrics;
use ldaps_proxy::policy::Policy;
use ldaps_proxy::pool::{CurrentPool, Endpoint, Pool};
use ldaps_proxy::referral;
use ldaps_proxy::session::{Memory, Outage, ReplayGuard, Settings, StartTls};
use ldaps_proxy::throttle::LoginThrottle;
use ldaps_proxy::upstream::Connector;
use tokio::sync::mpsc;

/// A session's settings, and the pipes around it.
pub struct Setup {
    pub settings: Arc<Settings>,
    pub start_tls: StartTls,
    /// Octets that a pipe holds.
    pub client_pipe: usize,
    pub backend_pipe: usize,
    /// The client is gone from one moment to the next, with operations in flight.
    pub vanishes: bool,
}

impl Setup {
    pub fn new([first, second, client_pipe, backend_pipe]: [u8; 4]) -> Self {
        let has = |octet: u8, bit: u8| octet & 1 << bit != 0;
        let pipe = |octet: u8| 1 << (4 + octet % 13);

        let mut pool = config::Pool::new("p", Vec::new());
        pool.balance = Balance::FirstAvailable;
        pool.failover.replay_bind = !has(first, 3);
        if has(first, 2) {
            pool.failover.mode = FailoverMode::None;
        }
        if has(second, 5) {
            pool.failover.write_affinity = Duration::ZERO;
        }

        let mut limits = Limits::default();
        limits.operation_timeout = has(first, 5).then_some(Duration::from_secs(5));
        if has(second, 3) {
            (limits.operations_in_flight, limits.filter_depth) = (3, 4);
            (limits.request_size, limits.request_size_anonymous, limits.search_size) = (2000, 500, 200);
        }

        let mut policy = config::Policy::default();
        policy.allow_cleartext_bind = has(second, 6);
        policy.allow_unauthenticated = has(second, 7);
        policy.read_only = has(second, 2);
        if has(first, 4) {
            policy.sasl_layer = SaslLayer::Refuse;
        }

        let failures = has(first, 6).then_some(2);
        let throttle = config::LoginThrottle { failures_per_name: failures, ..config::LoginThrottle::default() };
        let metrics = metrics();
        let settings = Settings {
            pool: CurrentPool::new(Arc::new(self::pool(pool, &metrics))),
            replay_guard: ReplayGuard::new(),
            limits,
            policy: Policy::new(&policy).expect("it names no DN"),
            referrals: match second & 3 {
                1 => Some(referral::Mode::Rewrite { public_name: "ldap.example.com".into() }),
                2 => Some(referral::Mode::Drop),
                _ => None,
            },
            memory: Memory::new(if has(second, 4) { 100_000 } else { 1 << 30 }, Arc::clone(&metrics)),
            throttle: Arc::new(LoginThrottle::new(&throttle)),
            access_log: AccessLog::off(),
            listener: metrics.listener("l"),
            metrics,
            no_backend: Outage::default(),
        };
        Self {
            settings: Arc::new(settings),
            start_tls: match first & 3 {
                0 => StartTls::Offered,
                1 => StartTls::Unsupported,
                _ => StartTls::Established,
            },
            client_pipe: pipe(client_pipe),
            backend_pipe: pipe(backend_pipe),
            vanishes: has(first, 7),
        }
    }
}

/// Two backends, always in the same order.
fn pool(settings: config::Pool, metrics: &Arc<Metrics>) -> Pool {
    let connector = Connector::in_memory(super::world::dial);
    let pool = Pool::new(Arc::new(settings), connector, Arc::clone(metrics), mpsc::channel(1).0);
    pool.admit(&[1, 2].map(|last| Endpoint {
        address: ([127, 0, 0, last], 389).into(),
        host: format!("127.0.0.{last}"),
        weight: 1,
        tier: 0,
        max_sessions: 0,
    }));
    pool
}

/// The same for all inputs: they only count.
fn metrics() -> Arc<Metrics> {
    thread_local! {
        static METRICS: OnceCell<Arc<Metrics>> = const { OnceCell::new() };
    }
    METRICS.with(|metrics| Arc::clone(metrics.get_or_init(Metrics::new)))
}
