//! The parts a configuration names: made all at once, so that a file with an error changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::Proxy;
use super::pools::{PlannedPool, PlannedPools, RunningPool};
use super::reload::Rejection;
use crate::access_log::AccessLog;
use crate::admin;
use crate::config::{self, Config, ListenerProtocol};
use crate::failure::Trouble;
use crate::listener::{self, Door, Keys};
use crate::policy::Policy;
use crate::referral;
use crate::session;
use crate::throttle::LoginThrottle;
use crate::tls::{CertificateInfo, Finding, Served, ServerTls, Snapshot, UnixTime};
use crate::trust::{Reload, TrustSource};

/// What is running.
pub(super) struct Parts {
    pub tls: Served,
    pub pools: BTreeMap<String, RunningPool>,
    pub listeners: BTreeMap<String, RunningListener>,
    pub throttle: Arc<LoginThrottle>,
    pub access_log: AccessLog,
    /// The lists of trusted networks before they were read.
    lists: Snapshot,
}

pub(super) struct RunningListener {
    pub settings: config::Listener,
    pub door: Arc<Door>,
    pub address: SocketAddr,
    /// What it was called when some of its sessions began.
    former_names: Vec<String>,
    /// For as long as the task accepts: nothing else may keep the port open.
    socket: Weak<TcpListener>,
    /// The task that accepts.
    pub accepting: AbortHandle,
    pub stop: CancellationToken,
}

/// Parts that are ready to take over.
pub(super) struct Plan {
    pub config: Arc<Config>,
    tls: Served,
    pools: PlannedPools,
    listeners: Vec<PlannedListener>,
    /// A throttle and a log that replace those in use; none where their settings stay.
    throttle: Option<Arc<LoginThrottle>>,
    access_log: Option<AccessLog>,
    admin: PlannedAdmin,
    lists: Snapshot,
}

impl Plan {
    /// What it puts in the place of each `ca_file` that goes on under its name: a line each.
    pub fn replaced_ca_files(&self) -> Vec<String> {
        self.pools.values().filter_map(PlannedPool::replaced_ca_file).collect()
    }
}

struct PlannedAdmin {
    places: Vec<admin::Place>,
    /// For those that are new.
    fresh: Vec<admin::Endpoint>,
}

struct PlannedListener {
    settings: config::Listener,
    policy: Policy,
    tls: Option<Arc<ServerTls>>,
    origin: Origin,
}

/// Where a planned listener's socket comes from.
enum Origin {
    /// Its name and address stay.
    Running,
    /// It is that of the listener which has had this name, at the same address.
    Renamed(String, Arc<TcpListener>),
    /// It is new, or moves to another address.
    Fresh(TcpListener, TrustSource),
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            tls: Served::default(),
            pools: BTreeMap::new(),
            listeners: BTreeMap::new(),
            throttle: Arc::new(LoginThrottle::new(&config::LoginThrottle::default())),
            access_log: AccessLog::off(),
            lists: Snapshot::default(),
        }
    }
}

impl Parts {
    /// The listener that a session came in by, told by its name at that time.
    pub fn listener_of(&self, session: &session::Handle) -> Option<&RunningListener> {
        let was_called =
            |listener: &&RunningListener| listener.former_names.iter().any(|name| **name == *session.listener);
        self.listeners.get(&*session.listener).or_else(|| self.listeners.values().find(was_called))
    }

    /// The files that are followed while they are in use, as they were before they were read.
    pub fn files(&self) -> Snapshot {
        [self.tls.files(), self.lists.clone()].into_iter().collect()
    }
}

impl Proxy {
    /// Reads again what serves TLS; warnings are logged.
    ///
    /// # Errors
    /// Everything that is wrong, one line each.
    pub(super) fn load_tls(&self, config: &Config) -> Result<Served, Vec<String>> {
        let before = self.state().parts.tls.clone();
        let mut problems = Vec::new();
        let served = Served::load(config, &before, UnixTime::now(), |_, finding| {
            if finding.is_error() {
                problems.push(finding.to_string());
            } else {
                tracing::warn!("{finding}");
            }
        });
        if problems.is_empty() { Ok(served) } else { Err(problems) }
    }

    /// Reads and opens everything else that `config` needs and isn't there already. Changes nothing that is running.
    ///
    /// # Errors
    /// Everything that is wrong, one line each.
    pub(super) async fn plan(&self, config: &Arc<Config>, tls: Result<Served, Vec<String>>) -> Result<Plan, Rejection> {
        let (tls, mut problems) = match tls {
            Ok(tls) => (tls, Vec::new()),
            Err(problems) => (Served::default(), problems),
        };
        for server in tls.servers() {
            server.measure(self.metrics());
            if let Err(findings) = prove_tokens(server).await {
                problems.extend(findings.iter().map(ToString::to_string));
            }
        }
        let of_tls = problems.len();
        let lists =
            Snapshot::take(config.listeners.iter().filter_map(|listener| listener.trusted_networks_file.clone()));
        let pools = self.plan_pools(config, &mut problems).await;
        let listeners = self.plan_listeners(config, &tls, &mut problems);
        let (throttle, access_log) = self.plan_throttle_and_log(config, &mut problems);
        let admin = self.plan_admin(config, &mut problems).await;
        if !problems.is_empty() {
            let of_followed_files = problems.len() == of_tls && *config == self.state().config;
            return Err(Rejection { of_followed_files, problems });
        }
        Ok(Plan { config: Arc::clone(config), tls, pools, listeners, throttle, access_log, admin, lists })
    }

    fn plan_throttle_and_log(
        &self,
        config: &Config,
        problems: &mut Vec<String>,
    ) -> (Option<Arc<LoginThrottle>>, Option<AccessLog>) {
        let state = self.state();
        let first = state.parts.listeners.is_empty();
        let throttle = (first || config.login_throttle != state.config.login_throttle)
            .then(|| Arc::new(LoginThrottle::new(&config.login_throttle)));
        let mut access_log = None;
        if first || config.access_log != state.config.access_log {
            match AccessLog::start(&config.access_log, Arc::clone(self.metrics())) {
                Ok(log) => access_log = Some(log),
                Err(error) => problems.push(error.to_string()),
            }
        }
        (throttle, access_log)
    }

    fn plan_listeners(&self, config: &Config, tls: &Served, problems: &mut Vec<String>) -> Vec<PlannedListener> {
        let running = &self.state().parts.listeners;
        let mut planned = Vec::new();
        for settings in &config.listeners {
            let tls = settings.tls.as_ref().and_then(|table| tls.find(table));
            let policy = match Policy::new(&settings.policy) {
                Ok(policy) => policy,
                Err(error) => {
                    problems.push(format!("listener {}: policy.base_dns: {error}", settings.name));
                    continue;
                }
            };
            let origin = if running.get(&settings.name).is_some_and(|known| known.settings.address == settings.address)
            {
                Origin::Running
            } else if let Some((name, socket)) = renamed(running, config, settings, &planned) {
                Origin::Renamed(name, socket)
            } else {
                let socket = self.inherited.find(settings).unwrap_or_else(|| listener::bind(settings.address));
                match (socket, TrustSource::open(settings)) {
                    (Ok(socket), Ok(trust)) => Origin::Fresh(socket, trust),
                    (socket, trust) => {
                        problems.extend(socket.err().map(|error| explained(&error, settings.address, running)));
                        problems.extend(trust.err().map(|error| error.to_string()));
                        continue;
                    }
                }
            };
            planned.push(PlannedListener { settings: settings.clone(), policy, tls: tls.cloned(), origin });
        }
        planned
    }

    /// An endpoint whose place stays is kept: its address is free for nobody, not even for us.
    async fn plan_admin(&self, config: &Config, problems: &mut Vec<String>) -> PlannedAdmin {
        let places = admin::places(&config.admin, config.health_address);
        let is_new = |place: &&admin::Place| !self.state().admin.as_ref().is_some_and(|admin| admin.serves(place));
        let mut fresh = Vec::new();
        for place in places.iter().filter(is_new) {
            match admin::Endpoint::bind(place.clone()).await {
                Ok(endpoint) => fresh.push(endpoint),
                Err(error) => problems.push(error.to_string()),
            }
        }
        PlannedAdmin { places, fresh }
    }

    /// Puts a plan in the place of what is running. Cannot fail.
    pub(super) fn carry_out(self: &Arc<Self>, plan: Plan) {
        let Plan { config, tls, pools, listeners, throttle, access_log, admin, lists } = plan;
        self.admission.change(&config.limits);
        self.addresses.change(&config.limits);
        self.memory.resize(config.limits.buffer_memory);
        let mut state = self.state();
        let before = std::mem::take(&mut state.parts);
        if access_log.is_some() {
            state.retired_logs.retain(|log| !log.is_over());
            state.retired_logs.extend(before.access_log.retire());
        }
        let mut parts = Parts {
            tls,
            throttle: throttle.unwrap_or(before.throttle),
            access_log: access_log.unwrap_or(before.access_log),
            pools: self.carry_out_pools(pools, &before.pools),
            listeners: BTreeMap::new(),
            lists,
        };
        let mut known = before.listeners;
        let names: Vec<_> = known.keys().cloned().collect();
        for planned in listeners {
            let name = planned.settings.name.clone();
            let keys = self.keys(&config, &planned, &parts);
            let mut running = |name: &str| known.remove(name).expect("a listener without a fresh socket is running");
            let listener = match planned.origin {
                Origin::Fresh(socket, trust) => {
                    self.open(planned.settings, Arc::new(socket), Arc::new(trust), keys, Vec::new())
                }
                Origin::Running => self.go_on(running(&name), planned.settings, keys),
                Origin::Renamed(before, socket) => self.rename(running(&before), socket, planned.settings, keys),
            };
            parts.listeners.insert(name, listener);
        }
        known.values().for_each(|gone| gone.stop.cancel());
        for gone in names.iter().filter(|name| !parts.listeners.contains_key(*name)) {
            self.metrics().forget_listener(gone);
        }
        self.show_certificates(&parts);
        if let Some(running) = &mut state.admin {
            running.change(config.admin.token_file.clone(), &admin.places, admin.fresh);
        }
        state.parts = parts;
        state.config = config;
    }

    fn keys(&self, config: &Config, planned: &PlannedListener, parts: &Parts) -> Keys {
        let settings = &planned.settings;
        let pool = &parts.pools[&settings.pool];
        if settings.referrals != config::Referrals::Pass {
            pool.pool.want_names();
        }
        Keys {
            tls: planned.tls.clone(),
            implicit_tls: settings.protocol == ListenerProtocol::Ldaps,
            proxy_protocol_from: settings.proxy_protocol_from.clone(),
            session: Arc::new(session::Settings {
                pool: pool.current.clone(),
                replay_guard: Arc::clone(&pool.replay_guard),
                limits: config.limits.clone(),
                policy: planned.policy.clone(),
                referrals: referrals(settings),
                memory: Arc::clone(&self.memory),
                throttle: Arc::clone(&parts.throttle),
                access_log: parts.access_log.clone(),
                metrics: Arc::clone(self.metrics()),
                listener: self.metrics().listener(&settings.name),
                no_backend: session::Outage::default(),
            }),
        }
    }

    /// Gives a listener whose name and address stay its new settings.
    fn go_on(&self, listener: RunningListener, settings: config::Listener, keys: Keys) -> RunningListener {
        listener.door.change_keys(keys);
        self.reload_trust(&listener.door, &settings);
        RunningListener { settings, ..listener }
    }

    /// Puts another door before a listener's socket, with the same last good list of networks.
    fn rename(
        self: &Arc<Self>,
        before: RunningListener,
        socket: Arc<TcpListener>,
        settings: config::Listener,
        keys: Keys,
    ) -> RunningListener {
        before.stop.cancel();
        let mut former_names = before.former_names;
        former_names.push(before.settings.name);
        let listener = self.open(settings, socket, Arc::clone(before.door.trust()), keys, former_names);
        self.reload_trust(&listener.door, &listener.settings);
        listener
    }

    fn open(
        self: &Arc<Self>,
        settings: config::Listener,
        socket: Arc<TcpListener>,
        trust: Arc<TrustSource>,
        keys: Keys,
        former_names: Vec<String>,
    ) -> RunningListener {
        let address = socket.local_addr().unwrap_or(settings.address);
        tracing::info!(listener = %settings.name, %address, pool = %settings.pool, "listening");
        let door = Door::new(settings.name.as_str().into(), trust, keys, self.house());
        let stop = self.draining.child_token();
        let open = Arc::downgrade(&socket);
        let accepting = self.background.spawn(listener::accept(socket, Arc::clone(&door), stop.clone())).abort_handle();
        RunningListener { settings, door, address, former_names, socket: open, accepting, stop }
    }

    fn house(&self) -> listener::House {
        listener::House {
            admission: Arc::clone(&self.admission),
            addresses: Arc::clone(&self.addresses),
            registry: Arc::clone(&self.registry),
            connections: self.connections.clone(),
            draining: self.draining.clone(),
        }
    }

    /// Shows when the certificates now served expire.
    pub(super) fn show_certificates(&self, parts: &Parts) {
        let certificates = parts.tls.certificates();
        let expiry = |one: &CertificateInfo| i64::try_from(one.not_after.as_secs()).unwrap_or(i64::MAX);
        self.metrics().certificates(certificates.iter().map(|one| (one.name.as_str(), expiry(one))));
    }

    /// Takes a listener's networks from the configuration and its list file.
    pub(super) fn reload_trust(&self, door: &Door, settings: &config::Listener) {
        let stale = match door.trust().reload(settings) {
            Reload::Done { networks } => {
                tracing::debug!(listener = door.name(), networks, "trusted networks read");
                false
            }
            Reload::ListKept(problem) => {
                tracing::error!(listener = door.name(), %problem, "the last good list of trusted networks is kept");
                self.metrics().failures.record(SystemTime::now(), Trouble::TrustListStale, door.name(), &problem);
                true
            }
        };
        self.metrics().listener(door.name()).trust_list_stale(stale);
    }
}

async fn prove_tokens(server: &Arc<ServerTls>) -> Result<(), Vec<Finding>> {
    let server = Arc::clone(server);
    aside(move || server.prove_tokens()).await
}

/// On a thread of its own: files and tokens take their time, and a reload that waits for them can be given up.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Why an address can't be opened. One that only contains, or is within, that of a listener is another one to the kernel.
fn explained(error: &io::Error, address: SocketAddr, running: &BTreeMap<String, RunningListener>) -> String {
    let holder = running.values().find(|known| config::overlap(known.address, address));
    match holder.filter(|_| error.kind() == io::ErrorKind::AddrInUse) {
        Some(known) => {
            format!("{error}: listener {} has {}, so this takes a restart", known.settings.name, known.address)
        }
        None => error.to_string(),
    }
}

/// The listener that has the address of `settings` under a name which goes elsewhere or is gone, and its socket: an address that
/// is in use can't be opened again.
fn renamed(
    running: &BTreeMap<String, RunningListener>,
    config: &Config,
    settings: &config::Listener,
    planned: &[PlannedListener],
) -> Option<(String, Arc<TcpListener>)> {
    let keeps_its_name = |known: &config::Listener| {
        config.listeners.iter().any(|other| other.name == known.name && other.address == known.address)
    };
    // Port 0 may be the address of several.
    let is_taken =
        |name: &str| planned.iter().any(|other| matches!(&other.origin, Origin::Renamed(known, _) if known == name));
    running.values().find_map(|RunningListener { settings: known, socket, .. }| {
        let is_it = known.address == settings.address && !keeps_its_name(known) && !is_taken(&known.name);
        if is_it { Some((known.name.clone(), socket.upgrade()?)) } else { None }
    })
}

fn referrals(settings: &config::Listener) -> Option<referral::Mode> {
    match settings.referrals {
        config::Referrals::Pass => None,
        config::Referrals::Rewrite => {
            let public_name = settings.public_name.clone().expect("the configuration asks for it where it is needed");
            Some(referral::Mode::Rewrite { public_name })
        }
        config::Referrals::Drop => Some(referral::Mode::Drop),
    }
}
