//! What once went wrong: one session before one backend, whose part the test plays itself.

use std::sync::atomic::Ordering;

use super::*;
use crate::pool::Backend;

/// A search, in one piece, whose answer the client doesn't wait for.
const SEARCH: Send = Send { kind: Kind::Search, cut: 80, wait: false };
/// Octets of a request that the sockets to a backend don't hold.
const LARGER_THAN_SOCKETS: usize = 15 << 20;

/// A modify, where only reading is allowed.
const REFUSED: &[u8] = b"\x30\x0b\x02\x01\x03\x66\x06\x04\x02cn\x30\x00";

struct Stage {
    /// The backend's.
    listener: TcpListener,
    client: Client,
    session: tokio::task::JoinHandle<Served<Pipe>>,
    registry: Arc<Registry>,
    backend: Arc<Backend>,
}

impl Stage {
    /// `pipe` octets are on their way to and from the client at most.
    async fn set(pipe: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut settings = Arc::into_inner(settings(pool(&Arc::default()).await)).expect("nobody else has it");
        settings.pool.admit(&[Endpoint { address, host: "127.0.0.1".into(), weight: 1, tier: 0, max_sessions: 0 }]);
        change(&mut settings);
        let backend = Arc::clone(&settings.pool.backends()[0]);
        let registry = Arc::new(Registry::default());
        let (near, far) = duplex(pipe);
        let entry = registry.enter(([127, 0, 0, 1], 1000).into(), "l".into());
        let session =
            tokio::spawn(Session::new(Arc::new(settings), entry, Pipe::from(far), StartTls::Established).serve());
        Self { listener, client: Client::new("client", near), session, registry, backend }
    }

    /// The connection that the session opens next, once a request has arrived there.
    async fn asked(&self) -> TcpStream {
        let (mut upstream, _) = self.listener.accept().await.expect("the session opens its upstream");
        arrives(&mut upstream).await;
        upstream
    }

    /// Ends it, after no more connections than were accepted.
    fn nobody_comes(self) {
        let another = self.listener.into_std().expect("a socket").accept();
        assert_eq!(another.expect_err("nothing more to send").kind(), std::io::ErrorKind::WouldBlock);
        self.session.abort();
    }

    /// The session's upstream, once its client has bound.
    async fn bound(&mut self) -> TcpStream {
        self.client.send(Send { kind: Kind::Bind, ..SEARCH }).await;
        let mut upstream = self.asked().await;
        let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
        upstream.write_all(&success).await.expect("a socket");
        self.client.read_answers().await;
        upstream
    }

    /// The next upstream of a session that has bound, once its bind has been replayed there.
    async fn asked_again(&self) -> TcpStream {
        let (mut upstream, _) = self.listener.accept().await.expect("the session opens its upstream");
        assert_eq!(tags(&arrives(&mut upstream).await), [BIND_REQUEST]);
        let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
        upstream.write_all(&success).await.expect("a socket");
        upstream
    }
}

/// The next request's octets, or their beginning.
async fn arrives(upstream: &mut TcpStream) -> Vec<u8> {
    let mut octets = vec![0; 200];
    let count = upstream.read(&mut octets).await.expect("a request arrives");
    assert!(count > 0, "a request arrives");
    octets.truncate(count);
    octets
}

/// A client that dies looks like one that has only nothing more to ask, and while a bind is under way it isn't looked at. A
/// backend that never answered, as one does to a change notification, kept its session for ever.
#[tokio::test]
async fn a_client_that_is_gone_is_not_waited_for_without_end() {
    for asked in [&[Kind::Search][..], &[Kind::Bind, Kind::Search]] {
        let mut stage = Stage::set(512, |_| {}).await;
        for kind in asked {
            stage.client.send(Send { kind: *kind, ..SEARCH }).await;
        }
        let _silent = stage.asked().await;
        drop(stage.client);
        // Only now: a clock that runs ahead of real sockets would end the connect.
        tokio::time::pause();
        let served = timeout(Duration::from_secs(24 * 3600), stage.session).await.expect("it ends within the day");
        assert_eq!(served.expect("no panic").reason(), EndReason::IdleTimeout);
        tokio::time::resume();
    }
}

/// A client that floods the proxy with what it refuses had 512 refusals a turn, and 61 turns before the worker looked at other
/// sockets.
#[tokio::test]
async fn a_flood_of_refused_requests_gives_way_to_other_sockets() {
    let mut stage = Stage::set(1 << 20, |settings| settings.policy = read_only()).await;
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    let octets_said = || handle.sent.load(Ordering::Relaxed);
    stage.client.writer.write_all(REFUSED).await.expect("a pipe");
    stage.client.read_some().await;
    let one_answer = octets_said();

    let (mut near, mut far) = tokio::net::UnixStream::pair().expect("a pair of sockets");
    tokio::spawn(async move {
        let (mut said, mut echo) = far.split();
        tokio::io::copy(&mut said, &mut echo).await
    });
    stage.client.writer.write_all(&REFUSED.repeat(4000)).await.expect("a pipe");
    while octets_said() == one_answer {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        let before = octets_said();
        near.write_u8(1).await.expect("a socket");
        near.read_u8().await.expect("an echo");
        let meanwhile = (octets_said() - before) / one_answer;
        assert!((1..64).contains(&meanwhile), "{meanwhile} refusals while an octet went there and back");
    }
}

/// Commands were looked at when nothing else was to be done, and a long result from a quick backend always left something.
#[tokio::test]
async fn a_long_result_is_ended_at_once() {
    let mut stage = Stage::set(1 << 20, |_| {}).await;
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;
    let mut part = BytesMut::new();
    LdapCodec::default()
        .encode(LdapMsg { msgid: 1, op: entry("1", 0, 2000), ctrl: Vec::new() }, &mut part)
        .expect("memory");
    tokio::spawn(async move { while upstream.write_all(&part.repeat(500)).await.is_ok() {} });
    let Client { mut reader, writer: _open, .. } = stage.client;
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    while handle.sent.load(Ordering::Relaxed) < 10_000_000 {
        tokio::task::yield_now().await;
    }
    handle.command(registry::Command::Kill);
    let served = timeout(Duration::from_secs(60), &mut stage.session).await.expect("it ends");
    assert_eq!(served.expect("no panic").reason(), EndReason::Killed);
}

/// More than a turn's worth at once, and nothing after it.
#[tokio::test]
async fn what_is_left_for_the_next_turn_is_answered_after_a_half_close() {
    let mut stage = Stage::set(1 << 16, |settings| settings.policy = read_only()).await;
    stage.client.writer.write_all(&REFUSED.repeat(500)).await.expect("a pipe");
    stage.client.writer.shutdown().await.expect("a pipe");
    let mut answers = BytesMut::new();
    while stage.client.reader.read_buf(&mut answers).await.expect("a pipe") > 0 {}
    let mut codec = LdapCodec::default();
    let count = std::iter::from_fn(|| codec.decode(&mut answers).expect("whole responses")).count();
    assert_eq!(count, 500);
    assert_eq!(stage.session.await.expect("no panic").reason(), EndReason::ClientClosed);
}

/// Half a request and a search without an answer, both overdue at the same moment: the search's answer followed the notice.
#[tokio::test]
async fn nothing_follows_the_notice_of_disconnection() {
    let mut stage = Stage::set(512, |settings| {
        settings.limits.operation_timeout = Some(settings.limits.request_timeout);
    })
    .await;
    stage.client.send(SEARCH).await;
    stage.client.writer.write_all(b"\x30").await.expect("a pipe");
    let _silent = stage.asked().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    stage.client.read_answers().await;
    assert!(stage.client.told, "it is the last word");
    drop(stage.client);
    stage.session.await.expect("no panic");
}

/// A client that left with a request half sent to its backend: the other half began the stream of a new connection.
#[tokio::test]
async fn what_is_left_of_a_request_goes_nowhere_when_the_session_ends() {
    let mut stage = Stage::set(512, admit_larger_than_sockets).await;
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;

    // The client doesn't read what comes, so that its end is noticed by writing, at the beginning of a turn.
    let mut response = BytesMut::new();
    let message = LdapMsg { msgid: 1, op: entry("1", 0, 2000), ctrl: Vec::new() };
    LdapCodec::default().encode(message, &mut response).expect("memory");
    upstream.write_all(&response).await.expect("a socket");
    const DELETE_REQUEST: u8 = 0x4A;
    stage.client.writer.write_all(&larger_than_sockets(2, DELETE_REQUEST)).await.expect("a pipe");
    arrives(&mut upstream).await;
    drop(stage.client);
    assert_eq!(stage.session.await.expect("no panic").reason(), EndReason::ClientLost);
    let another = stage.listener.into_std().expect("a socket").accept();
    assert_eq!(another.expect_err("nothing more to send").kind(), std::io::ErrorKind::WouldBlock);
}

/// A backend was found lost while sending to it, which ended the session; the same turn went on to a request that had been held
/// behind a bind, and answered it after the notice.
#[tokio::test]
async fn a_held_request_is_not_answered_after_the_notice() {
    let mut stage = Stage::set(64 * 1024, |settings| {
        admit_larger_than_sockets(settings);
        settings.policy = read_only();
    })
    .await;
    stage.client.open.extend([(1, Kind::Compare), (2, Kind::Bind), (3, Kind::Modify)]);
    const COMPARE_REQUEST: u8 = 0x6E;
    stage.client.writer.write_all(&larger_than_sockets(1, COMPARE_REQUEST)).await.expect("a pipe");
    let sasl_bind = b"\x30\x12\x02\x01\x02\x60\x0d\x02\x01\x03\x04\x00\xa3\x06\x04\x04NTLM";
    let modify = b"\x30\x0b\x02\x01\x03\x66\x06\x04\x02cn\x30\x00";
    stage.client.writer.write_all(&[&sasl_bind[..], modify].concat()).await.expect("a pipe");
    // With octets unread, so that the next write fails.
    drop(stage.asked().await);
    while !stage.client.ended {
        stage.client.read_some().await;
    }
    assert!(stage.client.told, "its bind was the backend's");
    drop(stage.client);
    stage.session.await.expect("no panic");
}

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

/// That a backend has stopped answering may be told to a session which has left it. The one it is with now was taken for lost:
/// a search went out again, a write would have been answered "outcome unknown".
#[tokio::test]
async fn a_session_told_to_leave_stays_where_its_backend_works() {
    let mut stage = Stage::set(512, |_| {}).await;
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;
    let handle = stage.registry.sessions().remove(0);
    let leave = async || {
        handle.command(Command::Leave);
        while handle.is_told(Command::Leave) {
            tokio::task::yield_now().await;
        }
    };
    stage.backend.set_health(Health::Up, "answers");
    leave().await;
    let id = *stage.client.open.keys().next().expect("the search");
    let done = ldap::reply::result(OperationKind::Search, id, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&done).await.expect("the connection stands");
    let answers = timeout(Duration::from_secs(20), stage.client.read_answers()).await;
    answers.expect("it is the connection the session listens to");
    assert!(!stage.client.ended);
    stage.backend.set_health(Health::Down, "silent");
    leave().await;
    assert_eq!(upstream.read(&mut [0]).await.unwrap_or(0), 0, "left");
    drop(stage.client);
    stage.session.await.expect("no panic");
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

/// A backend that hangs while its kernel takes connections was asked without end once no other was left: nothing changed any
/// more that would have told its sessions to leave.
#[tokio::test]
async fn a_backend_that_is_down_and_says_nothing_is_not_waited_for_without_end() {
    let mut stage = Stage::set(512, |_| {}).await;
    stage.backend.set_health(Health::Down, "silent");
    stage.client.send(SEARCH).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(stage.asked().await);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::resume();
    }
    timeout(Duration::from_secs(20), stage.client.read_answers()).await.expect("unavailable");
    assert!(!stage.client.ended && stage.client.open.is_empty());
    stage.session.abort();
}

/// While a backend takes nothing, no more is read of a client that is sending a request: it was told that its request had not
/// arrived in time, and the one before was never answered.
#[tokio::test]
async fn a_request_is_not_late_while_it_is_not_read() {
    let mut stage = Stage::set(512, |settings| {
        admit_larger_than_sockets(settings);
        settings.limits.write_timeout = Duration::from_secs(3600);
    })
    .await;
    const DELETE_REQUEST: u8 = 0x4A;
    let (mut upstream, ()) = tokio::join!(stage.listener.accept(), async {
        let requests = [larger_than_sockets(1, DELETE_REQUEST), vec![0x30]].concat();
        stage.client.writer.write_all(&requests).await.expect("a pipe");
    });
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    let (upstream, _) = upstream.as_mut().expect("a socket");
    let mut left = LARGER_THAN_SOCKETS;
    while left > 0 {
        left = left.saturating_sub(upstream.read(&mut vec![0; 1 << 20]).await.expect("the session goes on"));
    }
    stage.client.open.insert(1, Kind::Modify);
    let done = ldap::reply::result(OperationKind::Modify, 1, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&done).await.expect("a socket");
    stage.client.read_answers().await;
    assert!(stage.client.open.is_empty() && !stage.client.ended);
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

/// What was kept of searches that a slow backend had not answered was a megabyte for each client that nobody counted.
#[tokio::test]
async fn what_is_kept_of_requests_counts_as_buffers() {
    let mut stage = Stage::set(1 << 16, |settings| settings.memory.resize(300_000)).await;
    // The backend takes all and answers nothing.
    let listener = stage.listener;
    tokio::spawn(async move {
        let (mut upstream, _) = listener.accept().await?;
        tokio::io::copy(&mut upstream, &mut tokio::io::sink()).await
    });
    let ended = timeout(Duration::from_secs(20), async {
        for id in 1..=8 {
            let _ = stage.client.writer.write_all(&search_with_filter_of(60_000, id)).await;
        }
        while !stage.client.ended {
            stage.client.read_some().await;
        }
    });
    ended.await.expect("its memory is wanted");
    assert!(stage.client.told);
    drop(stage.client);
    assert_eq!(stage.session.await.expect("no panic").reason(), EndReason::BufferMemory);
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

/// An abandoned search's entry was on its way in pieces when its session was told to move: the rest never came, and the next
/// response was taken for it.
#[tokio::test]
async fn nobody_moves_in_the_middle_of_a_response() {
    let second = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut other = None;
    let mut stage = Stage::set(1 << 20, |settings| {
        let endpoint = |address: SocketAddr, tier| {
            let host = address.ip().to_string();
            Endpoint { address, host, weight: 1, tier, max_sessions: 0 }
        };
        let first = settings.pool.backends()[0].address();
        settings.pool.admit(&[endpoint(first, 0), endpoint(second.local_addr().expect("bound"), 1)]);
        other = Some(Arc::clone(&settings.pool.backends()[1]));
    })
    .await;
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;
    let mut entry_pdu = BytesMut::new();
    let message = LdapMsg { msgid: 1, op: entry("1,client", 0, 60_000), ctrl: Vec::new() };
    LdapCodec::default().encode(message, &mut entry_pdu).expect("memory");
    let (begun, rest) = entry_pdu.split_at(50_000);
    upstream.write_all(begun).await.expect("a socket");
    stage.client.read_some().await;
    stage.client.send(Send { kind: Kind::Abandon, ..SEARCH }).await;
    arrives(&mut upstream).await;
    other.expect("there are two").set_health(Health::Up, "answers");
    stage.backend.set_duty(crate::pool::Duty::Draining);
    handle.command(Command::Move);
    upstream.write_all(rest).await.expect("the session is there");
    let whole = timeout(Duration::from_secs(20), async {
        while !stage.client.received.is_empty() || handle.sent.load(Ordering::Relaxed) < entry_pdu.len() as u64 {
            stage.client.read_some().await;
        }
    });
    whole.await.expect("all of the entry arrives");
    while handle.is_told(Command::Move) {
        tokio::task::yield_now().await;
    }
    stage.client.send(SEARCH).await;
    timeout(Duration::from_secs(20), second.accept()).await.expect("then it moves").expect("a socket");
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

/// One that was bound again at a backend which is down, and answered that, waits for what it asks as elsewhere.
#[tokio::test]
async fn a_backend_that_is_down_and_has_answered_is_waited_for() {
    let mut stage = Stage::set(512, |_| {}).await;
    drop(stage.bound().await);
    stage.backend.set_health(Health::Down, "busy");
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked_again().await;
    arrives(&mut upstream).await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    tokio::time::resume();
    let done = ldap::reply::result(OperationKind::Search, 2, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&done).await.expect("a socket");
    stage.client.read_answers().await;
    assert_eq!(stage.client.code, Some(ldap::ResultCode::SUCCESS));
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
    pool.set_backends(settings.pool.backends().to_vec());
    settings.pool = Arc::new(pool);
}

fn search_with_filter_of(octets: u16, id: u8) -> Vec<u8> {
    let element = |tag: u8, content: &[u8]| {
        let length = u32::try_from(content.len()).expect("32 bits").to_be_bytes();
        [&[tag, 0x84][..], &length, content].concat()
    };
    let filter = element(0xA3, &[b"\x04\x01a".to_vec(), element(0x04, &vec![b'x'; octets.into()])].concat());
    let before = b"\x04\x00\x0a\x01\x02\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00";
    let search = element(SEARCH_REQUEST, &[&before[..], &filter, b"\x30\x00"].concat());
    element(0x30, &[&[2, 1, id][..], &search].concat())
}

const BIND_REQUEST: u8 = 0x60;
const SEARCH_REQUEST: u8 = 0x63;

/// What the requests in these octets ask for.
fn tags(mut octets: &[u8]) -> Vec<u8> {
    let mut tags = Vec::new();
    while let Some(envelope) = ldap::envelope(octets, usize::MAX).expect("well-formed") {
        tags.push(envelope.tag);
        octets = octets.get(envelope.length..).unwrap_or_default();
    }
    tags
}

fn admit_larger_than_sockets(settings: &mut Settings) {
    settings.limits.request_size_anonymous = 2 * LARGER_THAN_SOCKETS;
    settings.limits.request_size = 2 * LARGER_THAN_SOCKETS;
}

/// A request of this operation, filled with what doesn't matter.
fn larger_than_sockets(id: u8, tag: u8) -> Vec<u8> {
    let length = |octets: usize| u32::try_from(octets).expect("32 bits").to_be_bytes();
    let whole = length(LARGER_THAN_SOCKETS + 9);
    let operation = length(LARGER_THAN_SOCKETS);
    let head = [&[0x30, 0x84][..], &whole, &[0x02, 1, id, tag, 0x84], &operation].concat();
    [head, vec![0; LARGER_THAN_SOCKETS]].concat()
}

fn read_only() -> Policy {
    Policy::new(&config::Policy { read_only: true, ..config::Policy::default() }).expect("it names no DN")
}

/// Operations that are answered in one read are counted together where they are alike, and only there.
#[tokio::test]
async fn unlike_results_in_one_read_are_counted_apart() {
    let mut metrics = None;
    let mut stage = Stage::set(1 << 16, |settings| metrics = Some(Arc::clone(&settings.metrics))).await;
    let metrics = metrics.expect("the settings have some");
    let kinds = [Kind::Search, Kind::Search, Kind::Search, Kind::Modify, Kind::Search];
    // All in one write: what began at another time is counted apart anyway.
    let requests: Vec<u8> = kinds.into_iter().filter_map(|kind| stage.client.request(kind)).flatten().collect();
    stage.client.writer.write_all(&requests).await.expect("a pipe");
    let mut upstream = stage.asked().await;
    let results = [
        (0, OperationKind::Search),
        (0, OperationKind::Search),
        (51, OperationKind::Search),
        (50, OperationKind::Modify),
        (0, OperationKind::Search),
    ];
    let result = |((code, kind), id)| ldap::reply::result(kind, id, ldap::ResultCode(code), "");
    let answers: Vec<u8> = results.into_iter().zip(1..).flat_map(result).collect();
    upstream.write_all(&answers).await.expect("a socket");
    stage.client.read_answers().await;
    let counted = |kind, code| metrics.operations.total(kind, code);
    assert_eq!([counted(OperationKind::Search, 0), counted(OperationKind::Search, 51)], [3, 1]);
    assert_eq!([counted(OperationKind::Modify, 50), counted(OperationKind::Modify, 0)], [1, 0]);
}
