//! Connecting as a pool is configured, to a backend that says what it saw.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::bytes::BytesMut;

use super::*;
use crate::config::{BackendProtocol, CertificateFiles, SessionTickets, Tls};
use crate::ldap::{ResultCode, reply};
use crate::metrics::Metrics;
use crate::pool::Endpoint;
use crate::proxy_protocol::{self, Header};
use crate::tls::{Handshake, ServerTls, UnixTime};

const HOST: &str = "dc1.corp.example.com";

/// A certificate for [`HOST`] that is its own issuer, `cert.pem`, and its key.
fn server_tls(directory: &Path) -> ServerTls {
    let issued = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let certificate = CertificateFiles {
        certificate: write("cert.pem", issued.cert.pem()),
        private_key: write("key.pem", issued.signing_key.serialize_pem()).into(),
        certificate_chain: None,
        private_key_passphrase_file: None,
    };
    let settings = Tls { session_tickets: SessionTickets::All, ..Tls::new(certificate) };
    ServerTls::load(&settings, UnixTime::now()).unwrap().server
}

fn connector(directory: &Path, protocol: BackendProtocol, send_proxy_protocol: bool) -> Connector {
    let mut pool = crate::config::Pool::new("p", Vec::new());
    pool.ca_file = Some(directory.join("cert.pem"));
    (pool.protocol, pool.send_proxy_protocol) = (protocol, send_proxy_protocol);
    Connector::new(&pool).unwrap()
}

async fn backend() -> (TcpListener, Arc<crate::pool::Backend>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = Endpoint { address, host: HOST.into(), weight: 1, tier: 0, max_sessions: 0 };
    let (events, _) = mpsc::channel(1);
    let metrics = Metrics::new().backend("p", &address.to_string());
    (listener, Arc::new(crate::pool::Backend::new(&endpoint, address.to_string(), metrics, events)))
}

/// What the backend sees before LDAP: the PROXY header, StartTLS, the handshake; then it echoes an octet.
async fn greet(
    mut tcp: TcpStream,
    tls: &ServerTls,
    protocol: BackendProtocol,
    has_header: bool,
) -> (Option<Header>, Option<Handshake>) {
    let mut header = None;
    if has_header {
        header = Some(proxy_protocol::read_header(&mut tcp, Duration::from_secs(60)).await.unwrap());
    }
    if protocol == BackendProtocol::StartTls {
        let (envelope, _) = read_pdu(&mut tcp, &mut BytesMut::new(), 1024).await.unwrap();
        tcp.write_all(&reply::start_tls(envelope.message_id, ResultCode::SUCCESS, "")).await.unwrap();
    }
    if protocol == BackendProtocol::Ldap {
        let octet = tcp.read_u8().await.unwrap();
        tcp.write_all(&[octet]).await.unwrap();
        return (header, None);
    }
    let (mut stream, handshake) = tls.accept(tcp).await.unwrap();
    let octet = stream.read_u8().await.unwrap();
    stream.write_all(&[octet]).await.unwrap();
    stream.flush().await.unwrap();
    (header, Some(handshake))
}

#[tokio::test]
async fn every_protocol_with_and_without_a_proxy_header() {
    let directory = tempfile::tempdir().unwrap();
    let tls = server_tls(directory.path());
    let (listener, backend) = backend().await;
    let client: SocketAddr = "192.0.2.1:5000".parse().unwrap();
    for protocol in [BackendProtocol::Ldap, BackendProtocol::Ldaps, BackendProtocol::StartTls] {
        for has_header in [false, true] {
            let connector = connector(directory.path(), protocol, has_header);
            for (client, resumed) in [(Some(client), false), (None, true)] {
                let far = async {
                    let (tcp, _) = listener.accept().await.unwrap();
                    greet(tcp, &tls, protocol, has_header).await
                };
                let near = async {
                    let mut stream = match client {
                        Some(client) => connector.open(&backend, client).await.unwrap(),
                        None => connector.open_own(&backend).await.unwrap(),
                    };
                    assert!(stream.is_fresh());
                    stream.write_all(b"?").await.unwrap();
                    stream.flush().await.unwrap();
                    stream.read_u8().await.unwrap()
                };
                let ((header, handshake), echo) = tokio::join!(far, near);
                assert_eq!(echo, b'?');
                let expected = has_header.then(|| match client {
                    Some(client) => {
                        Header { source: Some(client), destination: Some(backend.address()), vpc_endpoint: None }
                    }
                    // LOCAL: the proxy speaks for itself.
                    None => Header::default(),
                });
                assert_eq!(header, expected);
                assert_eq!(handshake.is_some(), protocol != BackendProtocol::Ldap);
                if let Some(handshake) = handshake {
                    assert_eq!((handshake.sni.as_deref(), handshake.resumed), (Some(HOST), resumed), "{protocol:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_refused_start_tls_is_an_error_that_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let _tls = server_tls(directory.path());
    let (listener, backend) = backend().await;
    let connector = connector(directory.path(), BackendProtocol::StartTls, false);
    let far = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let (envelope, _) = read_pdu(&mut tcp, &mut BytesMut::new(), 1024).await.unwrap();
        tcp.write_all(&reply::start_tls(envelope.message_id, ResultCode::UNAVAILABLE, "no certificate")).await.unwrap();
    };
    let (result, ()) = tokio::join!(connector.open_own(&backend), far);
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "the backend refused StartTLS: unavailable (52), \"no certificate\"");
}

/// Whether a backend has answered decides what becomes of the sessions that wait for it.
#[tokio::test]
async fn a_refusal_is_told_from_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (trusted, other) = (directory.path().join("trusted"), directory.path().join("other"));
    [&trusted, &other].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let tls = server_tls(&other);
    server_tls(&trusted);
    let refused = reply::start_tls(1, ResultCode::UNAVAILABLE, "no certificate");
    let nothing = Vec::new();
    for (protocol, answer, expected) in [
        (BackendProtocol::StartTls, Some(refused), true),
        (BackendProtocol::StartTls, Some(b"HTTP/1.1 400".to_vec()), true),
        (BackendProtocol::StartTls, Some(nothing.clone()), false),
        (BackendProtocol::Ldaps, Some(b"HTTP/1.1 400".to_vec()), true),
        (BackendProtocol::Ldaps, Some(nothing), false),
        // A certificate that isn't trusted.
        (BackendProtocol::Ldaps, None, true),
    ] {
        let (listener, backend) = backend().await;
        let connector = connector(&trusted, protocol, false);
        let far = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            match &answer {
                None => drop(tls.accept(tcp).await),
                Some(answer) => {
                    tcp.write_all(answer).await.unwrap();
                    tcp.shutdown().await.unwrap();
                    // Unread octets would have the kernel reset the connection.
                    let _ = tcp.read_to_end(&mut Vec::new()).await;
                }
            }
        };
        let (opened, ()) = tokio::join!(connector.open_own(&backend), far);
        let error = opened.unwrap_err();
        assert_eq!(is_refusal(&error), expected, "{protocol:?} {answer:?} {error:?}");
        drop(listener);
        assert!(!is_refusal(&connector.open_own(&backend).await.unwrap_err()), "nobody listens");
    }
}

#[tokio::test]
async fn pdus_arrive_in_pieces_and_several_at_once() {
    let pdus = [reply::start_tls(1, ResultCode::SUCCESS, "a"), reply::start_tls(2, ResultCode::BUSY, "b")];
    let octets = pdus.concat();
    for cut in 0..octets.len() {
        let (first, second) = octets.split_at(cut);
        let (mut stream, mut buffer) = (first.chain(second), BytesMut::new());
        for (id, pdu) in (1..).zip(&pdus) {
            let (envelope, read) = read_pdu(&mut stream, &mut buffer, 1024).await.unwrap();
            assert_eq!((envelope.message_id, &read[..]), (id, &pdu[..]));
        }
        let end = read_pdu(&mut stream, &mut buffer, 1024).await.unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    assert!(read_pdu(&mut &octets[..], &mut BytesMut::new(), 10).await.is_err(), "a limit is a limit");
}

#[tokio::test]
async fn a_goodbye_leaves_with_the_end_of_the_connection() {
    let (listener, backend) = backend().await;
    let pool = crate::config::Pool::new("p", Vec::new());
    let mut stream = Connector::new(&pool).unwrap().open_own(&backend).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    stream.write_all(b"before").await.unwrap();
    stream.say_goodbye();
    stream.write_all(b" goodbye").await.unwrap();
    let Stream::Plain(tcp) = stream else { unreachable!() };
    assert!(socket2::SockRef::from(&tcp).tcp_cork().unwrap());
    drop(tcp);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"before goodbye");
}

/// What a host that vanishes is noticed by when no probe asks: TCP_USER_TIMEOUT for what was sent, keepalive for the rest.
#[tokio::test]
async fn connections_notice_that_their_host_has_vanished() {
    let (_listener, backend) = backend().await;
    let pool = crate::config::Pool::new("p", Vec::new());
    let Stream::Plain(tcp) = Connector::new(&pool).unwrap().open_own(&backend).await.unwrap() else { unreachable!() };
    let socket = socket2::SockRef::from(&tcp);
    assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
}
