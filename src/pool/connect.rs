//! Choosing a backend for a session, and connecting to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Backend, Duty, EventKind, Pool, Seat, Standing, patiently};
use crate::balance::Draw;
use crate::config::FailoverMode;
use crate::failure::FailoverKind;
use crate::upstream::{Upstream, is_our_own};

/// No upstream could be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoBackend {
    /// What there was too little of.
    pub shortage: Shortage,
    /// What was tried and what came of it, for logs.
    pub attempts: Vec<(String, String)>,
    /// How long a seat was waited for (`max_sessions`).
    pub queued: Duration,
}

/// The backend a session comes from, which is tried after its equals.
#[derive(Debug, Clone)]
pub enum Left {
    /// It has failed the session, or gives its sessions up.
    Lost(Arc<Backend>),
    /// It has more than its share since another has returned (`rebalance`), whose slow start is for newcomers.
    Outweighed(Arc<Backend>),
}

impl Left {
    fn is(&self, other: &Backend) -> bool {
        let (Self::Lost(backend) | Self::Outweighed(backend)) = self;
        backend.is(other)
    }
}

/// Why no upstream could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// No backend could be reached: the answer is `unavailable` (52).
    NoBackend,
    /// All usable backends are at their `max_sessions`, and as many requests as may are waiting: `busy` (51).
    QueueFull,
    /// No seat came free within `queue_timeout`: `busy` (51).
    QueueTimeout,
}

impl NoBackend {
    /// None could be reached.
    pub fn unreachable(attempts: Vec<(String, String)>) -> Self {
        Self { shortage: Shortage::NoBackend, attempts, queued: Duration::ZERO }
    }
}

/// What there is for a session.
enum Choice {
    Seat(Seat),
    /// Those that would serve have no seat left.
    Full,
    /// Every backend has been tried, drained or disabled.
    Nobody,
}

/// The time for all attempts of one request.
struct Budget {
    deadline: Instant,
    /// What it wasn't charged for.
    queued: Duration,
}

impl Budget {
    /// The time since `began` was spent in a queue.
    fn excuse(&mut self, began: Instant) {
        let waited = began.elapsed();
        self.deadline += waited;
        self.queued += waited;
    }
}

/// Why one backend could not be connected to.
struct OpenFailure {
    reason: String,
    /// Whether nothing came back at all, rather than a refusal.
    unanswered: bool,
}

impl Pool {
    /// Opens an upstream for `client`: the best backend first, then the next, until the connect budget is used up. Each is
    /// tried once; one that is up but left a connect unanswered is tried again when no other is left. Backends that are
    /// down are tried last, drained and disabled ones never.
    ///
    /// Waits up to `queue_timeout` where all usable backends are at their `max_sessions`, and for a turn to connect, longer
    /// than the budget where no better backend is left than one that is only slow. The budget isn't charged for either.
    ///
    /// # Errors
    /// [`Shortage`]
    pub async fn connect(&self, client: SocketAddr, left: Option<Left>) -> Result<Upstream, NoBackend> {
        let mut budget = Budget { deadline: Instant::now() + self.settings.connect_budget, queued: Duration::ZERO };
        match self.seek(client, left, &mut budget).await {
            Ok(mut upstream) => {
                upstream.queued = budget.queued;
                Ok(upstream)
            }
            Err(error) => Err(NoBackend { queued: budget.queued, ..error }),
        }
    }

    /// [`Self::connect`] within this budget.
    async fn seek(&self, client: SocketAddr, left: Option<Left>, budget: &mut Budget) -> Result<Upstream, NoBackend> {
        let mut tried = Vec::new();
        let mut overrun: Vec<Arc<Backend>> = Vec::new();
        let mut attempts = Vec::new();
        loop {
            // Whoever waits already comes first.
            let choice = if self.queue.is_empty() { self.choose(&tried, client, left.as_ref()) } else { Choice::Full };
            let seat = match choice {
                Choice::Seat(seat) => seat,
                Choice::Nobody if !overrun.is_empty() => {
                    tried.retain(|backend| !is_among(&overrun, backend));
                    overrun.clear();
                    continue;
                }
                Choice::Nobody => return Err(NoBackend::unreachable(attempts)),
                Choice::Full => {
                    let began = Instant::now();
                    let ask = || match self.choose(&tried, client, left.as_ref()) {
                        Choice::Seat(seat) => Some(Some(seat)),
                        Choice::Nobody => Some(None),
                        Choice::Full => None,
                    };
                    let waited = self.queue.wait(ask).await;
                    budget.excuse(began);
                    match waited {
                        Ok(Some(seat)) => seat,
                        Ok(None) => return Err(NoBackend::unreachable(attempts)),
                        Err(shortage) => return Err(NoBackend { shortage, ..NoBackend::unreachable(attempts) }),
                    }
                }
            };
            if !attempts.is_empty() {
                self.metrics.failovers.count(FailoverKind::Connect);
            }
            let backend = Arc::clone(seat.backend());
            let alone = !self
                .backends()
                .iter()
                .any(|other| other.is_usable() && !Arc::ptr_eq(other, &backend) && !is_among(&tried, other));
            match self.open(seat, client, alone, budget).await {
                Ok(upstream) => return Ok(upstream),
                Err(failure) => {
                    // All sessions of another may be coming to it at once, and Samba's accept queue holds ten.
                    if failure.unanswered && backend.standing() == Standing::Good {
                        overrun.push(Arc::clone(&backend));
                    }
                    attempts.push((backend.name().to_owned(), failure.reason));
                }
            }
            tried.push(backend);
            if self.settings.failover.mode == FailoverMode::None || Instant::now() >= budget.deadline {
                return Err(NoBackend::unreachable(attempts));
            }
        }
    }

    /// Connects to one backend, `alone` where there is no other to turn to.
    async fn open(
        &self,
        seat: Seat,
        client: SocketAddr,
        alone: bool,
        budget: &mut Budget,
    ) -> Result<Upstream, OpenFailure> {
        let backend = Arc::clone(seat.backend());
        if let Some(stream) = backend.stock.take() {
            self.bells.stock.notify_one();
            return Ok(Upstream::new(stream, seat, None));
        }
        let began = Instant::now();
        let hope = || alone && self.vouches_for(&backend);
        let patience = (began + self.settings.connect_timeout).min(budget.deadline);
        let Some(turn) = patiently(patience, hope, backend.openings.turn()).await else {
            // Those before it may be waiting for nothing: that is theirs to report.
            let reason = "as many connections to it as may were being opened already".to_owned();
            return Err(OpenFailure { reason, unanswered: true });
        };
        budget.excuse(began);
        let (started, deadline) = (Instant::now(), budget.deadline);
        let patience = started + self.settings.connect_timeout;
        let (reason, unanswered) = match timeout_at(patience.min(deadline), self.connector.open(&backend, client)).await
        {
            Ok(Ok(stream)) => {
                backend.report(client.ip(), EventKind::Connected(started.elapsed()));
                return Ok(Upstream::new(stream, seat, Some(turn.connected())));
            }
            Ok(Err(error)) if is_our_own(&error) => {
                return Err(OpenFailure { reason: error.to_string(), unanswered: false });
            }
            Ok(Err(error)) => (error.to_string(), false),
            // Others had used up the budget: what was left is no measure of this backend.
            Err(_) if deadline < patience => {
                return Err(OpenFailure { reason: "the connect budget was used up".to_owned(), unanswered: true });
            }
            Err(_) => (format!("no connection within {:?}", self.settings.connect_timeout), true),
        };
        backend.report(client.ip(), EventKind::ConnectFailed);
        Err(OpenFailure { reason, unanswered })
    }

    /// The best seat at a backend that isn't in `tried`.
    fn choose(&self, tried: &[Arc<Backend>], client: SocketAddr, left: Option<&Left>) -> Choice {
        let backends = self.backends();
        let enabled = || backends.iter().filter(|backend| backend.duty() == Duty::Enabled);
        let panic = self.settings.health.panic_mode && enabled().all(|backend| backend.standing() != Standing::Good);
        let rank = |backend: &Arc<Backend>| {
            let standing = if panic { Standing::Good } else { backend.standing() };
            (standing, left.is_some_and(|left| left.is(backend)), backend.tier())
        };
        let mut untried: Vec<_> =
            enabled().filter(|backend| !is_among(tried, backend)).map(|backend| (rank(backend), backend)).collect();
        let mut full = false;
        while let Some(best) = untried.iter().map(|(rank, _)| *rank).min() {
            if full && best.0 == Standing::Down {
                break;
            }
            let eligible: Vec<_> = (0..untried.len()).filter(|&index| untried[index].0 == best).collect();
            let equals: Vec<_> = eligible.iter().map(|&index| untried[index].1).collect();
            let (_, backend) = untried.remove(eligible[self.choose_equal(&equals, client, left)]);
            match backend.occupy() {
                Some(seat) => return Choice::Seat(seat),
                None => full = true,
            }
        }
        if full { Choice::Full } else { Choice::Nobody }
    }

    /// Which of these, between which only the policy decides. Weights count in sixteenths while one of them starts slowly.
    fn choose_equal(&self, equals: &[&Arc<Backend>], client: SocketAddr, left: Option<&Left>) -> usize {
        let now = Instant::now();
        let ramps: Vec<_> = equals.iter().map(|backend| backend.ramp(now)).collect();
        let is_moved = matches!(left, Some(Left::Outweighed(_)));
        let starting = !is_moved && ramps.iter().any(|ramp| *ramp != ramps[0]);
        let candidates: Vec<_> =
            equals.iter().zip(ramps).map(|(backend, ramp)| backend.candidate(starting.then_some(ramp))).collect();
        self.policy.choose(&candidates, Draw { client: client.ip(), random: fastrand::u64(..) })
    }
}

fn is_among(those: &[Arc<Backend>], one: &Arc<Backend>) -> bool {
    those.iter().any(|other| Arc::ptr_eq(other, one))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CLIENT, endpoint, pool, settings};
    use super::super::{Endpoint, Health};
    use super::*;

    /// Chosen addresses' last octets in the order of trying; `F` where the rest is full.
    fn order(pool: &Pool, left: Option<&Left>) -> String {
        let mut tried = Vec::new();
        let mut order = String::new();
        loop {
            match pool.choose(&tried, CLIENT, left) {
                Choice::Seat(seat) => {
                    let octet = seat.backend().name().split(['.', ':']).nth(3).unwrap().to_owned();
                    order.push_str(&octet);
                    tried.push(Arc::clone(seat.backend()));
                }
                Choice::Full => return order + "F",
                Choice::Nobody => return order,
            }
        }
    }

    /// Four backends: 1 and 2 in tier 0, 3 and 4 in tier 1; `first-available` takes equals in order.
    fn four(panic_mode: bool) -> (Arc<Pool>, Vec<Arc<Backend>>) {
        let mut settings = settings();
        settings.balance = crate::config::Balance::FirstAvailable;
        settings.health.panic_mode = panic_mode;
        let at = |last: u8| Endpoint {
            tier: u32::from((last - 1) / 2),
            max_sessions: 1,
            ..endpoint(([10, 0, 0, last], 389).into())
        };
        let (pool, _) = pool(settings, &[at(1), at(2), at(3), at(4)]);
        let backends = pool.backends().to_vec();
        (pool, backends)
    }

    #[test]
    fn the_order_of_trying() {
        use Health::{Degraded, Down, Unknown, Up};
        for (panic_mode, healths, full, lost, expected) in [
            (false, [Unknown; 4], vec![], None, "1234"),
            (false, [Up; 4], vec![], Some(0), "2341"),
            (false, [Degraded, Up, Up, Down], vec![], None, "2314"),
            (false, [Down, Down, Up, Up], vec![], None, "3412"),
            (false, [Down, Degraded, Up, Up], vec![], Some(2), "4321"),
            // Full ones are passed over, but nobody turns to those that are down for that.
            (false, [Up; 4], vec![0], None, "234F"),
            (false, [Up, Down, Up, Up], vec![0, 2, 3], None, "F"),
            (false, [Down; 4], vec![1], None, "1F"),
            // Panic mode: with none healthy, all are alike.
            (false, [Down, Down, Degraded, Down], vec![], None, "3124"),
            (true, [Down, Down, Degraded, Down], vec![], None, "1234"),
            (true, [Down, Down, Up, Down], vec![], None, "3124"),
        ] {
            let (pool, backends) = four(panic_mode);
            for (backend, health) in backends.iter().zip(healths) {
                backend.set_health(health, "");
            }
            let _seats: Vec<_> = full.iter().map(|&index: &usize| backends[index].occupy().unwrap()).collect();
            let left = lost.map(|index: usize| Left::Lost(Arc::clone(&backends[index])));
            assert_eq!(order(&pool, left.as_ref()), expected, "{panic_mode} {healths:?} {full:?} {lost:?}");
        }
    }

    #[test]
    fn drained_and_disabled_ones_are_never_tried() {
        let (pool, backends) = four(false);
        backends[0].set_duty(Duty::Draining);
        backends[2].set_duty(Duty::Disabled);
        assert_eq!(order(&pool, None), "24");
    }

    #[test]
    fn one_that_dns_drops_and_names_again_is_still_the_one_that_failed() {
        let (pool, backends) = four(false);
        let endpoint = |last| Endpoint { max_sessions: 1, ..endpoint(([10, 0, 0, last], 389).into()) };
        pool.admit(&[endpoint(2)]);
        pool.admit(&[endpoint(1), endpoint(2)]);
        pool.backends()[0].set_health(Health::Up, "answers");
        assert_eq!(order(&pool, Some(&Left::Lost(Arc::clone(&backends[0])))), "21");
    }

    /// A backend that was down gets its sessions by and by, not all new ones at once for being empty.
    #[tokio::test(start_paused = true)]
    async fn a_returning_backend_starts_slowly() {
        let (pool, _events) = pool(settings(), &[1, 2].map(|last| endpoint(([10, 0, 0, last], 389).into())));
        let backends = pool.backends();
        backends[1].set_health(Health::Down, "refused");
        let seats: Vec<_> = (0..160).map(|_| backends[0].occupy().unwrap()).collect();
        backends[1].set_health(Health::Up, "answers");
        let mut taken = Vec::new();
        let mut fill = |count: usize| {
            for _ in 0..count {
                let Choice::Seat(seat) = pool.choose(&[], CLIENT, None) else { panic!("there are seats") };
                taken.push(seat);
            }
            backends[1].sessions()
        };
        // A sixteenth of its weight, so a sixteenth of the other's sessions: then both share.
        assert!((10..=13).contains(&fill(20)), "{}", backends[1].sessions());
        tokio::time::advance(std::time::Duration::from_secs(15)).await;
        assert!((80..100).contains(&fill(100)), "{}", backends[1].sessions());
        tokio::time::advance(std::time::Duration::from_secs(15)).await;
        fill(100);
        let (first, second) = (backends[0].sessions(), backends[1].sessions());
        assert!(first.abs_diff(second) <= 1, "{first} {second}");
        drop(seats);
    }

    /// A regression test: the slow start sent nearly all sessions that had left two backends for a third to the other of the
    /// two.
    #[tokio::test(start_paused = true)]
    async fn those_that_make_room_for_a_returning_backend_go_to_it() {
        let (pool, _events) = pool(settings(), &[1, 2, 3].map(|last| endpoint(([10, 0, 0, last], 389).into())));
        let backends = pool.backends();
        backends[2].set_health(Health::Down, "refused");
        let mut seats = [0, 1].map(|index| (0..60).map(|_| backends[index].occupy().unwrap()).collect::<Vec<_>>());
        backends[2].set_health(Health::Up, "answers");
        let mut moved = Vec::new();
        for (from, excess) in pool.excess(&backends[2]) {
            let seats = seats.iter_mut().find(|seats| seats[0].backend().is(&from)).unwrap();
            for _ in 0..excess {
                seats.pop();
                let left = Left::Outweighed(Arc::clone(&from));
                let Choice::Seat(seat) = pool.choose(&[], CLIENT, Some(&left)) else { panic!("there are seats") };
                moved.push(seat);
            }
        }
        assert_eq!(backends.iter().map(|backend| backend.sessions()).collect::<Vec<_>>(), [40; 3]);
    }
}
