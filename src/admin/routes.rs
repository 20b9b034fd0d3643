//! What is served where.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::to_bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::model::{self, Backend, Certificate, Sessions, Status};
use super::serve::Admin;
use super::{NotFound, access, page};
use crate::metrics::CONTENT_TYPE;

/// The largest request body: a name or a log filter.
const MAX_BODY_BYTES: usize = 4096;
/// Rows in the lists of the busiest.
const TOP: usize = 10;
/// Sessions a request gets if it doesn't say.
const DEFAULT_SESSIONS: usize = 1000;

type Shared = State<Arc<Admin>>;

/// Everything, as far as [`access`] allows.
pub(super) fn tcp(admin: Arc<Admin>) -> Router {
    let changes = changes().route_layer(middleware::from_fn_with_state(Arc::clone(&admin), authorize));
    let reads = reads().route_layer(middleware::from_fn_with_state(Arc::clone(&admin), authorize_reading));
    finish(reads.merge(anonymous()).merge(changes), admin)
}

/// Everything: whoever may open the socket may change state.
pub(super) fn unix(admin: Arc<Admin>) -> Router {
    finish(reads().merge(anonymous()).merge(changes()), admin)
}

/// For load balancers and kubelets.
pub(super) fn health(admin: Arc<Admin>) -> Router {
    finish(health_routes(), admin)
}

fn health_routes() -> Router<Arc<Admin>> {
    Router::new().route("/healthz", get("alive\n")).route("/readyz", get(readyz))
}

/// What names no client.
fn anonymous() -> Router<Arc<Admin>> {
    health_routes().route("/metrics", get(metrics))
}

fn reads() -> Router<Arc<Admin>> {
    Router::new()
        .route("/", get(status_page))
        .route("/status.css", get(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::CSS)))
        .route("/status.js", get(([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], page::JAVASCRIPT)))
        .route("/api/v1/status", get(async |State(admin): Shared| Json(status(&admin))))
        .route("/api/v1/sessions", get(sessions))
        .route("/api/v1/backends", get(backends))
        .route("/api/v1/certificates", get(certificates))
}

fn changes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/v1/drain", post(drain))
        .route("/api/v1/enable", post(enable))
        .route("/api/v1/kill", post(kill))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/log-level", post(log_level))
}

fn finish(router: Router<Arc<Admin>>, admin: Arc<Admin>) -> Router {
    router
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::map_response(explain))
        .layer(middleware::map_response(harden))
        .with_state(admin)
}

async fn metrics(State(admin): Shared) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], admin.metrics.render()).into_response()
}

async fn readyz(State(admin): Shared) -> Response {
    let reasons = admin.control.snapshot().not_ready;
    if reasons.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
    }
}

async fn status_page(State(admin): Shared) -> Response {
    Html(page::render(&status(&admin), admin.token_file().is_some())).into_response()
}

async fn backends(State(admin): Shared) -> Json<Vec<Backend>> {
    Json(admin.control.snapshot().backends)
}

async fn certificates(State(admin): Shared) -> Json<Vec<Certificate>> {
    Json(admin.control.snapshot().certificates)
}

#[derive(Deserialize)]
struct SessionsQuery {
    limit: Option<usize>,
    backend: Option<String>,
}

async fn sessions(State(admin): Shared, Query(query): Query<SessionsQuery>) -> Json<Sessions> {
    let mut sessions = admin.control.sessions();
    let total = sessions.len();
    if let Some(name) = &query.backend {
        sessions.retain(|session| session.backend.as_ref() == Some(name));
    }
    sessions.sort_by_key(|session| (session.started, session.id));
    sessions.truncate(query.limit.unwrap_or(DEFAULT_SESSIONS));
    Json(Sessions { now: now(), total, sessions })
}

#[derive(Deserialize)]
struct BackendName {
    backend: String,
}

async fn drain(State(admin): Shared, Json(BackendName { backend }): Json<BackendName>) -> Answer<Vec<Backend>> {
    admin.control.drain(&backend).map_err(|NotFound| no_backend(&admin, &backend))?;
    Ok(Json(called(&admin, &backend)))
}

async fn enable(State(admin): Shared, Json(BackendName { backend }): Json<BackendName>) -> Answer<Vec<Backend>> {
    admin.control.enable(&backend).map_err(|NotFound| no_backend(&admin, &backend))?;
    Ok(Json(called(&admin, &backend)))
}

#[derive(Deserialize)]
struct SessionId {
    session: u64,
}

async fn kill(State(admin): Shared, Json(SessionId { session }): Json<SessionId>) -> Answer<Value> {
    admin
        .control
        .kill(session)
        .map_err(|NotFound| Problem::new(StatusCode::NOT_FOUND, format!("there is no session {session}")))?;
    info!(session, "ended by an operator");
    Ok(Json(json!({ "session": session })))
}

#[derive(Serialize)]
struct Changes {
    changes: Vec<String>,
}

async fn reload(State(admin): Shared) -> Answer<Changes> {
    match admin.control.reload().await {
        Ok(changes) => Ok(Json(Changes { changes })),
        Err(problems) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, problems.join("\n"))),
    }
}

#[derive(Serialize, Deserialize)]
struct LogLevel {
    level: String,
}

async fn log_level(State(admin): Shared, Json(asked): Json<LogLevel>) -> Answer<LogLevel> {
    admin.control.log_level(&asked.level).map_err(|problem| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, problem))?;
    info!(level = asked.level, "log level set by an operator");
    Ok(Json(asked))
}

type Answer<T> = Result<Json<T>, Problem>;

/// An answer that says what is wrong: `{"error": "…"}`.
struct Problem(StatusCode, String);

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self(status, error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

fn no_backend(admin: &Admin, asked: &str) -> Problem {
    let known: Vec<_> = admin.control.snapshot().backends.into_iter().map(|backend| backend.name).collect();
    Problem::new(StatusCode::NOT_FOUND, format!("there is no backend {asked:?}; there are: {}", known.join(", ")))
}

/// The backends meant by this name: as many as pools share it.
fn called(admin: &Admin, name: &str) -> Vec<Backend> {
    admin.control.snapshot().backends.into_iter().filter(|backend| backend.is_called(name)).collect()
}

fn status(admin: &Admin) -> Status {
    let sessions = admin.control.sessions();
    let (top_clients, top_bind_names) = model::busiest(&sessions, TOP);
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        now: now(),
        snapshot: admin.control.snapshot(),
        sessions: sessions.len(),
        traffic: admin.window(|window| window.traffic()),
        tls_versions: admin.metrics.tls_versions(),
        refusals: admin.metrics.refusals.nonzero(),
        failovers: admin.metrics.failovers.nonzero(),
        top_clients,
        top_bind_names,
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn authorize(State(admin): Shared, request: Request, next: Next) -> Response {
    let token = match admin.token_file().map(|file| read_token(&file)).transpose() {
        Ok(token) => token,
        Err(error) => {
            warn!(%error, "the admin token can't be read");
            let problem = "the token file can't be read, see the log";
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem).into_response();
        }
    };
    match access::authorize(request.headers(), token.as_ref().map(|token| token.as_bytes()), &admin.host_name) {
        Ok(()) => next.run(request).await,
        Err(denied) => deny(&request, denied),
    }
}

async fn authorize_reading(State(admin): Shared, request: Request, next: Next) -> Response {
    match access::authorize_reading(request.headers(), &admin.host_name) {
        Ok(()) => next.run(request).await,
        Err(denied) => deny(&request, denied),
    }
}

fn deny(request: &Request, denied: access::Denied) -> Response {
    warn!(path = request.uri().path(), why = ?denied, "admin request denied");
    let (status, what_to_do) = denied.response();
    Problem::new(status, what_to_do).into_response()
}

/// The token in a file, its first line. An empty one would let anyone in, and is an error.
pub fn read_token(path: &std::path::Path) -> std::io::Result<Zeroizing<String>> {
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{} is empty", path.display())));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// What axum itself refuses, as a bad body or an unknown path, in the form of our own answers.
async fn explain(mut response: Response) -> Response {
    let is_ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_ours || !response.status().is_client_error() {
        return response;
    }
    let body = std::mem::take(response.body_mut());
    let text = to_bytes(body, MAX_BODY_BYTES).await.unwrap_or_default();
    let reason = response.status().canonical_reason().unwrap_or("refused");
    let error = if text.is_empty() { reason.into() } else { String::from_utf8_lossy(&text) };
    let mut explained = Problem::new(response.status(), error).into_response();
    if let Some(methods) = response.headers_mut().remove(header::ALLOW) {
        explained.headers_mut().insert(header::ALLOW, methods);
    }
    explained
}

/// Nothing here is for caches, frames or other sites, and the page needs only its own style and script.
async fn harden(mut response: Response) -> Response {
    const HEADERS: [(header::HeaderName, &str); 4] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
