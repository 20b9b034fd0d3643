//! The sockets of the admin side: few connections, one request each, none for long.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::traffic::{self, Window};
use super::{Control, routes};
use crate::config;
use crate::metrics::Metrics;

/// Connections of one endpoint at once; more wait in the kernel.
const MAX_CONNECTIONS: usize = 64;
/// One request and its response, whatever the client does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// What the routes answer from.
pub struct Admin {
    pub(super) control: Arc<dyn Control>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) host_name: String,
    traffic: Mutex<Window>,
}

/// A bound socket of the admin side.
#[derive(Debug)]
pub enum Endpoint {
    /// `[admin] address`: everything; changes only with the token.
    Tcp(TcpListener),
    /// `[admin] socket`: everything; its permissions decide.
    Unix(UnixListener, SocketFile),
    /// `[health] address`: `/healthz` and `/readyz` only.
    Health(TcpListener),
}

/// The file of a Unix socket, removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

/// Opens every socket that is configured, and says where. Errors name the address.
pub async fn bind(settings: &config::Admin, health: Option<SocketAddr>) -> io::Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    if let Some(address) = settings.address {
        let listener = bind_tcp(address).await?;
        info!(address = %listener.local_addr()?, "admin listening");
        endpoints.push(Endpoint::Tcp(listener));
    }
    if let Some(path) = &settings.socket {
        let listener = bind_unix(path).await.map_err(|error| at(path.display(), error))?;
        info!(socket = %path.display(), "admin listening");
        endpoints.push(Endpoint::Unix(listener, SocketFile(path.clone())));
    }
    if let Some(address) = health {
        let listener = bind_tcp(address).await?;
        info!(address = %listener.local_addr()?, "health listening");
        endpoints.push(Endpoint::Health(listener));
    }
    Ok(endpoints)
}

impl Admin {
    /// An admin side over this proxy. `token_file` is read anew for every change, so that a new token needs no reload.
    pub fn new(control: Arc<dyn Control>, metrics: Arc<Metrics>, token_file: Option<PathBuf>) -> Arc<Self> {
        let host_name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        Arc::new(Self { control, metrics, token_file, host_name, traffic: Mutex::default() })
    }

    /// Serves these endpoints until `stop`, and takes the totals that rates are made of.
    pub async fn run(self: Arc<Self>, endpoints: Vec<Endpoint>, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for endpoint in endpoints {
            let (admin, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(async move { stop.run_until_cancelled(serve(endpoint, admin)).await });
        }
        let started = Instant::now();
        let mut ticks = interval(traffic::INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let totals = self.metrics.totals();
            self.window(|window| window.push(started.elapsed(), totals));
        }
        tasks.join_all().await;
    }

    pub(super) fn window<T>(&self, use_it: impl FnOnce(&mut Window) -> T) -> T {
        use_it(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A missing file is what was wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn serve(endpoint: Endpoint, admin: Arc<Admin>) {
    match endpoint {
        Endpoint::Tcp(listener) => accept(listener, routes::tcp(admin)).await,
        Endpoint::Unix(listener, _file) => accept(listener, routes::unix(admin)).await,
        Endpoint::Health(listener) => accept(listener, routes::health(admin)).await,
    }
}

/// Accepts until cancelled; the connections under way then end by their own timeout.
async fn accept(mut listener: impl Listener<Io: Unpin>, router: Router) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let seat = Arc::clone(&seats).acquire_owned().await.expect("this semaphore is never closed");
        // Waits and tries again when the process is out of descriptors.
        let (stream, _) = listener.accept().await;
        let router = router.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            match timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "admin connection failed"),
                Err(_) => debug!("admin connection took too long"),
            }
            drop(seat);
        });
    }
}

async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| at(address, error))
}

/// Binds for owner and group, in the place of a socket that nobody answers any more.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    Ok(listener)
}

fn at(place: impl std::fmt::Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't listen on {place}: {error}"))
}
