//! Opening a connection to a backend, as its pool is configured: TCP, PROXY header, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use super::{Stream, start_tls};
use crate::config::{self, BackendProtocol};
use crate::pool::Backend;
use crate::proxy_protocol;
use crate::tls::{Finding, UpstreamTls};

/// A vanished host is noticed after this long without an answer to what we sent (TCP_USER_TIMEOUT).
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(20);
/// An idle connection is asked whether its host is still there this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);

/// How the connections of one pool are opened. TLS sessions are resumed from one connection to the next.
#[derive(Debug)]
pub struct Connector {
    /// None where the protocol is `ldap`. Shared by all pools that were the same one before a reload.
    tls: Option<Arc<ArcSwap<UpstreamTls>>>,
    start_tls: bool,
    send_proxy_protocol: bool,
    #[cfg(fuzzing)]
    dial: Option<Dial>,
}

/// Connects to a backend in memory.
#[cfg(fuzzing)]
pub type Dial = fn(SocketAddr) -> io::Result<crate::pipe::Pipe>;

impl Connector {
    /// A connector as `[pools.NAME]` describes it. Reads `ca_file` or the system's roots where TLS needs them.
    ///
    /// # Errors
    /// The trust anchors can't be read, or `server_name` is no name.
    pub fn new(pool: &config::Pool) -> Result<Self, Finding> {
        let tls = match pool.protocol {
            BackendProtocol::Ldap => None,
            BackendProtocol::Ldaps | BackendProtocol::StartTls => {
                Some(Arc::new(ArcSwap::from_pointee(UpstreamTls::new(pool)?)))
            }
        };
        Ok(Self {
            tls,
            start_tls: pool.protocol == BackendProtocol::StartTls,
            send_proxy_protocol: pool.send_proxy_protocol,
            #[cfg(fuzzing)]
            dial: None,
        })
    }

    /// A connector without a network, for the fuzzer.
    #[cfg(fuzzing)]
    pub fn in_memory(dial: Dial) -> Self {
        Self { tls: None, start_tls: false, send_proxy_protocol: false, dial: Some(dial) }
    }

    /// Whether `ca_file` held the same for both, as far as both need it.
    pub fn trusts_as(&self, other: &Self) -> bool {
        self.tls.iter().zip(&other.tls).all(|(tls, other)| tls.load().trusts_as(&other.load()))
    }

    /// Has sessions that go on with the connector of `before`, the same pool as it was, trust from now on what this one does.
    pub fn succeed(&mut self, before: &Self) {
        if let (Some(tls), Some(known)) = (&mut self.tls, &before.tls) {
            known.store(tls.load_full());
            *tls = Arc::clone(known);
        }
    }

    /// Connects to `backend`, ready for the first PDU. `client` is announced where the pool sends PROXY headers. Put a
    /// timeout around it: it has none.
    ///
    /// # Errors
    /// What kept it from connecting, worded for an operator.
    pub async fn open(&self, backend: &Backend, client: SocketAddr) -> io::Result<Stream> {
        self.connect(backend, Some(client)).await
    }

    /// Connects to `backend` on the proxy's own behalf, for a probe: a PROXY header says `LOCAL`.
    ///
    /// # Errors
    /// As [`Connector::open`].
    pub async fn open_own(&self, backend: &Backend) -> io::Result<Stream> {
        self.connect(backend, None).await
    }

    /// Whether a connection can be opened before it is known for whom.
    pub(crate) fn is_same_for_all_clients(&self) -> bool {
        !self.send_proxy_protocol
    }

    /// Connects to `backend` by TCP and no further, for the `tcp` probe.
    pub(crate) async fn reach(&self, backend: &Backend, client: Option<SocketAddr>) -> io::Result<TcpStream> {
        let socket = if backend.address().is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        prepare(&socket)?;
        let mut tcp = socket.connect(backend.address()).await?;
        if self.send_proxy_protocol {
            let mut header = Vec::with_capacity(64);
            match client {
                Some(client) => proxy_protocol::write_v2(client, backend.address(), &mut header),
                None => proxy_protocol::write_v2_local(&mut header),
            }
            tcp.write_all(&header).await?;
        }
        Ok(tcp)
    }

    async fn connect(&self, backend: &Backend, client: Option<SocketAddr>) -> io::Result<Stream> {
        #[cfg(fuzzing)]
        if let Some(dial) = self.dial {
            return dial(backend.address()).map(Stream::Memory);
        }
        let mut tcp = self.reach(backend, client).await?;
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(tcp)) };
        if self.start_tls {
            start_tls::request(&mut tcp).await?;
        }
        Ok(Stream::Tls(Box::new(tls.load_full().connect(backend.host(), tcp).await?)))
    }
}

/// Whether connecting failed for want of descriptors, ports or memory here, which says nothing of the backend.
pub fn is_our_own(error: &io::Error) -> bool {
    let own = [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| own.contains(&code))
}

/// Whether connecting failed by what the backend said, or by what we think of it: it refused StartTLS, its certificate isn't
/// trusted, it speaks no TLS. Others failed for want of an answer.
pub fn is_refusal(error: &io::Error) -> bool {
    // TLS has the first kind, the second is our own word for an answer that won't do.
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Other)
}

fn prepare(socket: &TcpSocket) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_INTERVAL / 6))?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
        // Whoever connects has something to say: the handshake's last ACK travels with it, two segments fewer a session.
        socket.set_tcp_quickack(false)?;
    }
    Ok(())
}
