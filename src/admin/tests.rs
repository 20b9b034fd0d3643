//! The admin side over real sockets, with a stand-in for the proxy, asked by the commands' own client.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::model::{Backend, BackendState, Session, Sessions, Snapshot, Status};
use super::*;
use crate::cli::admin_client::{AdminAddress, AdminArgs, AdminClient};
use crate::config;
use crate::metrics::Metrics;

const BACKEND: &str = "10.0.1.10:389";

/// A proxy with one backend, one session, and a list of what was asked of it.
#[derive(Default)]
struct StandIn {
    asked: Mutex<Vec<String>>,
}

impl StandIn {
    fn note(&self, asked: String) {
        self.asked.lock().expect("no test panics while holding it").push(asked);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no test panics while holding it").clone()
    }

    fn drained(&self) -> bool {
        self.asked().iter().any(|asked| asked.starts_with("drain"))
    }
}

impl Control for StandIn {
    fn snapshot(&self) -> Snapshot {
        let state = if self.drained() { BackendState::Draining } else { BackendState::Up };
        let not_ready = if self.drained() { vec!["no backend is usable".to_owned()] } else { Vec::new() };
        let backends = vec![Backend { name: BACKEND.into(), state, ..Backend::default() }];
        Snapshot { backends, not_ready, ..Snapshot::default() }
    }

    fn sessions(&self) -> Vec<Session> {
        let session = |id, backend: Option<&str>| Session {
            id,
            client: format!("10.0.9.{id}:5000"),
            started: 100 - id,
            backend: backend.map(Into::into),
            ..Session::default()
        };
        vec![session(1, Some(BACKEND)), session(2, None)]
    }

    fn drain(&self, backend: &str) -> Result<(), NotFound> {
        if backend != BACKEND {
            return Err(NotFound);
        }
        self.note(format!("drain {backend}"));
        Ok(())
    }

    fn enable(&self, backend: &str) -> Result<(), NotFound> {
        self.note(format!("enable {backend}"));
        Ok(())
    }

    fn kill(&self, session: u64) -> Result<(), NotFound> {
        if session != 1 {
            return Err(NotFound);
        }
        self.note(format!("kill {session}"));
        Ok(())
    }

    fn reload(&self) -> Reloading<'_> {
        Box::pin(async { Err(vec!["ldaps-proxy.toml:3:1: error: unknown key".to_owned()]) })
    }

    fn log_level(&self, filter: &str) -> Result<(), String> {
        self.note(format!("log-level {filter}"));
        Ok(())
    }
}

/// A running admin side; ends when dropped.
struct Running {
    proxy: Arc<StandIn>,
    tcp: SocketAddr,
    health: SocketAddr,
    folder: tempfile::TempDir,
    _side: super::Running,
}

async fn start(token: Option<&str>) -> Running {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let token_file = token.map(|token| {
        let path = folder.path().join("token");
        std::fs::write(&path, token).expect("the folder is ours");
        path
    });
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = config::Admin {
        address: Some(any),
        socket: Some(folder.path().join("admin.sock")),
        token_file: token_file.clone(),
    };
    let places = places(&settings, Some(any));
    let mut endpoints = Vec::new();
    for place in &places {
        endpoints.push(Endpoint::bind(place.clone()).await.expect("loopback has free ports"));
    }
    let addresses: Vec<_> = endpoints.iter().filter_map(Endpoint::address).collect();
    let proxy = Arc::new(StandIn::default());
    let metrics = Metrics::new();
    metrics.listener("l").connection(crate::failure::Outcome::Accepted);
    let admin = Admin::new(Arc::clone(&proxy) as Arc<dyn Control>, metrics);
    let mut side = super::Running::new(admin, TaskTracker::new());
    side.change(token_file, &places, endpoints);
    Running { proxy, tcp: addresses[0], health: addresses[1], folder, _side: side }
}

/// Calls the blocking client off the runtime.
async fn ask<T: Send + 'static>(
    address: AdminAddress,
    token_file: Option<&Path>,
    question: impl FnOnce(AdminClient) -> T + Send + 'static,
) -> T {
    let args = AdminArgs { admin: Some(address), token_file: token_file.map(Into::into) };
    let client = AdminClient::new(&args).expect("an address is given");
    tokio::task::spawn_blocking(move || question(client)).await.expect("the question doesn't panic")
}

impl Running {
    fn unix(&self) -> AdminAddress {
        AdminAddress::Unix(self.folder.path().join("admin.sock"))
    }

    fn http(&self) -> AdminAddress {
        AdminAddress::Http(self.tcp.to_string())
    }
}

fn post(client: &AdminClient, what: &str, body: Value) -> Result<Value, String> {
    client.post(&format!("/api/v1/{what}"), &body)
}

/// Sends these bytes and returns all that comes back.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("it answers and closes");
    response
}

#[tokio::test]
async fn both_sockets_show_the_proxy() {
    let running = start(None).await;
    for address in [running.unix(), running.http()] {
        let (status, sessions) = ask(address, None, |client| {
            (client.get::<Status>("/api/v1/status"), client.get::<Sessions>("/api/v1/sessions?limit=1"))
        })
        .await;
        let status = status.expect("a status");
        assert_eq!(status.snapshot.backends[0].name, BACKEND);
        assert_eq!((status.sessions, status.top_clients.len()), (2, 2));
        let sessions = sessions.expect("a list");
        assert_eq!((sessions.total, sessions.sessions.len(), sessions.sessions[0].id), (2, 1, 2));
    }
}

#[tokio::test]
async fn the_unix_socket_may_change_state() {
    let running = start(None).await;
    ask(running.unix(), None, |client| {
        assert_eq!(client.probe("/readyz"), Ok((true, "ready".into())));
        let drained = post(&client, "drain", json!({ "backend": BACKEND })).expect("it is drained");
        assert_eq!(drained[0]["state"], "draining");
        assert_eq!(client.probe("/readyz"), Ok((false, "no backend is usable".into())));
        assert_eq!(client.probe("/healthz"), Ok((true, "alive".into())));
        let unknown =
            post(&client, "drain", json!({ "backend": "10.9.9.9:389" })).expect_err("there is no such backend");
        assert!(unknown.contains("10.9.9.9:389") && unknown.contains(BACKEND), "{unknown}");
        post(&client, "kill", json!({ "session": 1 })).expect("it is ended");
        post(&client, "kill", json!({ "session": 9 })).expect_err("there is no session 9");
        let rejected = post(&client, "reload", json!({})).expect_err("the stand-in rejects");
        assert_eq!(rejected, "ldaps-proxy.toml:3:1: error: unknown key");
        post(&client, "log-level", json!({ "level": "debug" })).expect("it is set");
        assert!(post(&client, "drain", json!({ "backend": "x".repeat(5000) })).is_err(), "a body is bounded");
    })
    .await;
    assert_eq!(running.proxy.asked(), [&format!("drain {BACKEND}"), "kill 1", "log-level debug"]);
}

#[tokio::test]
async fn tcp_is_read_only_without_a_token_file() {
    let running = start(None).await;
    let refused = ask(running.http(), None, |client| post(&client, "drain", json!({ "backend": BACKEND }))).await;
    assert!(refused.is_err_and(|error| error.contains("read-only")));
    assert!(running.proxy.asked().is_empty());
}

#[tokio::test]
async fn tcp_takes_changes_with_the_token_and_from_its_own_page_only() {
    let running = start(Some("s3cret\n")).await;
    let token_file = running.folder.path().join("token");
    let drain = |client: AdminClient| post(&client, "drain", json!({ "backend": BACKEND }));
    let refused = ask(running.http(), None, drain).await;
    assert!(refused.is_err_and(|error| error.contains("Bearer")));
    let from_a_page = |origin: &str| {
        format!(
            "POST /api/v1/reload HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\nAuthorization: Bearer s3cret\r\n\r\n",
            running.tcp
        )
    };
    let foreign = raw(running.tcp, &from_a_page("http://evil.example")).await;
    assert!(foreign.starts_with("HTTP/1.1 403 "), "{foreign}");
    let own = raw(running.tcp, &from_a_page(&format!("http://{}", running.tcp))).await;
    assert!(own.starts_with("HTTP/1.1 422 "), "the stand-in rejects a reload: {own}");
    assert!(running.proxy.asked().is_empty());
    ask(running.http(), Some(&token_file), drain).await.expect("the token is right");
    assert_eq!(running.proxy.asked().len(), 1);
    // An emptied token file must not let everyone in.
    std::fs::write(&token_file, "\n").expect("the folder is ours");
    let refused = raw(running.tcp, &from_a_page(&format!("http://{}", running.tcp))).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("token file"), "{refused}");
}

#[tokio::test]
async fn the_health_address_serves_nothing_else() {
    let running = start(None).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(raw(running.health, &get("/healthz")).await.starts_with("HTTP/1.1 200 "));
    assert!(raw(running.health, &get("/readyz")).await.starts_with("HTTP/1.1 200 "));
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/drain"] {
        assert!(raw(running.health, &get(path)).await.starts_with("HTTP/1.1 404 "), "{path}");
    }
}

/// A regression test: what axum refuses by itself was no JSON.
#[tokio::test]
async fn every_refusal_says_what_is_wrong_in_one_form() {
    let running = start(Some("secret")).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret\r\n\r\n");
    let post = |headers: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /api/v1/drain HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let json = "Content-Type: application/json\r\n";
    for (request, status, says) in [
        (post(json, "nonsense"), 400, "JSON"),
        (post(json, "{}"), 422, "backend"),
        (post("", "{}"), 415, "Content-Type"),
        (post(json, &" ".repeat(5000)), 413, "limit"),
        (get("/nonsense"), 404, "Not Found"),
        (get("/api/v1/drain"), 405, "Method Not Allowed"),
        (get("/api/v1/sessions?limit=x"), 400, "limit"),
    ] {
        let answer = raw(running.tcp, &request).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains("nosniff"), "{answer}");
        assert_eq!(head.contains("allow: POST"), status == 405, "{answer}");
        let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert!(problem["error"].as_str().is_some_and(|error| error.contains(says)), "{answer}");
    }
}

#[tokio::test]
async fn the_page_and_the_metrics_are_served_and_the_page_may_load_only_its_own() {
    let running = start(None).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", running.tcp);
    let page = raw(running.tcp, &get("/")).await;
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    for asset in ["status.css", "status.js"] {
        assert!(page.contains(asset));
        assert!(raw(running.tcp, &get(&format!("/{asset}"))).await.starts_with("HTTP/1.1 200 "), "{asset}");
    }
    let metrics = raw(running.tcp, &get("/metrics")).await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4\r\n"));
    assert!(metrics.contains("\nldaps_proxy_connections_total{listener=\"l\",outcome=\"accepted\"} 1\n"));
}

#[test]
fn the_reference_has_every_path() {
    let paths = |text: &'static str, before: &str, after: char| -> BTreeSet<&'static str> {
        text.split(before)
            .skip(1)
            .filter_map(|rest| rest.split(after).next())
            .filter(|path| path.starts_with('/'))
            .collect()
    };
    let served = paths(include_str!("routes.rs"), ".route(\"", '"');
    let reference = include_str!("../../docs/admin.md");
    let told = &paths(reference, "| `GET ", '`') | &paths(reference, "| `POST ", '`');
    assert!(told.len() > 10);
    assert_eq!(told, served.into_iter().filter(|path| !path.starts_with("/status.")).collect());
}

/// DNS rebinding: a foreign page's own name is made to resolve to this address, and its browser takes us for it.
#[tokio::test]
async fn what_names_clients_is_told_only_to_who_calls_this_server_by_its_own_name() {
    let running = start(None).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: rebound.example\r\n\r\n");
    for path in ["/", "/api/v1/status", "/api/v1/sessions", "/api/v1/backends", "/api/v1/certificates"] {
        let answer = raw(running.tcp, &get(path)).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("10.0."), "{path}: {answer}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(raw(running.tcp, &get(path)).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
}

#[tokio::test]
async fn a_socket_nobody_answers_is_replaced_and_one_in_use_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("the folder is ours"));
    assert!(path.exists(), "a crashed process leaves its socket");
    let place = Place::Unix(path.clone());
    let first = Endpoint::bind(place.clone()).await.expect("the stale socket is replaced");
    let error = Endpoint::bind(place).await.expect_err("the first is alive");
    assert!(error.to_string().contains("admin.sock"), "{error}");
    drop(first);
    assert!(!path.exists(), "it is removed at the end");
}
