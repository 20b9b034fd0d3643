use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::config::{BackendAddress, BackendSource, FailoverMode};

pub(super) const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 5000);

pub(super) fn settings() -> config::Pool {
    let address = BackendAddress::Socket(([10, 0, 0, 1], 389).into());
    config::Pool::new("p", vec![BackendSource { address, weight: 1, tier: 0, max_sessions: 0 }])
}

pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address, host: address.ip().to_string(), weight: 1, tier: 0, max_sessions: 0 }
}

/// A pool of these backends, and what it reports.
pub(super) fn pool(settings: config::Pool, endpoints: &[Endpoint]) -> (Arc<Pool>, mpsc::Receiver<Event>) {
    let (reports, events) = mpsc::channel(64);
    let connector = Connector::new(&settings).unwrap();
    let pool = Pool::new(Arc::new(settings), connector, Metrics::new(), reports);
    pool.admit(endpoints);
    (Arc::new(pool), events)
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nobody listens, for as long as the socket holds it.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Long enough for any machine; a test that waits this long has failed.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}

#[tokio::test]
async fn the_next_is_tried_and_each_attempt_is_reported() {
    let (_listening, works) = listener().await;
    let (_silent, dead) = nobody();
    let tiers = [endpoint(dead), Endpoint { tier: 1, ..endpoint(works) }];
    let (pool, mut events) = pool(settings(), &tiers);
    let upstream = pool.connect(CLIENT, None).await.unwrap();
    assert_eq!(upstream.backend().address(), works);
    assert_eq!(upstream.backend().sessions(), 1);
    let (first, second) = (events.recv().await.unwrap(), events.recv().await.unwrap());
    assert_eq!((first.backend.address(), first.kind), (dead, EventKind::ConnectFailed));
    assert!(second.backend.address() == works && matches!(second.kind, EventKind::Connected(_)));
    assert!(pool.metrics.render().contains("ldaps_proxy_failovers_total{kind=\"connect\"} 1\n"));
    drop(upstream);
    assert_eq!(pool.backends()[1].sessions(), 0);
}

#[tokio::test]
async fn without_a_backend_every_attempt_is_told() {
    let sockets = [nobody(), nobody()];
    let dead = sockets.each_ref().map(|(_, address)| *address);
    let (pool, _events) = pool(settings(), &dead.map(endpoint));
    let error = pool.connect(CLIENT, None).await.unwrap_err();
    assert_eq!(error.shortage, Shortage::NoBackend);
    let tried: Vec<_> = error.attempts.iter().map(|(name, _)| name.clone()).collect();
    assert!(dead.iter().all(|address| tried.contains(&address.to_string())), "{tried:?}");
    assert!(error.attempts.iter().all(|(_, why)| why.contains("refused")), "{error:?}");
}

#[tokio::test]
async fn mode_none_tries_one() {
    let mut settings = settings();
    settings.failover.mode = FailoverMode::None;
    let sockets = [nobody(), nobody()];
    let (pool, _events) = pool(settings, &sockets.each_ref().map(|(_, address)| endpoint(*address)));
    assert_eq!(pool.connect(CLIENT, None).await.unwrap_err().attempts.len(), 1);
}

/// contract.md: before answering `unavailable`, each backend that is down (not drained or disabled) is tried once.
#[tokio::test]
async fn one_that_is_down_is_tried_before_giving_up_and_a_drained_one_is_not() {
    let (_listening, address) = listener().await;
    let (pool, _events) = pool(settings(), &[endpoint(address)]);
    let name = address.to_string();
    pool.backend(&name).unwrap().set_health(Health::Down, "refused");
    assert!(!pool.is_usable());
    assert!(pool.connect(CLIENT, None).await.is_ok());
    assert!(pool.drain(&name) && !pool.drain("10.9.9.9:389"));
    assert_eq!(pool.connect(CLIENT, None).await.unwrap_err(), NoBackend::unreachable(Vec::new()));
    assert!(pool.enable(&name));
    assert!(pool.connect(CLIENT, None).await.is_ok());
}

/// A listener whose accept queue is full: a connect to it gets no answer until somebody accepts. Linux queues one more than
/// it was asked to.
async fn overrun() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = vec![TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    (listener, address, waiting)
}

/// All sessions of a dead backend come to the other one at once: that it drops some of their connects is no reason to give
/// up on it, as long as its probes pass.
#[tokio::test]
async fn an_overrun_backend_is_tried_again_within_the_budget() {
    let (listener, address, _waiting) = overrun().await;
    let mut settings = settings();
    (settings.connect_timeout, settings.connect_budget) = (Duration::from_millis(100), Duration::from_secs(60));
    let (pool, mut events) = pool(settings, &[endpoint(address)]);
    let connecting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.connect(CLIENT, None).await }
    });
    assert_eq!(in_time(events.recv()).await.unwrap().kind, EventKind::ConnectFailed);
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    assert_eq!(in_time(connecting).await.unwrap().unwrap().backend().address(), address);
}

#[tokio::test]
async fn an_unanswered_backend_that_is_down_is_not_tried_again() {
    let (_listener, address, _waiting) = overrun().await;
    let mut settings = settings();
    (settings.connect_timeout, settings.connect_budget) = (Duration::from_millis(100), Duration::from_secs(60));
    let (pool, _events) = pool(settings, &[endpoint(address)]);
    pool.backends()[0].set_health(Health::Down, "silent");
    assert_eq!(in_time(pool.connect(CLIENT, None)).await.unwrap_err().attempts.len(), 1);
}

/// Who finds all turns taken turns to another backend, which says nothing against the first.
#[tokio::test]
async fn a_turn_to_connect_is_waited_for_but_not_for_ever() {
    let ((_a, busy), (_b, free)) = (listener().await, listener().await);
    let mut settings = settings();
    settings.connect_timeout = Duration::from_millis(500);
    let (pool, mut events) = pool(settings, &[endpoint(busy), Endpoint { tier: 1, ..endpoint(free) }]);
    let backend = Arc::clone(&pool.backends()[0]);
    let mut turns = Vec::new();
    for _ in 0..backend.openings.left() {
        turns.push(backend.openings.turn().await);
    }
    assert_eq!(pool.connect(CLIENT, None).await.unwrap().backend().address(), free);
    let event = events.recv().await.unwrap();
    assert!(event.backend.address() == free && matches!(event.kind, EventKind::Connected(_)), "{event:?}");
    drop(turns);
    let upstreams = [pool.connect(CLIENT, None).await.unwrap(), pool.connect(CLIENT, None).await.unwrap()];
    assert!(upstreams.iter().all(|upstream| upstream.backend().address() == busy));
}

/// The survivor of two is slow under all the sessions of the other: whoever has no better one waits, as long as its probes
/// say that it works.
#[tokio::test(start_paused = true)]
async fn a_turn_at_the_last_backend_is_waited_for_beyond_the_budget() {
    let (_listening, address) = listener().await;
    let (pool, _events) = pool(settings(), &[endpoint(address)]);
    let backend = Arc::clone(&pool.backends()[0]);
    backend.set_health(Health::Up, "answers");
    let mut turns = Vec::new();
    for _ in 0..backend.openings.left() {
        turns.push(backend.openings.turn().await);
    }
    let connect = || {
        let pool = Arc::clone(&pool);
        tokio::spawn(async move { pool.connect(CLIENT, None).await })
    };
    let connecting = connect();
    tokio::time::sleep(pool.settings().connect_budget * 2).await;
    assert!(!connecting.is_finished());
    backend.set_health(Health::Down, "silent");
    assert_eq!(connecting.await.unwrap().unwrap_err().attempts.len(), 1);
    backend.set_health(Health::Up, "answers");
    let connecting = connect();
    tokio::time::sleep(pool.settings().connect_budget * 2).await;
    tokio::time::resume();
    drop(turns);
    assert!(in_time(connecting).await.unwrap().unwrap().queued > pool.settings().connect_budget);
}

#[tokio::test]
async fn a_full_pool_queues_and_a_freed_seat_serves_the_next() {
    let (_listening, address) = listener().await;
    let mut settings = settings();
    settings.queue = 1;
    settings.queue_timeout = Duration::from_secs(60);
    let (pool, _events) = pool(settings, &[Endpoint { max_sessions: 1, ..endpoint(address) }]);
    let first = pool.connect(CLIENT, None).await.unwrap();
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.connect(CLIENT, None).await }
    });
    while pool.queue.is_empty() {
        tokio::task::yield_now().await;
    }
    let third = pool.connect(CLIENT, None).await.unwrap_err();
    assert_eq!(third.shortage, Shortage::QueueFull);
    drop(first);
    let second = in_time(waiting).await.unwrap().unwrap();
    assert_eq!(second.backend().sessions(), 1);
    // Whoever waits is woken by every change: draining leaves nobody to wait for.
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.connect(CLIENT, None).await }
    });
    while pool.queue.is_empty() {
        tokio::task::yield_now().await;
    }
    pool.drain(&address.to_string());
    assert_eq!(in_time(waiting).await.unwrap().unwrap_err().shortage, Shortage::NoBackend);
}

#[tokio::test]
async fn a_full_pool_without_a_queue_is_busy_and_never_turns_to_one_that_is_down() {
    let (_a, first) = listener().await;
    let (_b, second) = listener().await;
    let (pool, _events) = pool(settings(), &[Endpoint { max_sessions: 1, ..endpoint(first) }, endpoint(second)]);
    pool.backends()[1].set_health(Health::Down, "wrong");
    let _seat = pool.connect(CLIENT, None).await.unwrap();
    assert_eq!(pool.connect(CLIENT, None).await.unwrap_err().shortage, Shortage::QueueFull);
    pool.backends()[1].set_health(Health::Degraded, "slow");
    assert_eq!(pool.connect(CLIENT, None).await.unwrap().backend().address(), second);
}

#[tokio::test]
async fn warm_upstreams_are_open_before_they_are_asked_for_and_used_once() {
    let (listening, address) = listener().await;
    let mut settings = settings();
    settings.warm = 2;
    let (pool, mut events) = pool(settings, &[endpoint(address)]);
    let backend = Arc::clone(&pool.backends()[0]);
    let keeping = tokio::spawn(keep_warm(Arc::clone(&pool)));
    backend.set_health(Health::Up, "answers");
    let mut accepted = Vec::new();
    for _ in 0..2 {
        accepted.push(in_time(listening.accept()).await.unwrap().0);
    }
    let mut upstream = in_time(taken(&pool, &mut events)).await;
    assert_eq!(backend.sessions(), 1, "warm ones hold no seat");
    // Its place is filled, and what is sent on it arrives on a connection that was there.
    accepted.push(in_time(listening.accept()).await.unwrap().0);
    upstream.stream.write_all(b"!").await.unwrap();
    assert_eq!(in_time(first_readable(&mut accepted)).await, b'!');
    keeping.abort();
}

/// A session's upstream that was warm: nothing was reported as connected.
async fn taken(pool: &Pool, events: &mut mpsc::Receiver<Event>) -> crate::upstream::Upstream {
    loop {
        let upstream = pool.connect(CLIENT, None).await.unwrap();
        if events.try_recv().is_err() {
            return upstream;
        }
        drop(upstream);
        tokio::task::yield_now().await;
    }
}

async fn first_readable(connections: &mut Vec<TcpStream>) -> u8 {
    loop {
        for connection in &mut *connections {
            let mut octet = [0];
            if let Ok(1) = connection.try_read(&mut octet) {
                return octet[0];
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn no_warm_upstreams_where_a_connection_begins_with_its_clients_address() {
    let mut settings = settings();
    (settings.warm, settings.send_proxy_protocol) = (2, true);
    let (pool, _events) = pool(settings, &[]);
    keep_warm(pool).await;
}

#[test]
fn admitting_keeps_what_is_known() {
    let at = |last| endpoint(([10, 0, 0, last], 389).into());
    let (pool, _events) = pool(settings(), &[at(1), at(2)]);
    let before = pool.backends();
    pool.drain("10.0.0.1:389");
    let heavier = Endpoint { weight: 5, tier: 2, ..at(2) };
    let admission = pool.admit(&[at(3), heavier, at(3)]);
    assert_eq!(admission.added, ["10.0.0.3:389"]);
    assert_eq!(admission.removed, ["10.0.0.1:389"]);
    let after = pool.backends();
    assert_eq!(after.len(), 2);
    assert!(Arc::ptr_eq(&after[1], &before[1]));
    assert_eq!((after[1].weight(), after[1].tier()), (5, 2));
    assert_eq!((after[0].standing(), after[1].standing()), (Standing::Down, Standing::Good));
    // What an operator asked holds for one that DNS loses and finds again.
    pool.admit(&[at(1), at(2)]);
    assert_eq!(pool.backend("10.0.0.1:389").unwrap().duty(), Duty::Draining);
    // Another name at the same address is checked against another certificate: another backend.
    pool.admit(&[Endpoint { host: "dc2.example.com".into(), ..at(2) }]);
    assert!(!Arc::ptr_eq(&pool.backends()[0], &before[1]));
}

/// A regression test: it was another backend for its pool, with no session, so that its seats were free a second time, and who
/// drained it was told at once that nobody was left.
#[test]
fn one_that_dns_drops_and_names_again_has_its_sessions_still() {
    let at = |last| Endpoint { max_sessions: 2, ..endpoint(([10, 0, 0, last], 389).into()) };
    let (old, _events) = pool(settings(), &[at(1), at(2)]);
    let shown = |pool: &Pool| {
        let text = pool.metrics.render();
        let mut series = text.lines().filter(|line| line.starts_with("ldaps_proxy_backend_sessions{"));
        series.find(|line| line.contains("10.0.0.1")).map(|line| line.rsplit_once(' ').unwrap().1.to_owned())
    };
    let before = Arc::clone(&old.backends()[0]);
    before.set_health(Health::Up, "answers");
    let seats = [before.occupy().unwrap(), before.occupy().unwrap()];
    assert_eq!(shown(&old).as_deref(), Some("2"));
    old.admit(&[at(2)]);
    assert_eq!(shown(&old), None);

    // A reload meanwhile forgets nothing.
    let (new, mut events) = pool(settings(), &[]);
    new.succeed(&old, &[at(2)]);
    drop(old);
    new.admit(&[at(1), at(2)]);
    let after = Arc::clone(&new.backends()[0]);
    assert!(after.is(&before) && !Arc::ptr_eq(&after, &before));
    assert_eq!((after.health(), after.standing()), (Health::Unknown, Standing::Down));
    assert_eq!((after.sessions(), shown(&new).as_deref()), (2, Some("2")));
    assert!(after.occupy().is_none(), "its seats are taken");
    before.report(CLIENT.ip(), EventKind::TimedOut);
    assert!(events.try_recv().is_ok_and(|event| event.backend.is(&after)));
    drop(seats);
    let _seat = after.occupy().unwrap();
    assert_eq!((after.sessions(), shown(&new).as_deref()), (1, Some("1")));
}

#[test]
fn a_pool_with_new_settings_goes_on_where_the_old_one_was() {
    let at = |last| endpoint(([10, 0, 0, last], 389).into());
    let (old, _events) = pool(settings(), &[at(1), at(2)]);
    old.drain("10.0.0.1:389");
    old.backends()[1].set_health(Health::Down, "refused");
    let (new, _events) = pool(settings(), &[]);
    old.learn_names(Some("dc1.corp.example.com".into()), Some("corp.example.com".into()));
    new.succeed(&old, &[at(1), at(2), at(3)]);
    let states: Vec<_> = new.backends().iter().map(|backend| (backend.duty(), backend.health())).collect();
    assert_eq!(
        states,
        [(Duty::Draining, Health::Unknown), (Duty::Enabled, Health::Down), (Duty::Enabled, Health::Unknown)]
    );
    assert_eq!(new.backends()[1].account().reason, "refused");
    let (hosts, domains) = new.own_names();
    assert!(hosts.contains(&"dc1.corp.example.com".into()) && domains.contains(&"corp.example.com".into()));
}

/// A regression test: a drain held for an address that had left the configuration, and for whichever server came to it later.
#[test]
fn a_drain_ends_when_a_reload_takes_the_backend_away() {
    let at = |last| endpoint(([10, 0, 0, last], 389).into());
    let (old, _events) = pool(settings(), &[at(1), at(2)]);
    old.drain("10.0.0.1:389");
    let _seat = old.backends()[0].occupy().unwrap();
    let (without, _events) = pool(settings(), &[]);
    without.succeed(&old, &[at(2)]);
    assert_eq!(old.backends()[0].duty(), Duty::Draining, "its sessions still leave it");
    let (again, _events) = pool(settings(), &[]);
    again.succeed(&without, &[at(1), at(2)]);
    let back = Arc::clone(&again.backends()[0]);
    assert_eq!((back.duty(), back.sessions()), (Duty::Enabled, 1));
}

/// DNS may lose a backend at a reload as at any other moment.
#[test]
fn a_drain_outlives_dns_through_a_reload() {
    let service = BackendAddress::Service("_ldap._tcp.corp.example.com".into());
    let host = BackendAddress::Host { name: "dc1".into(), port: 389 };
    let at = |last| Endpoint { host: format!("dc{last}"), ..endpoint(([10, 0, 0, last], 389).into()) };
    let with = |addresses: &[&BackendAddress]| {
        let source = |address: &&BackendAddress| BackendSource {
            address: (*address).clone(),
            weight: 1,
            tier: 0,
            max_sessions: 0,
        };
        config::Pool::new("p", addresses.iter().map(source).collect())
    };
    for (sources, expected) in [
        (with(&[&service]), Duty::Draining),
        (with(&[&host]), Duty::Draining),
        // Nothing there can name it any more.
        (with(&[&BackendAddress::Host { name: "dc2".into(), port: 389 }]), Duty::Enabled),
    ] {
        for lost_before in [true, false] {
            let (old, _events) = pool(with(&[&service, &host]), &[at(1), at(2)]);
            old.drain("10.0.0.1:389");
            if lost_before {
                old.admit(&[at(2)]);
            }
            let (new, _events) = pool(sources.clone(), &[]);
            new.succeed(&old, &[at(2)]);
            new.admit(&[at(1), at(2)]);
            let expected = if lost_before { Duty::Draining } else { expected };
            assert_eq!(new.backends()[0].duty(), expected, "{:?}, {lost_before}", sources.backends);
        }
    }
}

/// A regression test: what a reload added to a pool was believed to work, and got every new session for having none.
#[test]
fn what_a_reload_adds_is_used_once_it_has_passed_a_probe() {
    let at = |last| endpoint(([10, 0, 0, last], 389).into());
    let (old, _events) = pool(settings(), &[at(1), at(2)]);
    for backend in old.backends().iter() {
        backend.set_health(Health::Up, "answers");
    }
    for (endpoints, expected) in [
        ([at(1), at(2)], [Standing::Good; 2]),
        ([at(2), at(3)], [Standing::Good, Standing::Down]),
        // There is nothing better.
        ([at(3), at(4)], [Standing::Good; 2]),
    ] {
        let (new, _events) = pool(settings(), &[]);
        new.succeed(&old, &endpoints);
        assert_eq!([0, 1].map(|index| new.backends()[index].standing()), expected, "{endpoints:?}");
    }
}

/// The seats of a server are one for the pool as it was and as it is.
#[tokio::test]
async fn who_waits_in_the_pool_as_it_was_takes_a_seat_that_a_reload_adds() {
    let (_listening, address) = listener().await;
    let mut settings = settings();
    (settings.queue, settings.queue_timeout) = (1, Duration::from_secs(3600));
    let at = |max_sessions| Endpoint { max_sessions, ..endpoint(address) };
    let (old, _events) = pool(settings.clone(), &[at(1)]);
    let _first = old.connect(CLIENT, None).await.unwrap();
    let waiting = tokio::spawn({
        let old = Arc::clone(&old);
        async move { old.connect(CLIENT, None).await }
    });
    while old.queue.is_empty() {
        tokio::task::yield_now().await;
    }
    let (new, _events) = pool(settings, &[]);
    new.succeed(&old, &[at(2)]);
    assert_eq!(in_time(waiting).await.unwrap().unwrap().backend().sessions(), 2);
}

#[test]
fn a_returned_backend_takes_over_its_share() {
    let at = |last: u8, weight, tier| Endpoint { weight, tier, ..endpoint(([10, 0, 0, last], 389).into()) };
    // (weight, tier, sessions) of each backend, the first of which has returned; what each of the others gives up.
    for (backends, expected) in [
        (vec![(1, 0, 0), (1, 0, 100)], vec![50]),
        (vec![(1, 0, 0), (1, 0, 1)], vec![0]),
        (vec![(1, 0, 40), (1, 0, 40)], vec![0]),
        (vec![(3, 0, 0), (1, 0, 100)], vec![75]),
        (vec![(1, 0, 0), (1, 0, 60), (1, 0, 30)], vec![30, 0]),
        (vec![(1, 0, 0), (1, 1, 7)], vec![7]),
        (vec![(1, 1, 0), (1, 0, 7)], vec![0]),
    ] {
        let endpoints: Vec<_> = (1..).zip(&backends).map(|(last, &(weight, tier, _))| at(last, weight, tier)).collect();
        let (pool, _events) = pool(settings(), &endpoints);
        let known = pool.backends();
        let _seats: Vec<_> = known
            .iter()
            .zip(&backends)
            .flat_map(|(backend, &(_, _, sessions))| (0..sessions).map(|_| backend.occupy().unwrap()))
            .collect();
        let excess = pool.excess(&known[0]);
        let given = |backend: &Arc<Backend>| {
            excess.iter().find(|(other, _)| Arc::ptr_eq(other, backend)).map_or(0, |(_, count)| *count)
        };
        assert_eq!(known[1..].iter().map(given).collect::<Vec<_>>(), expected, "{backends:?}");
    }
}

#[test]
fn panic_mode_makes_a_pool_without_a_healthy_backend_usable() {
    let mut settings = settings();
    settings.health.panic_mode = true;
    let (pool, _events) = pool(settings, &[endpoint(([10, 0, 0, 1], 389).into())]);
    pool.backends()[0].set_health(Health::Down, "refused");
    assert!(pool.is_usable());
    pool.drain("10.0.0.1:389");
    assert!(!pool.is_usable());
}

/// The upstream's own end of things is in the way: nothing may be read before anything was asked.
#[tokio::test]
async fn a_fresh_stream_is_open_and_silent() {
    let (listening, address) = listener().await;
    let (pool, _events) = pool(settings(), &[endpoint(address)]);
    let mut stream = pool.connector().open_own(&pool.backends()[0]).await.unwrap();
    let (mut far, _) = listening.accept().await.unwrap();
    assert!(stream.is_fresh());
    far.write_all(b"\x30").await.unwrap();
    while stream.is_fresh() {
        tokio::task::yield_now().await;
    }
    let mut stream = pool.connector().open_own(&pool.backends()[0]).await.unwrap();
    let (far, _) = listening.accept().await.unwrap();
    drop(far);
    while stream.is_fresh() {
        tokio::task::yield_now().await;
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}
