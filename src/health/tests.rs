//! Watching real sockets: a scripted DC, and the embedded directory coming and going.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use ldap3_proto::proto::LdapOp;
use ldap3_proto::{LdapCodec, LdapMsg, LdapPartialAttribute, LdapSearchResultEntry};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Encoder as _;

use super::*;
use crate::config::{self, BackendAddress, BackendSource};
use crate::embedded::{Directory, Server};
use crate::ldap::{OperationKind, ResultCode, reply};
use crate::metrics::Metrics;
use crate::pool::Endpoint;
use crate::upstream::{Connector, read_pdu};

mod accounts;
mod reloads;
mod suspicion;

/// A DC that does as it is told.
struct Dc {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Script {
    /// What binds are answered.
    bind: ResultCode,
    /// What searches are answered, after one entry.
    search: ResultCode,
    synchronized: &'static str,
    /// Takes requests and never answers, as a stopped process does.
    silent: bool,
    /// Closes each connection after an answer.
    closes: bool,
    /// Takes no new connection, and goes on with those it has.
    closed_to_new: bool,
    connections: usize,
    /// Every request, `operation messageID` on `connection`.
    seen: Vec<(usize, OperationKind, u32)>,
}

impl Dc {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script {
            bind: ResultCode::SUCCESS,
            search: ResultCode::SUCCESS,
            synchronized: "TRUE",
            silent: false,
            closes: false,
            closed_to_new: false,
            connections: 0,
            seen: Vec::new(),
        }));
        let task = tokio::spawn({
            let script = Arc::clone(&script);
            async move {
                let mut serving = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    if script.lock().unwrap().closed_to_new {
                        continue;
                    }
                    serving.spawn(serve(stream, Arc::clone(&script)));
                }
            }
        });
        Self { address, script, task }
    }

    fn tell(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    fn seen(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    async fn until(&self, is_so: impl Fn(&Script) -> bool) {
        in_time(async {
            while !is_so(&self.seen()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Closes the listener and every connection.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl Script {
    /// The requests on the nth connection, in order. The first one is the cheap probe's.
    fn on(&self, connection: usize) -> Vec<(OperationKind, u32)> {
        self.seen.iter().filter(|(on, ..)| *on == connection).map(|(_, kind, id)| (*kind, *id)).collect()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let connection = {
        let mut script = script.lock().unwrap();
        script.connections += 1;
        script.connections
    };
    let mut received = BytesMut::new();
    while let Ok((envelope, _)) = read_pdu(&mut stream, &mut received, 65536).await {
        let kind = OperationKind::from_request_tag(envelope.tag).unwrap();
        let id = envelope.message_id;
        let told = {
            let mut script = script.lock().unwrap();
            script.seen.push((connection, kind, id));
            script.clone()
        };
        if told.silent {
            continue;
        }
        let answer = match kind {
            OperationKind::Bind => bind_response(id, told.bind),
            OperationKind::Search => [entry(id, told.synchronized), reply::result(kind, id, told.search, "")].concat(),
            OperationKind::Extended => reply::start_tls(id, ResultCode::PROTOCOL_ERROR, "no certificate"),
            _ => return,
        };
        stream.write_all(&answer).await.unwrap();
        if told.closes {
            return;
        }
    }
}

/// With any code below 128, which [`reply`] has no need for.
fn bind_response(id: u32, code: ResultCode) -> Vec<u8> {
    [b"\x30\x0C\x02\x01", &[id as u8][..], b"\x61\x07\x0A\x01", &[code.0 as u8], b"\x04\x00\x04\x00"].concat()
}

fn entry(id: u32, synchronized: &str) -> Vec<u8> {
    let attributes =
        vec![LdapPartialAttribute { atype: "isSynchronized".into(), vals: vec![synchronized.as_bytes().to_vec()] }];
    let op = LdapOp::SearchResultEntry(LdapSearchResultEntry { dn: String::new(), attributes });
    let mut out = BytesMut::new();
    LdapCodec::default().encode(LdapMsg::new(id as i32, op), &mut out).unwrap();
    out.to_vec()
}

/// A pool under watch.
struct Watched {
    pool: Arc<Pool>,
    metrics: Arc<Metrics>,
    changes: UnboundedReceiver<Change>,
    watching: JoinHandle<()>,
}

impl Watched {
    fn start(health: config::Health, addresses: &[SocketAddr]) -> Self {
        Self::start_as(config::Pool { health, ..config::Pool::new("p", Vec::new()) }, addresses)
    }

    fn start_as(mut settings: config::Pool, addresses: &[SocketAddr]) -> Self {
        let source =
            |address| BackendSource { address: BackendAddress::Socket(address), weight: 1, tier: 0, max_sessions: 0 };
        settings.backends = addresses.iter().map(|address| source(*address)).collect();
        let (reports, events) = mpsc::channel(64);
        let (metrics, connector) = (Metrics::new(), Connector::new(&settings).unwrap());
        let pool = Arc::new(Pool::new(Arc::new(settings), connector, Arc::clone(&metrics), reports));
        let endpoint = |address: &SocketAddr| Endpoint {
            address: *address,
            host: address.ip().to_string(),
            weight: 1,
            tier: 0,
            max_sessions: 0,
        };
        pool.admit(&addresses.iter().map(endpoint).collect::<Vec<_>>());
        let (changed, changes) = mpsc::unbounded_channel();
        let watching = tokio::spawn(watch(Arc::clone(&pool), events, Memory::default(), move |change: &Change| {
            let _ = changed.send(change.clone());
        }));
        Self { pool, metrics, changes, watching }
    }

    async fn change(&mut self) -> Change {
        in_time(self.changes.recv()).await.expect("the watcher runs")
    }

    /// Waits until the backend's newest probes satisfy `is_so`.
    async fn probes(&self, is_so: impl Fn(&[crate::pool::ProbeRecord]) -> bool) {
        let backend = Arc::clone(&self.pool.backends()[0]);
        in_time(async {
            while !is_so(&backend.account().probes) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// Long enough for any machine; a test that waits this long has failed.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}

fn often(kind: ProbeKind) -> config::Probe {
    config::Probe {
        kind,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(20),
        ..config::Probe::default()
    }
}

/// Probes once, and then only when asked.
fn once(kind: ProbeKind) -> config::Probe {
    config::Probe { interval: Duration::from_secs(3600), ..often(kind) }
}

fn cheap(cheap: config::Probe) -> config::Health {
    config::Health { cheap, ..config::Health::default() }
}

fn as_account(probe: config::Probe, directory: &tempfile::TempDir) -> config::Probe {
    let path = directory.path().join("password");
    std::fs::write(&path, "secret").unwrap();
    config::Probe { bind_name: Some("probe@corp.example.com".into()), password_file: Some(path), ..probe }
}

#[tokio::test]
async fn the_cheap_probe_stays_on_one_connection_and_counts_its_message_ids() {
    let dc = Dc::start().await;
    let mut watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[dc.address]);
    let change = watched.change().await;
    assert_eq!((change.before, change.verdict.health), (Health::Unknown, Health::Up));
    watched.probes(|probes| probes.len() == 10).await;
    let seen = dc.seen();
    assert_eq!(seen.connections, 1);
    assert!(seen.seen.len() >= 10);
    for (index, request) in seen.seen.iter().enumerate() {
        assert_eq!(*request, (1, OperationKind::Search, index as u32 + 1));
    }
}

#[tokio::test]
async fn what_is_expected_of_the_root_dse_decides() {
    let dc = Dc::start().await;
    let expect = [("isSynchronized".to_owned(), "TRUE".to_owned())].into();
    let mut watched = Watched::start(cheap(config::Probe { expect, ..often(ProbeKind::RootDse) }), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.synchronized = "FALSE");
    let change = watched.change().await;
    assert_eq!(change.verdict.health, Health::Down);
    assert_eq!(change.verdict.reason, "its rootDSE has isSynchronized = FALSE, \"TRUE\" is expected");
    assert!(!change.is_loss(), "it answers: its sessions may finish");
    dc.tell(|script| script.synchronized = "TRUE");
    let change = watched.change().await;
    assert!(change.is_return());
    assert_eq!(change.backend.account().reason, "answers its probes");
    dc.tell(|script| script.search = ResultCode::BUSY);
    assert_eq!(watched.change().await.verdict.reason, "the search got busy (51)");
}

/// A regression test: a reload that has `ca_file` wrong refuses every handshake, and cut the connections that worked.
#[tokio::test]
async fn a_backend_that_refuses_tls_has_answered() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, rcgen::generate_simple_self_signed(["dc1".to_owned()]).unwrap().cert.pem()).unwrap();
    let dc = Dc::start().await;
    let settings = config::Pool {
        protocol: config::BackendProtocol::StartTls,
        ca_file: Some(ca_file),
        health: cheap(often(ProbeKind::RootDse)),
        ..config::Pool::new("p", Vec::new())
    };
    let change = Watched::start_as(settings, &[dc.address]).change().await;
    assert!(change.verdict.health == Health::Down && !change.is_loss(), "{change:?}");
    assert_eq!(change.verdict.reason, "the backend refused StartTLS: protocolError (2), \"no certificate\"");
}

/// SIGSTOP: the kernel accepts, nobody answers.
#[tokio::test]
async fn silence_takes_down_and_its_sessions_need_not_wait() {
    let dc = Dc::start().await;
    let probe = config::Probe { timeout: Duration::from_millis(100), ..often(ProbeKind::RootDse) };
    let mut watched = Watched::start(cheap(probe), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.silent = true);
    let change = watched.change().await;
    assert!(change.is_loss());
    assert_eq!(change.verdict.reason, "no answer within 100ms");
    dc.tell(|script| script.silent = false);
    assert!(watched.change().await.is_return());
}

/// A regression test: what took it down first was no reason to leave it, and that it had stopped answering was no change
/// of its state any more. Its sessions waited for ever.
#[tokio::test]
async fn one_that_is_down_for_another_reason_and_falls_silent_is_lost() {
    let expect = [("isSynchronized".to_owned(), "TRUE".to_owned())].into();
    let patience = Duration::from_secs(1);
    let probe = config::Probe { expect, timeout: patience, fall: 1, ..often(ProbeKind::RootDse) };
    for is_ejected in [true, false] {
        let (dc, other) = (Dc::start().await, Dc::start().await);
        let mut watched = Watched::start(cheap(probe.clone()), &[dc.address, other.address]);
        for _ in 0..2 {
            assert_eq!(watched.change().await.verdict.health, Health::Up);
        }
        if is_ejected {
            let backend = Arc::clone(&watched.pool.backends()[0]);
            (1..=3).for_each(|last| backend.report(client(last), EventKind::ConnectFailed));
        } else {
            dc.tell(|script| script.synchronized = "FALSE");
        }
        let change = watched.change().await;
        assert!(change.verdict.health == Health::Down && !change.is_loss(), "{change:?}");
        dc.tell(|script| script.silent = true);
        let change = watched.change().await;
        assert!(change.is_loss() && !change.is_return(), "{change:?}");
        assert_eq!((change.before, change.backend.address()), (Health::Down, dc.address));
        assert_eq!(change.backend.account().reason, "no answer within 1s");
    }
}

/// That it was silent once before is forgotten when it answers.
#[tokio::test]
async fn one_that_falls_silent_again_is_lost_again() {
    let expect = [("isSynchronized".to_owned(), "TRUE".to_owned())].into();
    let probe = config::Probe { expect, timeout: Duration::from_secs(1), fall: 1, ..often(ProbeKind::RootDse) };
    let dc = Dc::start().await;
    let mut watched = Watched::start(cheap(probe), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.silent = true);
    assert!(watched.change().await.is_loss());
    dc.tell(|script| script.silent = false);
    assert!(watched.change().await.is_return());
    dc.tell(|script| script.synchronized = "FALSE");
    assert!(!watched.change().await.is_loss());
    dc.tell(|script| script.silent = true);
    assert!(watched.change().await.is_loss());
}

#[tokio::test]
async fn a_directory_that_goes_and_comes_back() {
    let directory = Arc::new(Directory::corp());
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Arc::clone(&directory), "dc1").unwrap();
    let address = server.local_addr();
    let mut watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    server.stop().await;
    let change = watched.change().await;
    assert!(change.is_loss(), "{change:?}");
    assert!(change.verdict.reason.contains("refused"), "{}", change.verdict.reason);
    let _server = Server::bind(address, directory, "dc1").unwrap();
    assert!(watched.change().await.is_return());
}

/// Closed for its age, or by a restart that is already over: the next probe connects anew, and that is no failure.
#[tokio::test]
async fn a_kept_connection_that_was_closed_is_no_failure() {
    let dc = Dc::start().await;
    dc.tell(|script| script.closes = true);
    let watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[dc.address]);
    watched.probes(|probes| probes.len() == 10).await;
    assert!(watched.pool.backends()[0].account().probes.iter().all(|probe| probe.failure.is_none()));
    assert!(dc.seen().connections >= 10);
}

#[tokio::test]
async fn a_tcp_probe_asks_nothing() {
    let dc = Dc::start().await;
    let mut watched = Watched::start(cheap(once(ProbeKind::Tcp)), &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    assert_eq!(dc.seen().seen, []);
}

#[tokio::test]
async fn the_deep_probe_connects_anew_binds_and_searches() {
    let secrets = tempfile::tempdir().unwrap();
    let dc = Dc::start().await;
    let deep = as_account(often(ProbeKind::Search), &secrets);
    let health = config::Health { cheap: once(ProbeKind::RootDse), deep: Some(deep), panic_mode: false };
    let mut watched = Watched::start(health, &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    let expected = [(OperationKind::Bind, 1), (OperationKind::Search, 2), (OperationKind::Unbind, 3)];
    dc.until(|script| (2..5).all(|connection| script.on(connection) == expected)).await;
    // One entry of one is enough, whatever comes after it.
    let before = dc.seen().connections;
    dc.tell(|script| script.search = ResultCode::NO_SUCH_OBJECT);
    dc.until(|script| script.connections > before + 3).await;
    assert_eq!(watched.pool.backends()[0].health(), Health::Up);
    assert!(watched.pool.backends()[0].account().probes.iter().all(|probe| probe.failure.is_none()));
}

#[tokio::test]
async fn too_few_entries_degrade() {
    let dc = Dc::start().await;
    let deep = config::Probe { min_entries: 2, base: "DC=corp".into(), ..often(ProbeKind::Search) };
    let health = config::Health { cheap: once(ProbeKind::RootDse), deep: Some(deep), panic_mode: false };
    let mut watched = Watched::start(health, &[dc.address]);
    let mut change = watched.change().await;
    if change.verdict.health == Health::Up {
        change = watched.change().await;
    }
    assert_eq!(change.verdict.health, Health::Degraded);
    assert_eq!(change.verdict.reason, "the search found 1 entries of 2");
}

/// `ldap server require strong auth = yes`: anonymous probes are content while nobody can log in.
#[tokio::test]
async fn anonymous_passes_and_binds_get_stronger_auth_required() {
    let secrets = tempfile::tempdir().unwrap();
    let dc = Dc::start().await;
    let deep = as_account(often(ProbeKind::Bind), &secrets);
    let health = config::Health { cheap: once(ProbeKind::RootDse), deep: Some(deep), panic_mode: false };
    let mut watched = Watched::start(health, &[dc.address]);
    assert_eq!(watched.change().await.verdict.health, Health::Up);
    dc.tell(|script| script.bind = ResultCode::STRONGER_AUTH_REQUIRED);
    let change = watched.change().await;
    assert_eq!(change.verdict.health, Health::Degraded);
    assert!(change.verdict.reason.contains("strongerAuthRequired (8)"), "{}", change.verdict.reason);
}

/// No lockout of the service account, no self-made outage.
#[tokio::test]
async fn a_refused_account_stops_its_probe_and_changes_no_state() {
    let secrets = tempfile::tempdir().unwrap();
    let dc = Dc::start().await;
    dc.tell(|script| script.bind = ResultCode::INVALID_CREDENTIALS);
    let mut watched = Watched::start(cheap(as_account(often(ProbeKind::Bind), &secrets)), &[dc.address]);
    // The backend answers all the same, which the probe now finds out by the rootDSE.
    let change = watched.change().await;
    assert_eq!((change.before, change.verdict.health), (Health::Unknown, Health::Up));
    watched.probes(|probes| probes.len() == 10 && probes.iter().all(|probe| probe.failure.is_none())).await;
    let binds = |dc: &Dc| dc.seen().seen.iter().filter(|(_, kind, _)| *kind == OperationKind::Bind).count();
    assert_eq!(binds(&dc), 1);
    assert!(watched.metrics.render().contains("ldaps_proxy_probe_account_refused{pool=\"p\"} 1"));
    // A corrected password is tried, and probing goes on as before.
    dc.tell(|script| script.bind = ResultCode::SUCCESS);
    std::fs::write(secrets.path().join("password"), "corrected").unwrap();
    dc.until(|_| binds(&dc) >= 3).await;
    assert!(watched.metrics.render().contains("ldaps_proxy_probe_account_refused{pool=\"p\"} 0"));
}

/// A reload that takes the account out makes the pool anew, and the gauge is the same.
#[tokio::test]
async fn a_refusal_is_over_when_no_probe_has_an_account() {
    let secrets = tempfile::tempdir().unwrap();
    let deep = |probe| config::Health { deep: Some(probe), ..cheap(often(ProbeKind::RootDse)) };
    for (health, expected) in [
        (cheap(often(ProbeKind::RootDse)), 0),
        (cheap(often(ProbeKind::Search)), 0),
        (deep(often(ProbeKind::Search)), 0),
        (deep(as_account(often(ProbeKind::RootDse), &secrets)), 0),
        (deep(as_account(often(ProbeKind::Search), &secrets)), 1),
        (cheap(as_account(often(ProbeKind::Bind), &secrets)), 1),
    ] {
        // Nothing is awaited: the pool isn't watched yet.
        let watched = Watched::start(health.clone(), &[]);
        watched.pool.metrics().probe_account_refused(true);
        let (reports, _reported) = mpsc::channel(1);
        let _watcher = Watcher::new(Arc::clone(&watched.pool), reports, |_: &Change| {});
        let series = format!("ldaps_proxy_probe_account_refused{{pool=\"p\"}} {expected}\n");
        assert!(watched.metrics.render().contains(&series), "{health:?}");
    }
}

fn client(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

const LOST: EventKind = EventKind::Lost { in_flight: 1 };

#[tokio::test]
async fn one_lost_connection_has_the_backend_probed_at_once() {
    let (dc, other) = (Dc::start().await, Dc::start().await);
    let mut watched = Watched::start(cheap(once(ProbeKind::RootDse)), &[dc.address, other.address]);
    for _ in 0..2 {
        assert_eq!(watched.change().await.verdict.health, Health::Up);
    }
    // The backend is fine: the probe says so, and it stays.
    let backends = watched.pool.backends();
    backends[0].report(client(1), LOST);
    watched.probes(|probes| probes.len() == 2).await;
    assert_eq!(backends[0].health(), Health::Up);
    // It is gone: the probe's failure is enough, without waiting for `fall` more.
    let address = dc.address;
    dc.kill().await;
    in_time(async {
        // A probe is asked for at most every 250 ms.
        while backends[0].health() == Health::Up {
            backends[0].report(client(1), LOST);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let change = watched.change().await;
    assert_eq!(change.backend.address(), address);
    assert!(change.is_loss());
    assert_eq!(backends[0].account().probes.len(), 3);
}

#[tokio::test]
async fn three_clients_eject_one_of_two_and_never_the_last() {
    let (first, second) = (Dc::start().await, Dc::start().await);
    let mut watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[first.address, second.address]);
    for _ in 0..2 {
        assert_eq!(watched.change().await.verdict.health, Health::Up);
    }
    let backends = watched.pool.backends();
    for last in 1..=3 {
        backends[0].report(client(last), LOST);
    }
    let change = watched.change().await;
    assert_eq!((change.verdict.health, change.backend.address()), (Health::Down, first.address));
    assert!(change.verdict.reason.starts_with("ejected") && !change.is_loss());
    for last in 1..=3 {
        backends[1].report(client(last), LOST);
    }
    // Reports are taken in order: one about the first, which is down, says when those about the second are through.
    let probed = backends[1].account().probes[0].at;
    in_time(async {
        while backends[1].account().probes[0].at == probed {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(backends[1].health(), Health::Up);
    let text = watched.metrics.render();
    let ejections = |address| format!("ldaps_proxy_backend_ejections_total{{backend=\"{address}\",pool=\"p\"}}");
    assert!(text.contains(&format!("{} 1", ejections(first.address))), "{text}");
    assert!(text.contains(&format!("{} 0", ejections(second.address))), "{text}");
}

/// The deep probe, which runs seldom, is the last to notice that a backend is back.
#[tokio::test]
async fn a_return_may_lead_through_degraded() {
    let secrets = tempfile::tempdir().unwrap();
    let dc = Dc::start().await;
    let expect = [("isSynchronized".to_owned(), "TRUE".to_owned())].into();
    let deep = config::Probe { rise: 1, fall: 1, ..as_account(often(ProbeKind::Bind), &secrets) };
    let health = config::Health {
        cheap: config::Probe { expect, ..often(ProbeKind::RootDse) },
        deep: Some(deep),
        panic_mode: false,
    };
    let mut watched = Watched::start(health, &[dc.address]);
    let first = watched.change().await;
    assert!(first.verdict.health == Health::Up && !first.is_return(), "{first:?}");
    for (synchronized, bind, expected, returns) in [
        ("TRUE", ResultCode::BUSY, Health::Degraded, false),
        ("TRUE", ResultCode::SUCCESS, Health::Up, false),
        ("TRUE", ResultCode::BUSY, Health::Degraded, false),
        ("FALSE", ResultCode::BUSY, Health::Down, false),
        ("TRUE", ResultCode::BUSY, Health::Degraded, false),
        ("TRUE", ResultCode::SUCCESS, Health::Up, true),
    ] {
        dc.tell(|script| (script.synchronized, script.bind) = (synchronized, bind));
        let change = watched.change().await;
        assert_eq!((change.verdict.health, change.is_return()), (expected, returns));
    }
}

/// A backend that comes and goes returns at once after its first fall; after the second it has to wait, unless it is needed.
#[tokio::test]
async fn one_that_comes_and_goes_waits_unless_it_is_needed() {
    let (first, second) = (Dc::start().await, Dc::start().await);
    let expect = [("isSynchronized".to_owned(), "TRUE".to_owned())].into();
    let probe = config::Probe { expect, rise: 1, fall: 1, ..often(ProbeKind::RootDse) };
    let mut watched = Watched::start(cheap(probe), &[first.address, second.address]);
    for _ in 0..2 {
        assert_eq!(watched.change().await.verdict.health, Health::Up);
    }
    let synchronized = |dc: &Dc, is_so| dc.tell(|script| script.synchronized = if is_so { "TRUE" } else { "FALSE" });
    for expected in [Health::Down, Health::Up, Health::Down] {
        synchronized(&first, expected == Health::Up);
        let change = watched.change().await;
        assert_eq!((change.backend.address(), change.verdict.health), (first.address, expected));
    }
    synchronized(&first, true);
    let backend = watched.pool.backend(&first.address.to_string()).unwrap();
    in_time(async {
        while !backend.account().reason.starts_with("ejected: it has come and gone") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(backend.health(), Health::Down);
    // The other one goes too: then the one that answers is taken back at once, whatever it has done. It is probed every 10 ms,
    // some 500 times in the 5 s it would have to wait.
    synchronized(&second, false);
    let fallen = watched.change().await;
    assert_eq!((fallen.backend.address(), fallen.verdict.health), (second.address, Health::Down));
    let probes = first.seen().seen.len();
    let returned = watched.change().await;
    assert_eq!((returned.backend.address(), returned.verdict.health), (first.address, Health::Up));
    assert!(first.seen().seen.len() < probes + 200);
    let ejections = format!("ldaps_proxy_backend_ejections_total{{backend=\"{}\",pool=\"p\"}} 1", first.address);
    assert!(watched.metrics.render().contains(&ejections));
}

#[tokio::test]
async fn checkers_follow_the_pools_backends() {
    let (first, second) = (Dc::start().await, Dc::start().await);
    let mut watched = Watched::start(cheap(often(ProbeKind::RootDse)), &[first.address]);
    watched.change().await;
    let endpoint = Endpoint { address: second.address, host: "dc2".into(), weight: 1, tier: 0, max_sessions: 0 };
    watched.pool.admit(&[endpoint]);
    assert_eq!(watched.pool.backends()[0].standing(), Standing::Down);
    let change = watched.change().await;
    assert_eq!((change.backend.address(), change.verdict.health), (second.address, Health::Up));
    assert_eq!(change.backend.standing(), Standing::Good);
    // The first one's checker has ended, and its connection with it.
    let asked = first.seen().seen.len();
    watched.probes(|probes| probes.len() == 10).await;
    assert!(first.seen().seen.len() <= asked + 1);
}

/// A regression test: only another's failed probe ended an ejection, so that an operator's drain or DNS could leave the pool
/// without a backend for minutes.
#[tokio::test]
async fn an_ejection_ends_when_no_other_is_left_for_whatever_reason() {
    let addresses = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 389)));
    let drain: fn(&Pool) = |pool| assert!(pool.drain("10.0.0.2:389"));
    let drop_from_dns: fn(&Pool) = |pool| pool.set_backends(pool.backends()[..1].to_vec());
    for leave in [drain, drop_from_dns] {
        // Nothing is awaited: no task runs but this one.
        let pool = Arc::clone(&Watched::start(cheap(once(ProbeKind::RootDse)), &addresses).pool);
        let (reports, _reported) = mpsc::channel(1);
        let mut watcher = Watcher::new(Arc::clone(&pool), reports, |_: &Change| {});
        watcher.follow(&pool.backends());
        let (backend, now) = (Arc::clone(&pool.backends()[0]), Instant::now());
        let passed =
            Report { backend: Arc::clone(&backend), depth: Depth::Cheap, outcome: Ok(Duration::from_millis(1)) };
        watcher.take_report(&passed, now);
        (1..=3).for_each(|last| {
            watcher.take_event(&Event { backend: Arc::clone(&backend), client: client(last), kind: LOST }, now)
        });
        watcher.take_report(&passed, now);
        assert_eq!(backend.health(), Health::Down, "the other one serves");
        leave(&pool);
        watcher.follow(&pool.backends());
        watcher.take_report(&passed, now);
        assert_eq!(backend.health(), Health::Up);
    }
}

/// A checker's report may be under way when DNS drops its backend and names it again.
#[tokio::test]
async fn the_last_word_on_a_dropped_backend_is_none_on_the_one_that_comes_back() {
    let addresses = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 389)));
    // Nothing is awaited: no task runs but this one.
    let pool = Arc::clone(&Watched::start(cheap(once(ProbeKind::RootDse)), &addresses).pool);
    let (reports, _reported) = mpsc::channel(1);
    let mut watcher = Watcher::new(Arc::clone(&pool), reports, |_: &Change| {});
    watcher.follow(&pool.backends());
    let before = Arc::clone(&pool.backends()[0]);
    let endpoint = |address: SocketAddr| {
        let host = address.ip().to_string();
        Endpoint { address, host, weight: 1, tier: 0, max_sessions: 0 }
    };
    for set in [&addresses[1..], &addresses] {
        pool.admit(&set.iter().map(|address| endpoint(*address)).collect::<Vec<_>>());
        watcher.follow(&pool.backends());
    }
    let after = Arc::clone(&pool.backends()[0]);
    assert!(after.is(&before));
    for (backend, expected) in [(before, Health::Unknown), (Arc::clone(&after), Health::Up)] {
        let report = Report { backend, depth: Depth::Cheap, outcome: Ok(Duration::from_millis(1)) };
        watcher.take_report(&report, Instant::now());
        assert_eq!(after.health(), expected);
    }
}
