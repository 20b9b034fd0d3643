//! The pools a configuration names: what can fail is done when they are planned, the rest when the plan is carried out, since
//! what a pool counts is seen as soon as there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Proxy;
use crate::config::{self, Config};
use crate::discovery::{self, Discovery};
use crate::failure::Trouble;
use crate::health;
use crate::pool::{AddressBook, CurrentPool, Health, Pool, keep_warm};
use crate::session::{Command, ReplayGuard};
use crate::upstream::Connector;

/// Reports of real traffic that may wait for the health side.
const EVENTS: usize = 1024;

#[derive(Clone)]
pub(super) struct RunningPool {
    pub pool: Arc<Pool>,
    /// The same for its sessions, through all reloads.
    pub current: CurrentPool,
    pub replay_guard: Arc<ReplayGuard>,
    names: discovery::Memory,
    health: health::Memory,
    stop: CancellationToken,
}

/// The pools of a plan, by name.
pub(super) type PlannedPools = BTreeMap<String, PlannedPool>;

pub(super) enum PlannedPool {
    /// Goes on as it is.
    Running(RunningPool),
    /// Takes the place of the running one of its name, if there is one.
    Fresh(Box<FreshPool>),
}

/// What a pool is made of.
pub(super) struct FreshPool {
    settings: Arc<config::Pool>,
    connector: Connector,
    discovery: Discovery,
    /// The `ca_file` whose contents aren't those that the pool it takes the place of has read.
    replaced_ca_file: Option<PathBuf>,
}

impl PlannedPool {
    fn addresses(&self) -> BTreeSet<SocketAddr> {
        match self {
            Self::Running(running) => running.pool.backends().iter().map(|backend| backend.address()).collect(),
            Self::Fresh(fresh) => fresh.discovery.endpoints().iter().map(|endpoint| endpoint.address).collect(),
        }
    }

    /// A line for the operator, if `ca_file` is the same with other contents.
    pub fn replaced_ca_file(&self) -> Option<String> {
        let Self::Fresh(fresh) = self else { return None };
        let file = fresh.replaced_ca_file.as_ref()?;
        Some(format!("pools.{}.ca_file {file:?}: replaced", fresh.settings.name))
    }
}

impl FreshPool {
    /// One that knows what DNS has said to `before`.
    fn new(settings: &Arc<config::Pool>, before: Option<&RunningPool>) -> Result<Self, String> {
        let connector = Connector::new(settings).map_err(|finding| format!("pools.{}.{finding}", settings.name))?;
        let mut discovery = Discovery::new(settings);
        if let Some(before) = before {
            discovery.succeed(&before.names);
        }
        let has_same_file = |before: &&RunningPool| before.pool.settings().ca_file == settings.ca_file;
        let other_contents = |before: &RunningPool| !connector.trusts_as(before.pool.connector());
        let is_replaced = before.filter(has_same_file).is_some_and(other_contents);
        let replaced_ca_file = settings.ca_file.clone().filter(|_| is_replaced);
        Ok(Self { settings: Arc::clone(settings), connector, discovery, replaced_ca_file })
    }
}

impl Proxy {
    pub(super) async fn plan_pools(&self, config: &Config, problems: &mut Vec<String>) -> PlannedPools {
        let running = self.state().parts.pools.clone();
        let (mut planned, mut fresh_pools) = (BTreeMap::new(), Vec::new());
        for (name, settings) in &config.pools {
            let known = running.get(name);
            let unchanged = known.filter(|known| known.pool.settings() == settings);
            // The system's roots, which take long to read, are no file that the configuration names.
            if let Some(unchanged) = unchanged.filter(|_| settings.ca_file.is_none()) {
                planned.insert(name.clone(), PlannedPool::Running(unchanged.clone()));
                continue;
            }
            match FreshPool::new(settings, known) {
                Ok(fresh) => {
                    if let Some(unchanged) = unchanged.filter(|_| fresh.replaced_ca_file.is_none()) {
                        planned.insert(name.clone(), PlannedPool::Running(unchanged.clone()));
                        continue;
                    }
                    fresh_pools.push(fresh);
                }
                Err(problem) => problems.push(problem),
            }
        }
        for fresh in resolve(fresh_pools).await {
            planned.insert(fresh.settings.name.clone(), PlannedPool::Fresh(Box::new(fresh)));
        }
        renew_misnamed(&mut planned, problems);
        planned
    }

    /// Makes the planned pools of those that run and of new ones, which take over what is known of their backends now. The
    /// tasks of pools that are no more end, and the series of what isn't there any more are forgotten.
    pub(super) fn carry_out_pools(
        &self,
        planned: PlannedPools,
        before: &BTreeMap<String, RunningPool>,
    ) -> BTreeMap<String, RunningPool> {
        self.address_book.replace(addresses(&planned));
        // First, since a backend may have gone from one pool to another, and some of its series know no pool.
        for (name, running) in before {
            self.forget_what_leaves(&running.pool, planned.get(name));
        }
        let mut pools = BTreeMap::new();
        for (name, planned) in planned {
            let pool = match planned {
                PlannedPool::Running(pool) => pool,
                PlannedPool::Fresh(fresh) => self.start_pool(*fresh, before.get(&name)),
            };
            pools.insert(name, pool);
        }
        for (name, running) in before {
            if !pools.get(name).is_some_and(|now: &RunningPool| Arc::ptr_eq(&now.pool, &running.pool)) {
                running.stop.cancel();
                running.pool.retire();
            }
        }
        pools
    }

    fn forget_what_leaves(&self, pool: &Pool, planned: Option<&PlannedPool>) {
        let name = &pool.settings().name;
        let stay = match planned {
            Some(PlannedPool::Running(_)) => return,
            Some(fresh) => fresh.addresses(),
            None => {
                self.metrics().forget_pool(name);
                BTreeSet::new()
            }
        };
        for backend in pool.backends().iter() {
            let address = backend.address();
            if !stay.contains(&address) || self.address_book.name(name, address) != backend.name() {
                self.metrics().forget_backend(name, backend.name());
            }
        }
    }

    /// Makes a pool, and starts what keeps its backends known and judged.
    fn start_pool(&self, fresh: FreshPool, before: Option<&RunningPool>) -> RunningPool {
        let FreshPool { settings, mut connector, discovery, replaced_ca_file: _ } = fresh;
        if let Some(before) = before {
            connector.succeed(before.pool.connector());
        }
        let (reports, events) = mpsc::channel(EVENTS);
        let pool =
            Pool::new(settings, connector, Arc::clone(self.metrics()), reports).among(Arc::clone(&self.address_book));
        match before {
            Some(before) => pool.succeed(&before.pool, &discovery.endpoints()),
            None => pool.admit(&discovery.endpoints()),
        };
        let pool = Arc::new(pool);
        let current = match before {
            Some(before) => {
                before.current.replace(Arc::clone(&pool));
                before.current.clone()
            }
            None => CurrentPool::new(Arc::clone(&pool)),
        };
        let running = RunningPool {
            pool,
            current,
            replay_guard: before.map_or_else(ReplayGuard::new, |before| Arc::clone(&before.replay_guard)),
            names: discovery.memory(),
            health: before.map(|before| before.health.clone()).unwrap_or_default(),
            stop: self.stopping.child_token(),
        };
        let pool = Arc::clone(&running.pool);
        self.keep_up(&running, health::watch(Arc::clone(&pool), events, running.health.clone(), self.on_change(&pool)));
        self.keep_up(&running, keep_warm(Arc::clone(&pool)));
        self.keep_up(&running, discovery.run(pool));
        running
    }

    /// What a change of a backend's state means for the sessions.
    fn on_change(&self, pool: &Arc<Pool>) -> impl Fn(&health::Change) + Send + use<> {
        let registry = Arc::clone(&self.registry);
        let failures = Arc::clone(&self.metrics().failures);
        let pool = Arc::clone(pool);
        move |change: &health::Change| {
            if let Some(trouble) = trouble(change.verdict.health).filter(|_| change.before != change.verdict.health) {
                failures.record(SystemTime::now(), trouble, change.backend.name(), &change.verdict.reason);
            }
            if change.is_loss() {
                registry.command_on(&change.backend, Command::Leave);
            } else if change.is_return() && pool.settings().rebalance {
                for (other, excess) in pool.excess(&change.backend) {
                    registry.command_some(&other, excess, Command::Rebalance);
                }
            }
        }
    }

    /// Runs a pool's task until the pool or the proxy ends.
    fn keep_up(&self, running: &RunningPool, task: impl Future<Output = ()> + Send + 'static) {
        let stop = running.stop.clone();
        self.background.spawn(async move { stop.run_until_cancelled(task).await });
    }
}

/// Asks for the names of all these pools at once: where name servers are silent each takes seconds, and nobody is served yet.
async fn resolve(pools: Vec<FreshPool>) -> Vec<FreshPool> {
    // Given up with this future.
    let mut asking = JoinSet::new();
    for mut fresh in pools {
        asking.spawn(async move {
            let failures = fresh.discovery.refresh().await;
            (fresh, failures)
        });
    }
    let mut resolved = asking.join_all().await;
    resolved.sort_by(|(one, _), (other, _)| one.settings.name.cmp(&other.settings.name));
    let log = |(fresh, failures): (FreshPool, Vec<discovery::LookupFailure>)| {
        for failure in failures {
            let (pool, name, reason) = (&fresh.settings.name, &failure.name, &failure.reason);
            // It is asked for again; until then the other backends serve.
            tracing::error!(%pool, %name, %reason, "cannot resolve");
        }
        fresh
    };
    resolved.into_iter().map(log).collect()
}

fn addresses(planned: &PlannedPools) -> BTreeMap<String, BTreeSet<SocketAddr>> {
    planned.iter().map(|(name, pool)| (name.clone(), pool.addresses())).collect()
}

/// Plans anew the pools that could go on, but whose backends are called otherwise once other pools have come or gone.
fn renew_misnamed(planned: &mut PlannedPools, problems: &mut Vec<String>) {
    let book = AddressBook::of(addresses(planned));
    for (name, pool) in planned.iter_mut() {
        let PlannedPool::Running(running) = &*pool else { continue };
        if running.pool.backends().iter().any(|backend| backend.name() != book.name(name, backend.address())) {
            match FreshPool::new(running.pool.settings(), Some(running)) {
                Ok(fresh) => *pool = PlannedPool::Fresh(Box::new(fresh)),
                Err(problem) => problems.push(problem),
            }
        }
    }
}

/// What a backend's new state is among the recent failures.
fn trouble(health: Health) -> Option<Trouble> {
    match health {
        Health::Down => Some(Trouble::BackendDown),
        Health::Degraded => Some(Trouble::BackendDegraded),
        Health::Up | Health::Unknown => None,
    }
}

#[cfg(test)]
mod tests;
