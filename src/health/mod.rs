//! Which backends work: probes, their verdicts, and what real traffic adds to them.
//!
//! [`watch`] is one task for each pool. It starts a checker ([`check`]) for each probe of each backend, collects their
//! reports and the pool's [`Event`]s, lets the pure core ([`Judgement`], [`Troubles`]) decide, and tells the backend.

mod account;
mod check;
mod conversation;
mod judgement;
mod memory;
mod outlier;
mod prober;
mod request;
mod streak;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use account::read_password;
pub use judgement::{Depth, Failure, Judgement, Outcome, Verdict};
pub use memory::Memory;
pub use outlier::{Ejection, Suspicion, Troubles};
pub use streak::Streak;

use crate::config::{Probe, ProbeKind};
use crate::pool::{Backend, Backends, Duty, Event, EventKind, Health, Pool, Standing};
use account::ServiceAccount;
use check::{Report, check};
use memory::{Histories, History};
use prober::Prober;

/// Reports that may wait; checkers wait behind them.
const REPORTS: usize = 64;

/// A backend's state has changed, or one that is down has stopped answering altogether.
#[derive(Debug, Clone)]
pub struct Change {
    /// Whose.
    pub backend: Arc<Backend>,
    /// What it was.
    pub before: Health,
    /// What it is now, and why.
    pub verdict: Verdict,
    returns: bool,
}

impl Change {
    /// It was down, and is up for the first time since, perhaps after a while as degraded: sessions may be moved to it
    /// (`rebalance`).
    pub fn is_return(&self) -> bool {
        self.returns
    }

    /// It has stopped answering: what its sessions wait for won't come.
    pub fn is_loss(&self) -> bool {
        self.verdict.health == Health::Down && self.verdict.silent
    }
}

/// Probes the pool's backends, as the pool has them, and judges them by that and by `events`. Runs until it is dropped,
/// and its checkers with it. Goes on where the watcher that has had this `memory` was. `on_change` is called after each
/// [`Change`].
pub async fn watch(
    pool: Arc<Pool>,
    mut events: mpsc::Receiver<Event>,
    memory: Memory,
    on_change: impl Fn(&Change) + Send,
) {
    let (reports, mut reported) = mpsc::channel(REPORTS);
    let mut sets = pool.subscribe();
    sets.mark_changed();
    let mut watcher = Watcher::new(pool, reports, on_change).after(memory);
    loop {
        tokio::select! {
            Ok(()) = sets.changed() => {
                let backends = Arc::clone(&sets.borrow_and_update());
                watcher.follow(&backends);
            }
            Some(report) = reported.recv() => watcher.take_report(&report, Instant::now()),
            Some(event) = events.recv() => watcher.take_event(&event, Instant::now()),
        }
    }
}

/// Asks one backend every question the pool's health settings hold, once: what `check --probe` shows.
///
/// # Errors
/// The first failure, in words.
pub async fn ask_once(pool: &Arc<Pool>, backend: &Arc<Backend>) -> Result<(), String> {
    let health = &pool.settings().health;
    for (depth, probe) in [(Depth::Cheap, Some(&health.cheap)), (Depth::Deep, health.deep.as_ref())] {
        let Some(probe) = probe else { continue };
        let account = Arc::new(ServiceAccount::new(&pool.settings().name, probe, pool.metrics().clone()));
        let mut prober = Prober::new(Arc::clone(pool), Arc::clone(backend), probe.clone(), account, depth);
        match tokio::time::timeout(probe.timeout, prober.probe()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return Err(failure.to_string()),
            Err(_) => return Err(format!("no answer to the {} probe within {:?}", probe.kind.as_str(), probe.timeout)),
        }
    }
    Ok(())
}

struct Watcher<F> {
    pool: Arc<Pool>,
    accounts: Accounts,
    patients: Vec<Patient>,
    checkers: JoinSet<()>,
    reports: mpsc::Sender<Report>,
    on_change: F,
    memory: Memory,
    /// What the watcher before this one knew of the first set of backends.
    histories: Histories,
}

/// The accounts of the cheap and the deep probe.
struct Accounts {
    cheap: Arc<ServiceAccount>,
    deep: Option<Arc<ServiceAccount>>,
}

/// A backend under watch.
struct Patient {
    backend: Arc<Backend>,
    history: History,
    troubles: Troubles,
    reason: String,
    /// Rung for a probe at once.
    hurry: Arc<Notify>,
    checkers: Vec<tokio::task::AbortHandle>,
}

impl Drop for Patient {
    fn drop(&mut self) {
        self.checkers.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl<F: Fn(&Change)> Watcher<F> {
    fn new(pool: Arc<Pool>, reports: mpsc::Sender<Report>, on_change: F) -> Self {
        let health = &pool.settings().health;
        if ![Some(&health.cheap), health.deep.as_ref()].into_iter().flatten().any(has_account) {
            // The one that was refused has been taken out of the configuration: no probe is left to say so.
            pool.metrics().probe_account_refused(false);
        }
        let account = |probe| Arc::new(ServiceAccount::new(&pool.settings().name, probe, pool.metrics().clone()));
        let accounts = Accounts { cheap: account(&health.cheap), deep: health.deep.as_ref().map(account) };
        let (memory, histories) = (Memory::default(), Histories::default());
        Self { pool, accounts, patients: Vec::new(), checkers: JoinSet::new(), reports, on_change, memory, histories }
    }

    /// The same, going on where the watcher that has had this memory was.
    fn after(self, memory: Memory) -> Self {
        Self { histories: memory.recall(), memory, ..self }
    }

    /// Keeps what it has found out for the watcher that comes after it.
    fn remember(&self) {
        let history = |patient: &Patient| (patient.backend.address(), patient.history.clone());
        self.memory.keep(&self.pool.settings().health, self.patients.iter().map(history));
    }

    /// Starts checkers for the backends that are new, ends those of the ones that are gone.
    fn follow(&mut self, backends: &Backends) {
        self.patients.retain(|patient| backends.iter().any(|backend| Arc::ptr_eq(backend, &patient.backend)));
        while self.checkers.try_join_next().is_some() {}
        for backend in backends.iter() {
            if self.find(backend).is_none() {
                let patient = self.admit(Arc::clone(backend));
                self.patients.push(patient);
            }
        }
        self.histories = Histories::default();
        self.remember();
    }

    fn admit(&mut self, backend: Arc<Backend>) -> Patient {
        let settings = self.pool.settings().health.clone();
        let history = self.histories.continue_with(&backend, &settings);
        let hurry = Arc::new(Notify::new());
        let mut checkers = Vec::new();
        let mut start = |probe, account: &Arc<ServiceAccount>, depth, hurry: Arc<Notify>| {
            let prober = Prober::new(Arc::clone(&self.pool), Arc::clone(&backend), probe, Arc::clone(account), depth);
            checkers.push(self.checkers.spawn(check(prober, depth, hurry, self.reports.clone())));
        };
        start(settings.cheap.clone(), &self.accounts.cheap, Depth::Cheap, Arc::clone(&hurry));
        if let (Some(probe), Some(account)) = (&settings.deep, &self.accounts.deep) {
            start(probe.clone(), account, Depth::Deep, Arc::default());
        }
        Patient { history, troubles: Troubles::default(), reason: String::new(), hurry, checkers, backend }
    }

    fn take_report(&mut self, report: &Report, now: Instant) {
        // The last word on a backend that was dropped is none on the one that came back.
        let is_its = |patient: &Patient| Arc::ptr_eq(&patient.backend, &report.backend);
        let Some(index) = self.patients.iter().position(is_its) else { return };
        // Since it was ejected the others may have fallen, an operator may have drained them, DNS may have dropped them.
        let is_needed = !self.patients.iter().any(|patient| patient.backend.is_usable());
        let judgement = &mut self.patients[index].history.judgement;
        judgement.take(report.depth, &report.outcome);
        if is_needed {
            judgement.pardon(now);
        }
        self.pronounce(index, now);
        self.remember();
    }

    fn take_event(&mut self, event: &Event, now: Instant) {
        let Some(index) = self.find(&event.backend) else { return };
        let patient = &mut self.patients[index];
        let suspicion = match (event.backend.standing(), event.kind) {
            (Standing::Down, EventKind::Connected(_)) => patient.troubles.hope(now),
            // It is tried for want of better ones: that it fails is no news.
            (Standing::Down, _) => Suspicion::None,
            (_, kind) => patient.troubles.meet(event.client, kind, now),
        };
        match suspicion {
            Suspicion::None => {}
            Suspicion::Probe => {
                patient.history.judgement.suspect();
                patient.hurry.notify_one();
            }
            Suspicion::Eject => self.eject(index, now),
        }
    }

    fn eject(&mut self, index: usize, now: Instant) {
        let (pool, backend) = (&self.pool.settings().name, &self.patients[index].backend);
        if !self.may_eject(index, now) {
            tracing::warn!(
                pool,
                backend = backend.name(),
                "several clients' connections to it failed or were lost; it stays, too few others would be left"
            );
            self.patients[index].hurry.notify_one();
            return;
        }
        backend.metrics().ejected();
        let length = self.patients[index].history.judgement.eject(now);
        tracing::warn!(pool, backend = self.patients[index].backend.name(), ?length, "ejected");
        self.pronounce(index, now);
        self.remember();
    }

    /// Whether the pool can do without one more.
    fn may_eject(&self, index: usize, now: Instant) -> bool {
        let is_enabled = |patient: &&Patient| patient.backend.duty() == Duty::Enabled;
        let enabled = self.patients.iter().filter(is_enabled).count();
        let ejected = self.patients.iter().filter(|patient| patient.history.judgement.is_ejected(now)).count();
        let this = &self.patients[index].backend;
        let others = self.patients.iter().filter(|patient| !Arc::ptr_eq(&patient.backend, this));
        let others = others.filter(|patient| patient.backend.is_usable()).count();
        outlier::may_eject(enabled, ejected, others)
    }

    /// Tells a backend what is thought of it, if that has changed.
    fn pronounce(&mut self, index: usize, now: Instant) {
        let patient = &mut self.patients[index];
        let verdict = patient.history.judgement.verdict(now);
        if verdict.health == Health::Unknown {
            return;
        }
        let before = patient.backend.health();
        let was_silent = std::mem::replace(&mut patient.history.silent, verdict.silent);
        let falls_silent = verdict.silent && !was_silent;
        if before == verdict.health && patient.reason == verdict.reason && !falls_silent {
            return;
        }
        patient.reason.clone_from(&verdict.reason);
        patient.backend.set_health(verdict.health, verdict.reason.as_str());
        if before == verdict.health {
            // It went down for another reason, for which its sessions could go on waiting.
            if falls_silent {
                let backend = Arc::clone(&patient.backend);
                (self.on_change)(&Change { backend, before, verdict, returns: false });
            }
            return;
        }
        let (pool, backend, reason) = (&self.pool.settings().name, patient.backend.name(), &verdict.reason);
        match verdict.health {
            Health::Down => tracing::warn!(pool, backend, ?before, reason, "backend is down"),
            Health::Degraded => tracing::warn!(pool, backend, ?before, reason, "backend is degraded"),
            Health::Up | Health::Unknown => tracing::info!(pool, backend, ?before, reason, "backend is up"),
        }
        let backend = Arc::clone(&patient.backend);
        let returns = verdict.health == Health::Up && std::mem::take(&mut patient.history.fallen);
        if verdict.health == Health::Down {
            patient.history.fallen = true;
            self.take_fall(index, now);
        }
        (self.on_change)(&Change { backend, before, verdict, returns });
    }

    /// A backend has gone down. One that comes and goes costs its sessions a failover each time: it has to wait longer and
    /// longer, if others can take its place.
    fn take_fall(&mut self, index: usize, now: Instant) {
        if self.patients[index].history.judgement.is_ejected(now) || !self.may_eject(index, now) {
            return;
        }
        let Patient { backend, history, .. } = &mut self.patients[index];
        if let Some(length) = history.judgement.relapse(now) {
            backend.metrics().ejected();
            tracing::warn!(
                pool = self.pool.settings().name,
                backend = backend.name(),
                ?length,
                "ejected: it comes and goes"
            );
        }
    }

    fn find(&self, backend: &Arc<Backend>) -> Option<usize> {
        self.patients.iter().position(|patient| patient.backend.is(backend))
    }
}

/// Whether a probe logs in.
pub fn has_account(probe: &Probe) -> bool {
    matches!(probe.kind, ProbeKind::Bind | ProbeKind::Search) && probe.bind_name.is_some()
}
