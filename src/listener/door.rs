//! What stands between accept and the session: trust, PROXY header, limits, handshake.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::{Addresses, Guest};
use super::admission::{Admission, Place};
use crate::failure::{EndReason, Outcome};
use crate::metrics::Held;
use crate::proxy_protocol;
use crate::session::{self, Registry, Served, Session, StartTls};
use crate::tls::{Handshake, HandshakeFailure, ServerStream, ServerTls};
use crate::trust::{LogLimiter, TrustSource, Verdict};

/// A listener's rules, applied to each connection it accepts.
pub struct Door {
    name: Arc<str>,
    trust: Arc<TrustSource>,
    keys: ArcSwap<Keys>,
    house: House,
    refusals: LogLimiter,
    handshakes: LogLimiter,
    accepts: LogLimiter,
}

/// What all doors share.
#[derive(Clone)]
pub struct House {
    /// How many may be inside.
    pub admission: Arc<Admission>,
    /// How much each address may take.
    pub addresses: Arc<Addresses>,
    /// Who is inside.
    pub registry: Arc<Registry>,
    /// The tasks that serve connections.
    pub connections: TaskTracker,
    /// Cancelled once nobody new may stay.
    pub draining: CancellationToken,
}

/// What a reload may replace.
pub struct Keys {
    /// For TLS from the first byte, or StartTLS.
    pub tls: Option<Arc<ServerTls>>,
    /// Whether TLS begins with the first byte.
    pub implicit_tls: bool,
    /// Peers that must send a PROXY header.
    pub proxy_protocol_from: Vec<IpNet>,
    /// What sessions share.
    pub session: Arc<session::Settings>,
}

impl Door {
    /// The door of the listener `name`.
    pub fn new(name: Arc<str>, trust: Arc<TrustSource>, keys: Keys, house: House) -> Arc<Self> {
        Arc::new(Self {
            name,
            trust,
            keys: ArcSwap::from_pointee(keys),
            house,
            refusals: LogLimiter::default(),
            handshakes: LogLimiter::default(),
            accepts: LogLimiter::default(),
        })
    }

    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who may enter.
    pub fn trust(&self) -> &Arc<TrustSource> {
        &self.trust
    }

    /// What new connections get.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    /// Gives new connections something else; sessions go on with what they have.
    pub fn change_keys(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    /// Lets one connection in, or not. Never waits.
    pub(super) fn knock(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr) {
        let keys = self.keys();
        let announced = keys.proxy_protocol_from.iter().any(|network| network.contains(&peer.ip()));
        // A balancer need not be trusted itself: its header names the client who must be.
        if !announced && !self.is_trusted(&keys, peer) {
            return;
        }
        let Some(place) = self.house.admission.enter() else {
            keys.session.listener.connection(Outcome::Limit);
            self.refused(peer, Outcome::Limit, "limits.max_connections is reached");
            return;
        };
        let door = Arc::clone(self);
        self.house.connections.spawn(async move {
            if let Some(arrival) = door.greet(&keys, tcp, peer, announced).await {
                door.begin(keys, arrival, place).await;
            }
        });
    }

    pub(super) fn accept_failed(&self, error: &io::Error) {
        self.keys.load().session.listener.connection(Outcome::AcceptFailed);
        if let Some(suppressed) = self.accepts.admit(Instant::now()) {
            tracing::error!(listener = %self.name, %error, suppressed, "cannot accept: out of file descriptors or memory?");
            self.record(Outcome::AcceptFailed, &self.name, error);
        }
    }

    fn record(&self, outcome: Outcome, subject: impl Display, detail: impl Display) {
        self.keys.load().session.metrics.failures.record(SystemTime::now(), outcome, subject, detail);
    }

    fn is_trusted(&self, keys: &Keys, client: SocketAddr) -> bool {
        let detail = match self.trust.verdict(client.ip()) {
            Verdict::Trusted { .. } => return true,
            Verdict::Denied { by: Some(network) } => format!("in denied network {network}"),
            Verdict::Denied { by: None } => "in no trusted network (trusted_networks)".to_owned(),
        };
        keys.session.listener.connection(Outcome::Untrusted);
        self.refused(client, Outcome::Untrusted, &detail);
        false
    }

    fn refused(&self, client: SocketAddr, outcome: Outcome, detail: &str) {
        if let Some(suppressed) = self.refusals.admit(Instant::now()) {
            tracing::warn!(listener = %self.name, %client, reason = outcome.as_str(), detail, suppressed, "refused");
            self.record(outcome, client.ip(), detail);
        }
    }

    /// Reads the PROXY header where one is due, and judges the client it names.
    async fn greet(&self, keys: &Keys, mut tcp: TcpStream, peer: SocketAddr, announced: bool) -> Option<Arrival> {
        let (client, vpc_endpoint) =
            if announced { self.announced_client(keys, &mut tcp, peer).await? } else { (peer, None) };
        match self.house.addresses.enter(client.ip(), Instant::now()) {
            Ok(guest) => Some(Arrival { tcp, client, vpc_endpoint, guest }),
            Err(outcome) => {
                keys.session.listener.connection(outcome);
                self.refused(client, outcome, "the address has as many connections as it may (limits.…_per_address)");
                None
            }
        }
    }

    /// The client that the balancer's header names, if it may enter.
    async fn announced_client(
        &self,
        keys: &Keys,
        tcp: &mut TcpStream,
        peer: SocketAddr,
    ) -> Option<(SocketAddr, Option<String>)> {
        match proxy_protocol::read_header(tcp, keys.session.limits.handshake_timeout).await {
            Ok(header) => {
                let client = header.source.unwrap_or(peer);
                self.is_trusted(keys, client).then_some((client, header.vpc_endpoint))
            }
            Err(error) => {
                keys.session.listener.connection(Outcome::ProxyHeader);
                self.refused(peer, Outcome::ProxyHeader, &error.to_string());
                None
            }
        }
    }

    /// Makes the handshake, then leaves the session to a task of its own, so that what the handshake needed is freed.
    async fn begin(self: Arc<Self>, keys: Arc<Keys>, arrival: Arrival, place: Place) {
        let Arrival { tcp, client, vpc_endpoint, guest } = arrival;
        let place = (place, guest);
        let entry = |handshake: Option<&Handshake>| {
            let entry = self.house.registry.enter(client, Arc::clone(&self.name));
            entry.describe(handshake, vpc_endpoint.as_deref());
            if !self.trust.verdict(client.ip()).is_trusted() {
                // Its network was taken out while it made its handshake, where `trust.end_sessions` finds nobody.
                entry.command(session::Command::Distrust);
            }
            entry
        };
        let listener = &keys.session.listener;
        if keys.implicit_tls {
            let tls = keys.tls.as_ref().expect("the configuration gives every ldaps listener a certificate");
            let Some((stream, handshake)) = self.handshake(&keys, tls, tcp, client).await else { return };
            listener.connection(Outcome::Accepted);
            let session =
                Session::new(Arc::clone(&keys.session), entry(Some(&handshake)), stream, StartTls::Established);
            let door = Arc::clone(&self);
            let active = keys.session.metrics.session();
            // Boxed: the task would keep room for the session twice, before and while it is served.
            let serving = Box::pin(session.serve());
            self.house.connections.spawn(async move {
                let reason = serving.await.reason();
                door.ended(&keys, client, reason, active, place);
            });
        } else {
            listener.connection(Outcome::Accepted);
            let start_tls = if keys.tls.is_some() { StartTls::Offered } else { StartTls::Unsupported };
            let session = Session::new(Arc::clone(&keys.session), entry(None), tcp, start_tls);
            let door = Arc::clone(&self);
            let active = keys.session.metrics.session();
            self.house.connections.spawn(async move {
                let reason = door.serve_cleartext(&keys, session, client).await;
                door.ended(&keys, client, reason, active, place);
            });
        }
        if self.house.draining.is_cancelled() {
            // Accepted just before the listener closed: it must hear of the drain like the others.
            self.house.registry.command_all(session::Command::Drain);
        }
    }

    async fn serve_cleartext(&self, keys: &Keys, session: Session<TcpStream>, client: SocketAddr) -> EndReason {
        match Box::pin(session.serve()).await {
            Served::Ended(reason) => reason,
            Served::StartTls(session) => {
                let tls = keys.tls.as_ref().expect("StartTLS is offered only with a certificate");
                let (tcp, session) = session.off_transport();
                let Some((stream, handshake)) = self.handshake(keys, tls, tcp, client).await else {
                    return session.handshake_failed();
                };
                Box::pin(session.on_tls(stream, &handshake).serve()).await.reason()
            }
        }
    }

    async fn handshake(
        &self,
        keys: &Keys,
        tls: &ServerTls,
        tcp: TcpStream,
        client: SocketAddr,
    ) -> Option<(ServerStream<TcpStream>, Handshake)> {
        let listener = &keys.session.listener;
        let patience = keys.session.limits.handshake_timeout;
        let started = Instant::now();
        let made = timeout(patience, async {
            let greeted = ServerTls::greeted(tcp).await?;
            // A turn lasts as long as we compute: a client that stalls, before its hello or after ours, takes none away.
            let admission = &self.house.admission;
            let turn = || async move {
                let turn = admission.handshake(client.ip(), patience.saturating_sub(started.elapsed())).await?;
                // Others that are ready go first, so that no more than `handshakes` stand between a session and its turn.
                tokio::task::yield_now().await;
                Some(turn)
            };
            greeted.answer(tls, turn).await
        })
        .await;
        let (outcome, failure) = match made {
            Ok(Ok(None)) => {
                listener.connection(Outcome::HandshakeLimit);
                self.refused(
                    client,
                    Outcome::HandshakeLimit,
                    "no turn for its handshake came in time (limits.handshakes)",
                );
                return None;
            }
            Ok(Ok(Some((stream, handshake)))) => {
                listener.handshake(handshake.version, handshake.suite, handshake.resumed, started.elapsed());
                return Some((stream, handshake));
            }
            Ok(Err(error)) => (Outcome::HandshakeFailed, HandshakeFailure::from(&error)),
            Err(_) => (Outcome::HandshakeTimeout, HandshakeFailure::timeout()),
        };
        listener.connection(outcome);
        listener.handshake_failed(failure.reason.as_str());
        if let Some(suppressed) = self.handshakes.admit(Instant::now()) {
            tracing::info!(listener = %self.name, %client, reason = failure.reason.as_str(), suppressed,
                "handshake failed: {}", failure.explanation);
            self.record(outcome, client.ip(), &failure.explanation);
        }
        None
    }

    fn ended(&self, keys: &Keys, client: SocketAddr, reason: EndReason, active: Held, place: (Place, Option<Guest>)) {
        drop((active, place));
        keys.session.metrics.sessions_ended.count(reason);
        tracing::debug!(listener = %self.name, %client, reason = reason.as_str(), "session ended");
    }
}

/// A connection that has been let in.
struct Arrival {
    tcp: TcpStream,
    client: SocketAddr,
    vpc_endpoint: Option<String>,
    guest: Option<Guest>,
}
