//! The sockets of the admin side: few connections, one request each, none for long.
//!
//! On `[health] address` a PROXY header may precede the request: a Network Load Balancer whose targets get one sends it
//! with its health checks too. It is skipped, since nothing there depends on who asks.

use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::traffic::{self, Window};
use super::{Control, routes};
use crate::config;
use crate::metrics::Metrics;
use crate::proxy_protocol;

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
    pub(super) host_name: String,
    token_file: ArcSwapOption<PathBuf>,
    traffic: Mutex<Window>,
}

/// Where an endpoint listens, as configured, and what it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `[admin] address`: everything; changes only with the token.
    Tcp(SocketAddr),
    /// `[admin] socket`: everything; its permissions decide.
    Unix(PathBuf),
    /// `[health] address`: `/healthz` and `/readyz` only.
    Health(SocketAddr),
}

/// A bound socket of the admin side.
#[derive(Debug)]
pub struct Endpoint {
    place: Place,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// What may come before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preface {
    Nothing,
    ProxyHeader,
}

/// The file of a Unix socket, removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

/// The admin side at work; ends when dropped.
pub struct Running {
    admin: Arc<Admin>,
    tasks: TaskTracker,
    endpoints: Vec<(Place, DropGuard)>,
    _counting: DropGuard,
}

/// Every place that is configured.
pub fn places(settings: &config::Admin, health: Option<SocketAddr>) -> Vec<Place> {
    let tcp = settings.address.map(Place::Tcp);
    let unix = settings.socket.clone().map(Place::Unix);
    [tcp, unix, health.map(Place::Health)].into_iter().flatten().collect()
}

impl Endpoint {
    /// Opens a socket there. Errors name the address.
    pub async fn bind(place: Place) -> io::Result<Self> {
        let socket = match &place {
            Place::Tcp(address) | Place::Health(address) => {
                Socket::Tcp(TcpListener::bind(address).await.map_err(|error| at(address, error))?)
            }
            Place::Unix(path) => {
                let listener = bind_unix(path).await.map_err(|error| at(path.display(), error))?;
                Socket::Unix(listener, SocketFile(path.clone()))
            }
        };
        Ok(Self { place, socket })
    }

    /// The address it has: the one it was bound to, with the port the kernel chose. A Unix socket has none.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    fn announce(&self) {
        let address = self.address().map(tracing::field::display);
        match &self.place {
            Place::Tcp(_) => info!(address, "admin listening"),
            Place::Unix(path) => info!(socket = %path.display(), "admin listening"),
            Place::Health(_) => info!(address, "health listening"),
        }
    }

    async fn serve(self, admin: Arc<Admin>) {
        match (self.socket, self.place) {
            (Socket::Tcp(listener), Place::Health(_)) => {
                accept(listener, Preface::ProxyHeader, routes::health(admin)).await;
            }
            (Socket::Tcp(listener), _) => accept(listener, Preface::Nothing, routes::tcp(admin)).await,
            (Socket::Unix(listener, _file), _) => accept(listener, Preface::Nothing, routes::unix(admin)).await,
        }
    }
}

impl Running {
    /// An admin side without endpoints yet, whose tasks are among `tasks`. It takes the totals that rates are made of.
    pub fn new(admin: Arc<Admin>, tasks: TaskTracker) -> Self {
        let stop = CancellationToken::new();
        let (counting, ended) = (Arc::clone(&admin), stop.clone());
        tasks.spawn(async move { ended.run_until_cancelled(counting.take_totals()).await });
        Self { admin, tasks, endpoints: Vec::new(), _counting: stop.drop_guard() }
    }

    /// Whether there is an endpoint at this place.
    pub fn serves(&self, place: &Place) -> bool {
        self.endpoints.iter().any(|(known, _)| known == place)
    }

    /// Serves at `places` and nowhere else: at those that are new with the endpoints of `fresh`.
    pub fn change(&mut self, token_file: Option<PathBuf>, places: &[Place], fresh: Vec<Endpoint>) {
        self.admin.token_file.store(token_file.map(Arc::new));
        self.endpoints.retain(|(place, _)| places.contains(place));
        for endpoint in fresh {
            endpoint.announce();
            let stop = CancellationToken::new();
            let (place, admin, ended) = (endpoint.place.clone(), Arc::clone(&self.admin), stop.clone());
            self.tasks.spawn(async move { ended.run_until_cancelled(endpoint.serve(admin)).await });
            self.endpoints.push((place, stop.drop_guard()));
        }
    }
}

impl Admin {
    /// An admin side over this proxy.
    pub fn new(control: Arc<dyn Control>, metrics: Arc<Metrics>) -> Arc<Self> {
        let host_name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        Arc::new(Self { control, metrics, host_name, token_file: ArcSwapOption::empty(), traffic: Mutex::default() })
    }

    /// The file whose token lets a change in over TCP. It is read anew for every change, so that a new token needs no reload.
    pub(super) fn token_file(&self) -> Option<Arc<PathBuf>> {
        self.token_file.load_full()
    }

    pub(super) fn window<T>(&self, use_it: impl FnOnce(&mut Window) -> T) -> T {
        use_it(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn take_totals(&self) {
        let started = Instant::now();
        let mut ticks = interval(traffic::INTERVAL);
        loop {
            ticks.tick().await;
            let totals = self.metrics.totals();
            self.window(|window| window.push(started.elapsed(), totals));
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A missing file is what was wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Accepts until cancelled; the connections under way then end by their own timeout.
async fn accept<L: Listener<Io: Unpin>>(mut listener: L, preface: Preface, router: Router) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let seat = Arc::clone(&seats).acquire_owned().await.expect("this semaphore is never closed");
        // Waits and tries again when the process is out of descriptors.
        let (stream, _) = listener.accept().await;
        let router = router.clone();
        tokio::spawn(async move {
            match timeout(CONNECTION_TIMEOUT, answer(stream, preface, router)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(error, "admin connection failed"),
                Err(_) => debug!("admin connection took too long"),
            }
            drop(seat);
        });
    }
}

/// Reads one request and writes its response.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    preface: Preface,
    router: Router,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let begun = match preface {
        Preface::Nothing => Vec::new(),
        Preface::ProxyHeader => proxy_protocol::skip_header(&mut stream, HEADER_TIMEOUT).await?,
    };
    let (reader, writer) = tokio::io::split(stream);
    let stream = tokio::io::join(Cursor::new(begun).chain(reader), writer);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await?;
    Ok(())
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
