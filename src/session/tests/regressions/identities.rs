//! Who a session is, and what is asked in whose name.

use super::*;

/// A bind that timed out before its upstream stood was sent to it all the same: the client took itself for anonymous, and
/// what it asked next was done under the name it had tried.
#[tokio::test]
async fn a_bind_that_timed_out_unsent_is_not_sent() {
    let mut stage = Stage::set(512, |settings| {
        settings.limits.operation_timeout = Some(Duration::from_secs(1));
    })
    .await;
    let bind = Send { kind: Kind::Bind, ..SEARCH };

    stage.client.send(bind).await;
    let mut first = stage.asked().await;
    let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
    first.write_all(&success).await.expect("a socket");
    stage.client.read_answers().await;
    drop(first);
    stage.client.send(SEARCH).await;
    let _replaying = stage.asked().await;
    stage.client.send(bind).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    stage.client.read_answers().await;
    tokio::time::resume();

    stage.client.send(SEARCH).await;
    let next = timeout(Duration::from_secs(10), stage.listener.accept()).await;
    let (mut anonymous, _) = next.expect("nothing waits for the bind any more").expect("a socket");
    let received = arrives(&mut anonymous).await;
    let envelope = ldap::envelope(&received, usize::MAX).expect("well-formed").expect("whole");
    assert_eq!(envelope.tag, 0x63, "a search");
    drop(stage.client);
    stage.session.abort();
}

/// A write that timed out before its upstream stood was sent to it all the same, and the client told to repeat it.
#[tokio::test]
async fn a_write_that_timed_out_unsent_is_not_sent() {
    let mut stage = Stage::set(512, |settings| {
        settings.limits.operation_timeout = Some(Duration::from_secs(1));
    })
    .await;
    drop(stage.bound().await);
    stage.client.send(SEARCH).await;
    let (mut upstream, _) = stage.listener.accept().await.expect("the session opens its upstream");
    assert_eq!(tags(&arrives(&mut upstream).await), [BIND_REQUEST]);
    stage.client.send(Send { kind: Kind::Modify, ..SEARCH }).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    stage.client.read_answers().await;
    tokio::time::resume();
    assert_eq!(stage.client.code, Some(ldap::ResultCode::TIME_LIMIT_EXCEEDED));
    stage.client.send(SEARCH).await;
    let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&success).await.expect("a socket");
    assert_eq!(tags(&arrives(&mut upstream).await), [SEARCH_REQUEST], "neither the write nor an abandon of it");
    stage.session.abort();
}

/// Sealed octets pass unread, and the answer of the proxy to what was asked before was put between them.
#[tokio::test]
async fn nothing_is_said_between_the_octets_of_a_security_layer() {
    let mut stage = Stage::set(512, |settings| {
        settings.limits.operation_timeout = Some(Duration::from_secs(1));
        settings.policy = Policy::new(&config::Policy::default()).expect("it names no DN");
    })
    .await;
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;
    stage.client.open.insert(9, Kind::Bind);
    let sasl_bind = b"\x30\x14\x02\x01\x09\x60\x0f\x02\x01\x03\x04\x00\xa3\x08\x04\x06GSSAPI";
    stage.client.writer.write_all(sasl_bind).await.expect("a pipe");
    arrives(&mut upstream).await;
    let success = ldap::reply::result(OperationKind::Bind, 9, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&success).await.expect("a socket");
    while stage.client.open.contains_key(&9) {
        stage.client.read_some().await;
    }
    let sealed = b"\0\0\0\x04seal";
    stage.client.writer.write_all(sealed).await.expect("a pipe");
    assert_eq!(arrives(&mut upstream).await, sealed);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    upstream.write_all(sealed).await.expect("a socket");
    let mut received = [0; 8];
    stage.client.reader.read_exact(&mut received).await.expect("a pipe");
    assert_eq!(&received, sealed);
    assert_eq!(stage.registry.sessions()[0].in_flight.load(std::sync::atomic::Ordering::Relaxed), 0);
    stage.session.abort();
}

/// What was asked before a bind went out as nobody if its upstream had to be opened, or opened again, meanwhile.
#[tokio::test]
async fn what_was_asked_before_a_bind_is_asked_as_who_the_client_was() {
    let bind = Send { kind: Kind::Bind, ..SEARCH };
    let mut stage = Stage::set(512, |_| {}).await;
    let mut first = stage.bound().await;
    stage.client.send(SEARCH).await;
    assert_eq!(tags(&arrives(&mut first).await), [SEARCH_REQUEST]);
    stage.client.send(bind).await;
    assert_eq!(tags(&arrives(&mut first).await), [BIND_REQUEST]);
    drop(first);
    let mut second = stage.asked_again().await;
    assert_eq!(tags(&arrives(&mut second).await), [SEARCH_REQUEST, BIND_REQUEST], "behind the client's first bind");
    stage.session.abort();
}

/// A bind can't be abandoned (§4.11): what names it comes when it has its answer, and names nothing then.
#[tokio::test]
async fn rule_18_a_bind_cannot_be_abandoned() {
    let mut stage = Stage::set(512, |_| {}).await;
    stage.client.send(Send { kind: Kind::Bind, ..SEARCH }).await;
    stage.client.writer.write_all(b"\x30\x06\x02\x01\x09\x50\x01\x01").await.expect("a pipe");
    let mut upstream = stage.asked().await;
    let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&success).await.expect("a socket");
    stage.client.read_answers().await;
    assert!(stage.client.open.is_empty() && !stage.client.ended);
    stage.client.send(SEARCH).await;
    assert_eq!(tags(&arrives(&mut upstream).await), [SEARCH_REQUEST]);
    stage.session.abort();
}

/// It was judged as an anonymous client's, and took the answer to the bind with it.
#[tokio::test]
async fn a_large_request_behind_a_bind_waits_like_a_small_one() {
    let mut stage = Stage::set(1 << 16, |settings| settings.limits.request_size_anonymous = 1000).await;
    let bind = b"\x30\x10\x02\x01\x01\x60\x0b\x02\x01\x03\x04\x02cn\x80\x02pw";
    let modify = [&b"\x30\x82\x08\x0d\x02\x01\x02\x66\x82\x08\x06\x04\x02cn\x30\x82\x07\xfe"[..], &[0; 2046]].concat();
    stage.client.open.extend([(1, Kind::Bind), (2, Kind::Modify)]);
    stage.client.writer.write_all(&[&bind[..], &modify].concat()).await.expect("a pipe");
    let mut upstream = stage.asked().await;
    for kind in [OperationKind::Bind, OperationKind::Modify] {
        let id = if kind == OperationKind::Bind { 1 } else { 2 };
        upstream.write_all(&ldap::reply::result(kind, id, ldap::ResultCode::SUCCESS, "")).await.expect("a socket");
        if kind == OperationKind::Bind {
            assert_eq!(tags(&arrives(&mut upstream).await), [0x66]);
        }
    }
    stage.client.read_answers().await;
    assert!(stage.client.open.is_empty() && !stage.client.ended);
    stage.session.abort();
}

/// Where nothing is kept to be replayed, bound sessions looked anonymous; and one whose new bind had failed looked bound.
#[tokio::test]
async fn a_name_is_known_while_it_is_the_sessions() {
    let mut stage = Stage::set(512, |settings| {
        change_failover(settings, |failover| failover.replay_bind = false);
    })
    .await;
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    let mut upstream = stage.bound().await;
    assert_eq!(handle.facts().bind_name.as_deref(), Some("1,client"));
    stage.client.send(Send { kind: Kind::Bind, ..SEARCH }).await;
    arrives(&mut upstream).await;
    let refused = ldap::reply::result(OperationKind::Bind, 2, ldap::ResultCode::INVALID_CREDENTIALS, "");
    upstream.write_all(&refused).await.expect("a socket");
    stage.client.read_answers().await;
    assert_eq!(handle.facts().bind_name, None);
    stage.session.abort();
}

/// A search was repeated as nobody when the bind behind it couldn't be.
#[tokio::test]
async fn nothing_is_asked_again_for_whom_nobody_can_tell() {
    let mut stage = Stage::set(512, |_| {}).await;
    let mut upstream = stage.bound().await;
    for (kind, tag) in [(Kind::Search, SEARCH_REQUEST), (Kind::Modify, 0x66), (Kind::Bind, BIND_REQUEST)] {
        stage.client.send(Send { kind, ..SEARCH }).await;
        assert_eq!(tags(&arrives(&mut upstream).await), [tag]);
    }
    drop(upstream);
    stage.client.read_answers().await;
    assert_eq!((stage.client.open.len(), stage.client.code), (0, Some(ldap::ResultCode::UNAVAILABLE)));
    stage.nobody_comes();
}

/// One was repeated under the name that the client had taken meanwhile.
#[tokio::test]
async fn nothing_is_asked_again_under_another_name() {
    let mut stage = Stage::set(512, |_| {}).await;
    let mut upstream = stage.bound().await;
    stage.client.send(SEARCH).await;
    arrives(&mut upstream).await;
    stage.client.send(Send { kind: Kind::Bind, ..SEARCH }).await;
    arrives(&mut upstream).await;
    let success = ldap::reply::result(OperationKind::Bind, 3, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&success).await.expect("a socket");
    while stage.client.open.len() > 1 {
        stage.client.read_some().await;
    }
    drop(upstream);
    stage.client.read_answers().await;
    assert_eq!((stage.client.open.len(), stage.client.code), (0, Some(ldap::ResultCode::UNAVAILABLE)));
    stage.nobody_comes();
}

/// A session whose password had been wiped went on as nobody once its backend had closed the connection.
#[tokio::test]
async fn who_can_not_be_told_any_more_does_not_go_on_as_nobody() {
    let mut stage = Stage::set(512, |settings| {
        change_failover(settings, |failover| failover.replay_max_age = Duration::from_secs(60));
    })
    .await;
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    drop(stage.bound().await);
    while handle.facts().backend.is_some() {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(120)).await;
    tokio::time::resume();
    stage.client.send(SEARCH).await;
    stage.client.read_answers().await;
    while !stage.client.ended {
        stage.client.read_some().await;
    }
    assert!(stage.client.told && stage.client.open.is_empty());
    stage.nobody_comes();
}

/// The same pool with other rules of failover.
fn change_failover(settings: &mut Settings, change: impl FnOnce(&mut config::Failover)) {
    let mut changed = config::Pool::new("p", Vec::new());
    change(&mut changed.failover);
    let connector = Connector::new(&changed).expect("cleartext needs nothing");
    let pool = Pool::new(Arc::new(changed), connector, Metrics::new(), mpsc::channel(64).0);
    pool.set_backends(settings.pool.now().backends().to_vec());
    settings.pool = CurrentPool::new(Arc::new(pool));
}
