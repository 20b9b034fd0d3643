//! The composition root: the only place that wires all the parts together.

mod control;
mod parts;
mod pools;
mod reload;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log;
use crate::admin::{self, Admin};
use crate::config::{Config, Loaded, Shutdown};
use crate::lifecycle::Inherited;
use crate::listener::{Addresses, Admission};
use crate::log::LogHandle;
use crate::metrics::Metrics;
use crate::pool::AddressBook;
use crate::session::{Command, Memory, Registry};
use crate::tls::Served;
pub use control::Vitals;
use parts::Parts;

/// The proxy, running.
pub struct Proxy {
    started: SystemTime,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    admission: Arc<Admission>,
    addresses: Arc<Addresses>,
    memory: Arc<Memory>,
    address_book: Arc<AddressBook>,
    log: LogHandle,
    inherited: Inherited,
    state: Mutex<State>,
    /// Held by a reload from its first look at the files to its last change.
    reloading: tokio::sync::Mutex<()>,
    /// Told after each reload, which may name other files to follow.
    reloaded: tokio::sync::Notify,
    connections: TaskTracker,
    background: TaskTracker,
    /// Cancelled once balancers shall look elsewhere; newcomers are served on.
    leaving: CancellationToken,
    /// Cancelled once nobody new may enter.
    draining: CancellationToken,
    stopping: CancellationToken,
}

/// What a reload changes.
struct State {
    config: Arc<Config>,
    /// The file it came from, as it was read; none for the demo.
    loaded: Option<Loaded>,
    parts: Parts,
    /// Logs that older sessions still write to.
    retired_logs: Vec<access_log::Retired>,
    /// None until the start is done and after the end.
    admin: Option<admin::Running>,
    reloads: reload::Reloads,
}

/// After the time to drain is over, sessions have this long to say so to their clients: the moment that one takes for a client
/// to read, and some.
const LAST_WORDS: Duration = Duration::from_secs(3);

impl Proxy {
    /// Starts everything a configuration file asks for, on the sockets that are open already and on new ones. `tls` is what
    /// its listeners offer.
    ///
    /// # Errors
    /// What couldn't be opened or read, one line each.
    pub async fn start(
        loaded: Loaded,
        tls: Served,
        inherited: Inherited,
        log: LogHandle,
    ) -> Result<Arc<Self>, Vec<String>> {
        Self::start_with(loaded.config.clone(), Some((loaded, tls)), inherited, log).await
    }

    /// Starts a configuration that has no file, and so can't be reloaded.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_without_file(config: Config, log: LogHandle) -> Result<Arc<Self>, Vec<String>> {
        Self::start_with(config, None, Inherited::default(), log).await
    }

    async fn start_with(
        config: Config,
        loaded: Option<(Loaded, Served)>,
        inherited: Inherited,
        log: LogHandle,
    ) -> Result<Arc<Self>, Vec<String>> {
        for address in inherited.unclaimed(&config.listeners) {
            tracing::warn!(%address, "the service manager listens here, but no [[listener]] has this address or its name");
        }
        let metrics = Metrics::new();
        let admission = Admission::new(&config.limits, Arc::clone(&metrics));
        let addresses = Addresses::new(&config.limits);
        let memory = Memory::new(config.limits.buffer_memory, Arc::clone(&metrics));
        let config = Arc::new(config);
        let (loaded, tls) = loaded.unzip();
        let proxy = Arc::new(Self {
            started: SystemTime::now(),
            metrics,
            registry: Arc::default(),
            admission,
            addresses,
            memory,
            address_book: Arc::default(),
            log,
            inherited,
            state: Mutex::new(State {
                config: Arc::clone(&config),
                loaded,
                parts: Parts::default(),
                retired_logs: Vec::new(),
                admin: None,
                reloads: reload::Reloads::default(),
            }),
            reloading: tokio::sync::Mutex::default(),
            reloaded: tokio::sync::Notify::new(),
            connections: TaskTracker::new(),
            background: TaskTracker::new(),
            leaving: CancellationToken::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        });
        let tls = tls.map_or_else(|| proxy.load_tls(&config), Ok);
        let plan = proxy.plan(&config, tls).await.map_err(|rejection| rejection.problems)?;
        let control = Arc::new(control::Controller(Arc::clone(&proxy)));
        let admin = Admin::new(control, Arc::clone(&proxy.metrics));
        proxy.state().admin = Some(admin::Running::new(admin, proxy.background.clone()));
        proxy.carry_out(plan);
        proxy.watch_files();
        proxy.watch_expiry();
        Ok(proxy)
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// How long [`drain`](Self::drain) waits for clients at most, as `[shutdown]` stands now.
    pub fn patience(&self) -> Duration {
        let Shutdown { delay, drain_timeout } = self.state().config.shutdown;
        delay.saturating_add(drain_timeout)
    }

    /// Opens log files again, after they were moved away.
    pub fn reopen_logs(&self) {
        let state = self.state();
        state.parts.access_log.reopen();
        state.retired_logs.iter().for_each(access_log::Retired::reopen);
    }

    /// Turns `/readyz`, waits for balancers to notice (`shutdown.delay`), stops accepting, lets operations finish and tells
    /// every client; `hurry` ends the waiting. Returns when no session is left or the configured time is over.
    pub async fn drain(&self, hurry: impl Future<Output = ()>) {
        let Shutdown { delay, drain_timeout } = self.state().config.shutdown;
        self.leaving.cancel();
        tracing::info!(sessions = self.registry.len(), ?delay, timeout = ?drain_timeout, "draining");
        let in_peace = async {
            tokio::time::sleep(delay).await;
            self.turn_away();
            tokio::time::timeout(drain_timeout, self.connections.wait()).await.is_ok()
        };
        let drained = tokio::select! {
            drained = in_peace => drained,
            () = hurry => false,
        };
        if !drained {
            self.turn_away();
            tracing::warn!(sessions = self.registry.len(), "ending sessions that did not finish");
            self.registry.command_all(Command::Stop);
            let _ = tokio::time::timeout(LAST_WORDS, self.connections.wait()).await;
        }
        self.stopping.cancel();
        let (access_log, retired) = {
            let mut state = self.state();
            (state.parts.access_log.clone(), std::mem::take(&mut state.retired_logs))
        };
        // It blocks until what is queued is written.
        let finish = move || {
            retired.iter().for_each(access_log::Retired::finish);
            access_log.finish();
        };
        let _ = tokio::task::spawn_blocking(finish).await;
        self.state().admin = None;
        self.background.close();
        let _ = tokio::time::timeout(LAST_WORDS, self.background.wait()).await;
    }

    /// Closes the listeners, and ends each session once it is quiet.
    fn turn_away(&self) {
        self.draining.cancel();
        self.connections.close();
        self.registry.command_all(Command::Drain);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock can't leave a half-made change: changes are made whole and then swapped in.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
