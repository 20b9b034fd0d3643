//! The bytes to and from a backend, with TLS or without.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::Source;

/// The transport to a backend.
#[derive(Debug)]
pub enum Stream {
    /// Cleartext LDAP.
    Plain(TcpStream),
    /// LDAPS, or StartTLS after its handshake.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// A pipe to the fuzzer.
    #[cfg(fuzzing)]
    Memory(crate::pipe::Pipe),
}

impl Stream {
    /// Whether a connection on which nothing was asked is still good: open, and silent. A backend that closes says so
    /// with an end of file, before which it may send a notice of disconnection.
    pub(crate) fn is_fresh(&mut self) -> bool {
        let mut octet = [0];
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(self).poll_read(&mut context, &mut ReadBuf::new(&mut octet)).is_pending()
    }

    /// What is written from now on leaves with the end of the connection, which must come at once: one segment fewer.
    pub(crate) fn say_goodbye(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Plain(tcp) = self {
            // A goodbye in two segments is as good.
            let _ = SockRef::from(tcp).set_tcp_cork(true);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            #[cfg(fuzzing)]
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Source for Stream {
    fn is_dry(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_dry(),
            // It may have opened records that nobody has read.
            Self::Tls(_) => false,
            #[cfg(fuzzing)]
            Self::Memory(stream) => stream.is_dry(),
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(stream) => stream.poll_readable(cx),
            Self::Tls(_) => Poll::Ready(()),
            #[cfg(fuzzing)]
            Self::Memory(stream) => stream.poll_readable(cx),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(fuzzing)]
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(fuzzing)]
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(fuzzing)]
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
