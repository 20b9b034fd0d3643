//! Choosing a backend for a session, and connecting to it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::{Backend, Duty, EventKind, Pool, Seat, Standing};
use crate::balance::Draw;
use crate::config::FailoverMode;
use crate::upstream::Upstream;

/// No upstream could be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoBackend {
    /// What there was too little of.
    pub shortage: Shortage,
    /// What was tried and what came of it, for logs.
    pub attempts: Vec<(String, String)>,
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
        Self { shortage: Shortage::NoBackend, attempts }
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

impl Pool {
    /// Opens an upstream for `client`: the best backend first, then the next, each at most once, until the connect
    /// budget is used up. Backends that are down are tried last, drained and disabled ones never. `lost` is the backend
    /// that has just failed this session, tried after its equals.
    ///
    /// Waits up to `queue_timeout` where all usable backends are at their `max_sessions`, which the budget isn't charged for.
    ///
    /// # Errors
    /// [`Shortage`]
    pub async fn connect(&self, client: SocketAddr, lost: Option<Arc<Backend>>) -> Result<Upstream, NoBackend> {
        let mut deadline = Instant::now() + self.settings.connect_budget;
        let mut tried = Vec::new();
        let mut attempts = Vec::new();
        loop {
            // Whoever waits already comes first.
            let choice = if self.queue.is_empty() { self.choose(&tried, client, lost.as_ref()) } else { Choice::Full };
            let seat = match choice {
                Choice::Seat(seat) => seat,
                Choice::Nobody => return Err(NoBackend::unreachable(attempts)),
                Choice::Full => {
                    let queued = Instant::now();
                    let ask = || match self.choose(&tried, client, lost.as_ref()) {
                        Choice::Seat(seat) => Some(Some(seat)),
                        Choice::Nobody => Some(None),
                        Choice::Full => None,
                    };
                    let waited = self.queue.wait(ask).await;
                    deadline += queued.elapsed();
                    match waited {
                        Ok(Some(seat)) => seat,
                        Ok(None) => return Err(NoBackend::unreachable(attempts)),
                        Err(shortage) => return Err(NoBackend { shortage, attempts }),
                    }
                }
            };
            let backend = Arc::clone(seat.backend());
            match self.open(seat, client, deadline).await {
                Ok(upstream) => return Ok(upstream),
                Err(failure) => attempts.push((backend.name().to_owned(), failure)),
            }
            tried.push(backend);
            if self.settings.failover.mode == FailoverMode::None || Instant::now() >= deadline {
                return Err(NoBackend::unreachable(attempts));
            }
        }
    }

    async fn open(&self, seat: Seat, client: SocketAddr, deadline: Instant) -> Result<Upstream, String> {
        let backend = Arc::clone(seat.backend());
        if let Some(stream) = backend.stock.take() {
            self.taken_warm.notify_one();
            return Ok(Upstream::new(stream, seat));
        }
        let started = Instant::now();
        let patience = started + self.settings.connect_timeout;
        let failure = match timeout_at(patience.min(deadline), self.connector.open(&backend, client)).await {
            Ok(Ok(stream)) => {
                backend.report(client.ip(), EventKind::Connected(started.elapsed()));
                return Ok(Upstream::new(stream, seat));
            }
            Ok(Err(error)) => error.to_string(),
            // Others had used up the budget: what was left is no measure of this backend.
            Err(_) if deadline < patience => return Err("the connect budget was used up".to_owned()),
            Err(_) => format!("no connection within {:?}", self.settings.connect_timeout),
        };
        backend.report(client.ip(), EventKind::ConnectFailed);
        Err(failure)
    }

    /// The best seat at a backend that isn't in `tried`.
    fn choose(&self, tried: &[Arc<Backend>], client: SocketAddr, lost: Option<&Arc<Backend>>) -> Choice {
        let backends = self.backends();
        let is_among = |those: &[Arc<Backend>], one: &Arc<Backend>| those.iter().any(|other| Arc::ptr_eq(other, one));
        let enabled = || backends.iter().filter(|backend| backend.duty() == Duty::Enabled);
        let panic = self.settings.health.panic_mode && enabled().all(|backend| backend.standing() != Standing::Good);
        let rank = |backend: &Arc<Backend>| {
            let standing = if panic { Standing::Good } else { backend.standing() };
            (standing, lost.is_some_and(|lost| Arc::ptr_eq(lost, backend)), backend.tier())
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
            let (_, backend) = untried.remove(eligible[self.choose_equal(&equals, client)]);
            match backend.occupy() {
                Some(seat) => return Choice::Seat(seat),
                None => full = true,
            }
        }
        if full { Choice::Full } else { Choice::Nobody }
    }

    /// Which of these, between which only the policy decides. Weights count in sixteenths while one of them starts slowly.
    fn choose_equal(&self, equals: &[&Arc<Backend>], client: SocketAddr) -> usize {
        let now = Instant::now();
        let ramps: Vec<_> = equals.iter().map(|backend| backend.ramp(now)).collect();
        let starting = ramps.iter().any(|ramp| *ramp != ramps[0]);
        let candidates: Vec<_> =
            equals.iter().zip(ramps).map(|(backend, ramp)| backend.candidate(starting.then_some(ramp))).collect();
        self.policy.choose(&candidates, Draw { client: client.ip(), random: fastrand::u64(..) })
    }
}
