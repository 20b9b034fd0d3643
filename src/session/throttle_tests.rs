//! The login throttle as a session uses it: only the directory's own refusals count.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::config;
use crate::ldap::{Response, ResultCode, envelope};
use crate::pipe::Pipe;
use crate::pool::{Endpoint, Pool};
use crate::upstream::Connector;

/// A simple bind of `ann` with messageID 1.
const BIND: &[u8] = b"\x30\x11\x02\x01\x01\x60\x0C\x02\x01\x03\x04\x03ann\x80\x02pw";

/// A client of a session that allows a name one failure.
fn client(backends: &[SocketAddr]) -> DuplexStream {
    client_of(settings(backends))
}

fn client_of(settings: Arc<Settings>) -> DuplexStream {
    let (near, far) = duplex(4096);
    let entry = Arc::new(Registry::default()).enter(SocketAddr::from(([127, 0, 0, 1], 1000)), "l".into());
    tokio::spawn(Session::new(settings, entry, Pipe::from(far), StartTls::Established).serve());
    near
}

fn settings(backends: &[SocketAddr]) -> Arc<Settings> {
    let pool_settings = Arc::new(config::Pool::new("p", Vec::new()));
    let connector = Connector::new(&pool_settings).expect("cleartext needs nothing");
    let pool = Pool::new(pool_settings, connector, Metrics::new(), mpsc::channel(64).0);
    let endpoints: Vec<Endpoint> = backends
        .iter()
        .map(|&address| Endpoint { address, host: address.ip().to_string(), weight: 1, tier: 0, max_sessions: 0 })
        .collect();
    pool.admit(&endpoints);
    let metrics = Metrics::new();
    let throttle = config::LoginThrottle { failures_per_name: Some(1), ..config::LoginThrottle::default() };
    Arc::new(Settings {
        pool: CurrentPool::new(Arc::new(pool)),
        replay_guard: ReplayGuard::new(),
        limits: Limits::default(),
        policy: Policy::new(&config::Policy::default()).expect("the default policy names no DN"),
        referrals: None,
        memory: Memory::new(1 << 30, Arc::clone(&metrics)),
        throttle: Arc::new(LoginThrottle::new(&throttle)),
        access_log: AccessLog::off(),
        listener: metrics.listener("l"),
        metrics,
        no_backend: Outage::default(),
    })
}

async fn bind(client: &mut DuplexStream) -> ResultCode {
    client.write_all(BIND).await.expect("the session reads");
    let mut received = Vec::new();
    loop {
        if let Some(envelope) = envelope(&received, usize::MAX).expect("well-formed")
            && envelope.length == received.len()
        {
            return Response::new(&received, envelope).and_then(|response| response.result()).expect("a result").code;
        }
        assert_ne!(client.read_buf(&mut received).await.expect("the session answers"), 0);
    }
}

/// Reads one bind; answers it with `code`, or hangs up.
async fn serve(stream: &mut TcpStream, code: Option<ResultCode>) {
    stream.read_exact(&mut [0; BIND.len()]).await.expect("a bind");
    if let Some(code) = code {
        let code = u8::try_from(code.0).expect("one octet");
        let response = [b"\x30\x0C\x02\x01\x01\x61\x07\x0A\x01", &[code][..], b"\x04\0\x04\0"].concat();
        stream.write_all(&response).await.expect("the proxy reads");
    }
}

#[tokio::test]
async fn an_outage_costs_no_name_its_budget() {
    let mut client = client(&[]);
    for _ in 0..3 {
        assert_eq!(bind(&mut client).await, ResultCode::UNAVAILABLE);
    }
}

#[tokio::test]
async fn a_bind_sent_again_elsewhere_is_one_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut client = client(&[listener.local_addr().expect("bound")]);
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.expect("a connection");
        serve(&mut first, None).await;
        drop(first);
        let (mut second, _) = listener.accept().await.expect("a connection");
        for code in [ResultCode::SUCCESS, ResultCode::SUCCESS, ResultCode::INVALID_CREDENTIALS] {
            serve(&mut second, Some(code)).await;
        }
    });
    for code in [ResultCode::SUCCESS, ResultCode::SUCCESS, ResultCode::INVALID_CREDENTIALS] {
        assert_eq!(bind(&mut client).await, code);
    }
    assert_eq!(bind(&mut client).await, ResultCode::UNWILLING_TO_PERFORM);
}

/// While the directory is silent nobody knows whether it was a wrong password.
#[tokio::test(start_paused = true)]
async fn a_login_waits_for_the_result_of_another_and_not_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let settings = settings(&[listener.local_addr().expect("bound")]);
    let (mut first, mut second) = (client_of(Arc::clone(&settings)), client_of(settings));
    first.write_all(BIND).await.expect("the session reads");
    let (mut backend, _) = listener.accept().await.expect("a connection");
    backend.read_exact(&mut [0; BIND.len()]).await.expect("a bind");
    let began = Instant::now();
    assert_eq!(bind(&mut second).await, ResultCode::BUSY);
    assert!(began.elapsed() >= Duration::from_secs(5));
}
