//! Opening an upstream for a session: connect, and bind again as who the session is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tokio_util::bytes::BytesMut;

use super::operations::KeptBind;
use super::replay::ReplayGuard;
use crate::ldap::{self, Request, Response, ResultCode};
use crate::pool::{EventKind, Left, NoBackend, Pool, patiently};
use crate::upstream::{Stream, Upstream, read_pdu};

/// What to open an upstream for.
pub(super) struct Establish {
    pub pool: Arc<Pool>,
    pub guard: Arc<ReplayGuard>,
    pub client: SocketAddr,
    /// The backend the session comes from.
    pub left: Option<Left>,
    /// The bind to repeat, if the session is bound.
    pub credential: Option<KeptBind>,
}

/// Why there is no upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EstablishError {
    /// None could be reached.
    NoBackend(NoBackend),
    /// The session's bind is no longer accepted. `None` where another session has found that out.
    ReplayRefused(Option<ResultCode>),
}

impl From<NoBackend> for EstablishError {
    fn from(error: NoBackend) -> Self {
        Self::NoBackend(error)
    }
}

impl Establish {
    /// Opens the upstream. Takes little longer than the pool's connect budget, unless probes say that the backend works
    /// and is only slow: the survivor of two, to which all sessions of the other come at once.
    pub(super) async fn run(self) -> Result<Upstream, EstablishError> {
        let Self { pool, guard, client, mut left, credential } = self;
        let Some(credential) = credential else { return Ok(pool.connect(client, left).await?) };
        let mut deadline = Instant::now() + pool.settings().connect_budget;
        let mut attempts = Vec::new();
        let mut queued = Duration::ZERO;
        // Who waits for another session's trial waits no longer than for a backend of its own.
        let one_works = || pool.backends().iter().any(|backend| pool.vouches_for(backend));
        let Some(permit) = patiently(deadline, one_works, guard.permit(&credential)).await else {
            return Err(NoBackend::unreachable(attempts).into());
        };
        let permit = permit.map_err(|_| EstablishError::ReplayRefused(None))?;
        loop {
            let mut upstream = pool.connect(client, left).await?;
            deadline += upstream.queued;
            queued += upstream.queued;
            upstream.queued = queued;
            let backend = Arc::clone(upstream.backend());
            let works = || pool.vouches_for(&backend);
            let failure = match patiently(deadline, works, bind(&mut upstream.stream, &credential)).await {
                Some(Ok(ResultCode::SUCCESS)) => {
                    upstream.heard();
                    permit.accepted();
                    return Ok(upstream);
                }
                Some(Ok(code @ (ResultCode::BUSY | ResultCode::UNAVAILABLE))) => {
                    format!("the bind was answered {code}")
                }
                Some(Ok(code)) => {
                    // Any other code may be this backend's own trouble: it proves nothing against the password.
                    if code == ResultCode::INVALID_CREDENTIALS {
                        permit.refused();
                    }
                    return Err(EstablishError::ReplayRefused(Some(code)));
                }
                Some(Err(error)) => error.to_string(),
                None => "the bind was not answered in time".to_owned(),
            };
            backend.report(client.ip(), EventKind::Lost { in_flight: 1 });
            attempts.push((backend.name().to_owned(), failure));
            if Instant::now() >= deadline || attempts.len() > pool.backends().len() {
                return Err(NoBackend::unreachable(attempts).into());
            }
            left = Some(Left::Lost(backend));
        }
    }
}

/// Sends a BindRequest on a fresh upstream and awaits its response, which the client never sees.
async fn bind(stream: &mut Stream, request: &KeptBind) -> io::Result<ResultCode> {
    stream.write_all(request.pdu()).await?;
    stream.flush().await?;
    let id = ldap::envelope(request.pdu(), usize::MAX)
        .ok()
        .flatten()
        .and_then(|envelope| Request::new(request.pdu(), envelope))
        .map(|request| request.message_id());
    let mut buffer = BytesMut::new();
    let (envelope, pdu) = read_pdu(stream, &mut buffer, MOST_BIND_RESPONSE).await?;
    match Response::new(&pdu, envelope).and_then(|response| response.result()) {
        Some(result) if Some(envelope.message_id) == id => Ok(result.code),
        _ => Err(io::Error::other("the backend answered the bind with something else")),
    }
}

/// Octets a bind's response may have.
const MOST_BIND_RESPONSE: usize = 64 * 1024;
