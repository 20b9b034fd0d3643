//! One live connection to a backend.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::pool::{Backend, Seat};

/// A vanished host is noticed after this long without an answer to what we sent (TCP_USER_TIMEOUT).
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(20);
/// An idle connection is asked whether its host is still there this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);

/// A live connection to a backend and the seat it holds there.
#[derive(Debug)]
pub struct Upstream {
    /// The bytes.
    pub stream: Stream,
    seat: Seat,
}

impl Upstream {
    pub(crate) fn new(stream: Stream, seat: Seat) -> Self {
        Self { stream, seat }
    }

    /// The backend at the other end.
    pub fn backend(&self) -> &Arc<Backend> {
        self.seat.backend()
    }
}

/// How the connections of one pool are opened.
#[derive(Debug, Clone, Default)]
pub struct Connector {}

impl Connector {
    /// Connects to `backend`, ready for the first PDU. `client` is announced where the pool sends PROXY headers.
    pub async fn open(&self, backend: &Backend, _client: SocketAddr) -> io::Result<Stream> {
        let tcp = TcpStream::connect(backend.address()).await?;
        prepare(&tcp)?;
        Ok(Stream::Plain(tcp))
    }
}

fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_INTERVAL / 6))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
    Ok(())
}

/// The transport to a backend.
#[derive(Debug)]
pub enum Stream {
    /// Cleartext LDAP.
    Plain(TcpStream),
    /// LDAPS, or StartTLS after its handshake.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
