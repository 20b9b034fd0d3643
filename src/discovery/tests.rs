//! Against a name server on loopback whose answers change.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::BinDecodable as _;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::*;
use crate::config::{BackendAddress, BackendSource, Pool as Settings};
use crate::metrics::Metrics;
use crate::pool::{Backends, Health, Standing};
use crate::upstream::Connector;

/// What the server says: records by name and type, or a failure to everything, or to one type.
#[derive(Default)]
struct Zone {
    records: HashMap<(String, RecordType), Vec<RData>>,
    failure: Option<ResponseCode>,
    failing: Option<RecordType>,
}

struct NameServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: AbortHandle,
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::<Mutex<Zone>>::default();
        let answering = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut datagram = [0; 2048];
            loop {
                let (length, client) = socket.recv_from(&mut datagram).await.unwrap();
                let answer = answering.lock().unwrap().answer(&datagram[..length]);
                socket.send_to(&answer, client).await.unwrap();
            }
        });
        Self { address, zone, task: task.abort_handle() }
    }

    fn set(&self, name: &str, records: Vec<RData>) {
        let mut zone = self.zone.lock().unwrap();
        let name = name.to_lowercase();
        zone.records.retain(|(known, _), _| *known != name);
        for record in records {
            zone.records.entry((name.clone(), record.record_type())).or_default().push(record);
        }
    }

    fn fail(&self, failure: Option<ResponseCode>) {
        self.zone.lock().unwrap().failure = failure;
    }

    fn fail_on(&self, kind: RecordType) {
        self.zone.lock().unwrap().failing = Some(kind);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Zone {
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let query = Message::from_bytes(query).unwrap();
        let question = &query.queries[0];
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.add_query(question.clone());
        let name = question.name().to_utf8().trim_end_matches('.').to_lowercase();
        let failure = self.failure.or((self.failing == Some(question.query_type())).then_some(ResponseCode::ServFail));
        let exists = self.records.keys().any(|(known, _)| *known == name);
        answer.metadata.response_code = match failure {
            Some(failure) => failure,
            None if exists => ResponseCode::NoError,
            None => ResponseCode::NXDomain,
        };
        if failure.is_none() {
            // A CNAME leads on to its target's records.
            let mut next = Some(name);
            while let Some(name) = next.take() {
                let here = |kind| self.records.get(&(name.clone(), kind)).into_iter().flatten();
                for record in here(question.query_type()).chain(here(RecordType::CNAME)) {
                    answer.add_answer(Record::from_rdata(fqdn(&name), 0, record.clone()));
                    if let RData::CNAME(CNAME(target)) = record {
                        next = Some(target.to_utf8().trim_end_matches('.').to_owned());
                    }
                }
            }
        }
        answer.to_vec().unwrap()
    }
}

fn fqdn(name: &str) -> Name {
    let mut name = Name::from_utf8(name).unwrap();
    name.set_fqdn(true);
    name
}

fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(10, 0, 0, last)))
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, fqdn(target)))
}

fn settings(server: &NameServer, addresses: Vec<BackendAddress>) -> Settings {
    let source = |address| BackendSource { address, weight: 1, tier: 0, max_sessions: 0 };
    let mut pool = Settings::new("corp", addresses.into_iter().map(source).collect());
    pool.discovery.name_servers = vec![server.address];
    // The server's answers have a TTL of 0: this is how often it is asked.
    pool.discovery.min_ttl = Duration::from_millis(10);
    pool
}

fn named(name: &str) -> BackendAddress {
    BackendAddress::Host { name: name.into(), port: 389 }
}

fn names(backends: &Backends) -> Vec<&str> {
    backends.iter().map(|backend| backend.name()).collect()
}

#[tokio::test]
async fn names_services_and_aliases_are_resolved() {
    let server = NameServer::start().await;
    server.set("dc1.corp.example.com", vec![a(1), RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))]);
    server.set("dc2.corp.example.com", vec![a(2)]);
    server.set("alias.corp.example.com", vec![RData::CNAME(CNAME(fqdn("dc2.corp.example.com")))]);
    let site = "_ldap._tcp.Paris._sites.dc._msdcs.corp.example.com";
    server.set(site, vec![srv(0, 100, 389, "dc1.corp.example.com"), srv(10, 100, 3268, "dc2.corp.example.com")]);
    server.set("_ldap._tcp.none.example.com", vec![srv(0, 0, 0, ".")]);
    let sources = vec![
        BackendAddress::Service(site.into()),
        named("alias.corp.example.com"),
        BackendAddress::Service("_ldap._tcp.none.example.com".into()),
        named("absent.example.com"),
    ];
    let found = resolve_once(&settings(&server, sources)).await;
    let shown: Vec<_> =
        found.endpoints.iter().map(|e| format!("{} {} {} {}", e.address, e.host, e.weight, e.tier)).collect();
    assert_eq!(
        shown,
        [
            "10.0.0.1:389 dc1.corp.example.com 100 0",
            "[::1]:389 dc1.corp.example.com 100 0",
            "10.0.0.2:3268 dc2.corp.example.com 100 1",
            "10.0.0.2:389 alias.corp.example.com 1 0"
        ]
    );
    let expected = LookupFailure {
        name: "absent.example.com".into(),
        reason: "absent.example.com has no addresses".into(),
        times: 1,
    };
    assert_eq!(found.failures, [expected]);
}

#[tokio::test]
async fn the_pool_follows_dns_and_outlives_it() {
    let server = NameServer::start().await;
    server.set("dc.corp.example.com", vec![a(1), a(2)]);
    let settings = settings(&server, vec![named("dc.corp.example.com")]);
    let (metrics, (events, _kept)) = (Metrics::new(), mpsc::channel(1));
    let connector = Connector::new(&settings).unwrap();
    let pool = Arc::new(Pool::new(Arc::new(settings.clone()), connector, Arc::clone(&metrics), events));
    let mut discovery = Discovery::new(&settings);
    assert_eq!(discovery.refresh().await, []);
    pool.admit(&discovery.endpoints());
    assert_eq!(names(&pool.backends()), ["10.0.0.1:389", "10.0.0.2:389"]);
    assert!(pool.backends().iter().all(|backend| backend.standing() == Standing::Good), "a start believes in all");
    let running = tokio::spawn(discovery.run(Arc::clone(&pool)));

    let mut sets = pool.subscribe();
    let stays = pool.backend("10.0.0.2:389").unwrap();
    stays.set_health(Health::Degraded, "slow");
    server.set("dc.corp.example.com", vec![a(2), a(3)]);
    let is_new = |set: &Backends| names(set) == ["10.0.0.2:389", "10.0.0.3:389"];
    let set = Arc::clone(&*in_time(sets.wait_for(is_new)).await.unwrap());
    assert!(Arc::ptr_eq(&set[0], &stays), "a backend that stays keeps its state and its sessions");
    assert_eq!(set[1].standing(), Standing::Down, "a new one is used once it has passed a probe");
    set[1].set_health(Health::Up, "answers");
    assert_eq!(set[1].standing(), Standing::Good);

    for failure in [ResponseCode::ServFail, ResponseCode::NXDomain] {
        server.fail(Some(failure));
        let before = failures(&metrics);
        in_time(async {
            while failures(&metrics) < before + 1.0 {
                sets.changed().await.unwrap();
            }
        })
        .await;
        assert!(is_new(&pool.backends()), "{failure}: the last good answer stays");
        // Waits between failures grow: begin anew.
        server.fail(None);
        server.set("dc.corp.example.com", vec![a(2), a(4)]);
        in_time(sets.wait_for(|set| names(set) == ["10.0.0.2:389", "10.0.0.4:389"])).await.unwrap();
        server.set("dc.corp.example.com", vec![a(2), a(3)]);
        in_time(sets.wait_for(is_new)).await.unwrap();
    }
    running.abort();
}

/// A regression test (RFC 4074: there are such name servers): a host had no addresses at all, for ever, where those of one family
/// couldn't be asked for.
#[tokio::test]
async fn one_family_that_cannot_be_asked_for_costs_only_what_nobody_knows() {
    let server = NameServer::start().await;
    let shown = |discovery: &Discovery| {
        discovery.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    let mut settings = settings(&server, vec![named("dc.corp.example.com")]);
    settings.discovery.min_ttl = Duration::ZERO;
    let v6 = || RData::AAAA(AAAA(Ipv6Addr::LOCALHOST));

    server.set("dc.corp.example.com", vec![a(1), v6()]);
    server.fail_on(RecordType::AAAA);
    let mut discovery = Discovery::new(&settings);
    assert_eq!(discovery.refresh().await, []);
    assert_eq!(shown(&discovery), ["10.0.0.1:389"]);

    // What is known of the family that fails stays, and what the other one has lost goes.
    server.fail_on(RecordType::A);
    assert_eq!(discovery.refresh().await, []);
    assert_eq!(shown(&discovery), ["10.0.0.1:389", "[::1]:389"]);
    server.fail_on(RecordType::AAAA);
    server.set("dc.corp.example.com", vec![a(2)]);
    assert_eq!(discovery.refresh().await, []);
    assert_eq!(shown(&discovery), ["10.0.0.2:389", "[::1]:389"]);

    // That the other family has none is no news of this one.
    server.fail_on(RecordType::A);
    assert_eq!(discovery.refresh().await.len(), 1);
    assert_eq!(shown(&discovery), ["10.0.0.2:389", "[::1]:389"]);
}

/// A reload while DNS fails must not empty a pool.
#[tokio::test]
async fn answers_outlive_a_reload() {
    let server = NameServer::start().await;
    server.set("dc.corp.example.com", vec![a(1)]);
    server.set("_ldap._tcp.corp.example.com", vec![srv(0, 1, 389, "dc.corp.example.com")]);
    let mut settings = settings(&server, vec![BackendAddress::Service("_ldap._tcp.corp.example.com".into())]);
    let mut before = Discovery::new(&settings);
    let memory = before.memory();
    before.refresh().await;
    server.fail(Some(ResponseCode::ServFail));
    settings.warm = 1;
    let mut after = Discovery::new(&settings);
    after.succeed(&memory);
    assert_eq!(after.refresh().await.len(), 2, "asked again all the same");
    assert_eq!(after.endpoints(), before.endpoints());
    assert_eq!(after.endpoints().len(), 1);
}

/// A regression test: a service moved to another host whose address couldn't be had at once, and the pool lost all it had.
#[tokio::test]
async fn a_service_that_moves_keeps_its_hosts_until_the_new_ones_are_known() {
    const SERVICE: &str = "_ldap._tcp.corp.example.com";
    let server = NameServer::start().await;
    let move_to = |hosts: &[&str]| {
        server.set(SERVICE, hosts.iter().map(|host| srv(0, 1, 389, &format!("{host}.corp.example.com"))).collect())
    };
    let mut settings = settings(&server, vec![BackendAddress::Service(SERVICE.into())]);
    // Whatever is asked for again is due.
    settings.discovery.min_ttl = Duration::ZERO;
    let shown = |discovery: &Discovery| {
        discovery.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    server.set("dc1.corp.example.com", vec![a(1)]);
    move_to(&["dc1"]);
    let mut discovery = Discovery::new(&settings);
    assert_eq!(discovery.refresh().await, []);

    move_to(&["dc2"]);
    assert_eq!(discovery.refresh().await.len(), 1);
    assert_eq!(shown(&discovery), ["10.0.0.1:389"], "nothing better is known");

    // A reload meanwhile loses nothing either.
    let mut after = Discovery::new(&settings);
    after.succeed(&discovery.memory());
    assert_eq!(after.refresh().await.len(), 1);
    assert_eq!(shown(&after), ["10.0.0.1:389"]);

    // Part of the new ones is no reason to lose the old ones.
    server.set("dc3.corp.example.com", vec![a(3)]);
    move_to(&["dc2", "dc3"]);
    after.refresh().await;
    assert_eq!(shown(&after), ["10.0.0.1:389", "10.0.0.3:389"]);

    server.set("dc2.corp.example.com", vec![a(2)]);
    let mut last = Discovery::new(&settings);
    last.succeed(&after.memory());
    assert_eq!(last.refresh().await, []);
    assert_eq!(shown(&last), ["10.0.0.2:389", "10.0.0.3:389"]);
}

/// A regression test: resolv.conf was read once. A proxy that had started before the network was up asked nobody, for ever, and one
/// whose network had changed asked those who were gone.
#[tokio::test]
async fn the_systems_name_servers_may_come_late_and_change() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let mut servers = NameServers::named_in(file.clone());
    let unnamed =
        |servers: &mut NameServers| servers.resolver().is_err_and(|why| why.contains("names no name servers"));
    assert!(unnamed(&mut servers), "there is no file");
    write("# written by the network once it is up\n");
    assert!(unnamed(&mut servers));
    write("nameserver 127.0.0.1\n");
    let first = servers.resolver().unwrap();
    assert!(Arc::ptr_eq(&first, &servers.resolver().unwrap()), "nothing has changed");
    write("nameserver 127.0.0.2\n");
    let second = servers.resolver().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    write("");
    assert!(Arc::ptr_eq(&second, &servers.resolver().unwrap()), "the last good ones stay");
    std::fs::remove_file(&file).unwrap();
    assert!(Arc::ptr_eq(&second, &servers.resolver().unwrap()));
    write("nameserver 127.0.0.1\n");
    assert!(!Arc::ptr_eq(&second, &servers.resolver().unwrap()));
}

#[tokio::test]
async fn a_pool_asks_whom_the_system_names_by_then() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    // RFC 6761 §6.3: it is resolved without asking anybody, once there is somebody to ask.
    let source = BackendSource { address: named("localhost"), weight: 1, tier: 0, max_sessions: 0 };
    let mut discovery = Discovery::new(&Settings::new("corp", vec![source]));
    discovery.name_servers = NameServers::named_in(file.clone());
    let [failure] = &discovery.refresh().await[..] else { panic!("one failure") };
    assert!(failure.reason.contains("names no name servers"), "{failure:?}");
    std::fs::write(&file, "nameserver 127.0.0.1\n").unwrap();
    assert_eq!(discovery.ask(vec![Question::Host("localhost".into())]).await, []);
    assert!(discovery.endpoints().iter().all(|endpoint| endpoint.address.ip().is_loopback()));
    assert!(!discovery.endpoints().is_empty());
}

#[tokio::test]
async fn a_pool_of_addresses_needs_no_dns() {
    let address = BackendAddress::Socket("10.0.0.1:389".parse().unwrap());
    let source = BackendSource { address, weight: 1, tier: 0, max_sessions: 0 };
    let settings = Settings::new("corp", vec![source]);
    let found = resolve_once(&settings).await;
    assert_eq!((found.endpoints.len(), found.failures.len()), (1, 0));
    let (events, _kept) = mpsc::channel(1);
    let connector = Connector::new(&settings).unwrap();
    let pool = Arc::new(Pool::new(Arc::new(settings.clone()), connector, Metrics::new(), events));
    Discovery::new(&settings).run(pool).await;
}

/// Long enough for any machine; a test that waits this long has failed.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}

fn failures(metrics: &Metrics) -> f64 {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix("ldaps_proxy_discovery_failures_total{pool=\"corp\"} "));
    line.and_then(|figure| figure.parse().ok()).unwrap_or_default()
}
