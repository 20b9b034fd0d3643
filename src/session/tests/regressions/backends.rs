//! What becomes of backends, and of what waits for them.

use std::sync::atomic::Ordering;

use super::*;

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

/// A reload that changed a pool left the sessions that were there with the backends it had had: once those were switched off,
/// nothing was left to them.
#[tokio::test]
async fn a_session_goes_on_with_the_backends_that_a_reload_has_brought() {
    let mut current = None;
    let mut stage = Stage::set(1 << 20, |settings| current = Some(settings.pool.clone())).await;
    let current = current.expect("there are settings");
    stage.client.send(SEARCH).await;
    let mut upstream = stage.asked().await;
    let done = ldap::reply::result(OperationKind::Search, 1, ldap::ResultCode::SUCCESS, "");
    upstream.write_all(&done).await.expect("a socket");
    stage.client.read_answers().await;

    let second = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = second.local_addr().expect("bound");
    let settings = Arc::new(config::Pool::new("p", Vec::new()));
    let connector = Connector::new(&settings).expect("cleartext needs nothing");
    let pool = Pool::new(settings, connector, Metrics::new(), mpsc::channel(64).0);
    let endpoint = Endpoint { address, host: "127.0.0.1".into(), weight: 1, tier: 0, max_sessions: 0 };
    pool.succeed(&current.now(), &[endpoint]);
    current.replace(Arc::new(pool));
    stage.backend.set_duty(crate::pool::Duty::Draining);
    let handle = Arc::clone(&stage.registry.sessions()[0]);
    handle.command(Command::Move);
    let leaves = async {
        while handle.facts().backend.is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), leaves).await.expect("there is another now");
    stage.client.send(SEARCH).await;
    let (mut upstream, _) = second.accept().await.expect("the session turns to the new one");
    arrives(&mut upstream).await;
    stage.nobody_comes();
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
        let pool = settings.pool.now();
        let first = pool.backends()[0].address();
        pool.admit(&[endpoint(first, 0), endpoint(second.local_addr().expect("bound"), 1)]);
        other = Some(Arc::clone(&pool.backends()[1]));
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
