//! The server's side of a TLS connection, over rustls's unbuffered API.
//!
//! rustls's buffered connections keep room for 4 KiB of records and more while nothing moves, and read no more than that
//! at a time. Here records are received in a buffer that the worker lends and sealed in another: an idle connection holds
//! neither (what that is worth: bench/README.md).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncryptError, UnbufferedStatus};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hello::{Hello, MOST_RECEIVED};
use crate::buffer::{Inbox, Outbox, Source};

/// Octets sealed at once: two records.
const MOST_SEALED: usize = 32 * 1024;
/// Octets that may wait for the rest of a record, or of a message that is spread over records, once the handshake is made: then
/// the longest message is a key update.
const MOST_UNOPENED: usize = 32 * 1024;
/// Room for them with their headers and tags, and for an alert or a key update that leaves before.
const SEALING_ROOM: usize = MOST_SEALED + 1024;

thread_local! {
    /// Where the sessions of this worker seal, one after the other.
    static SEALING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A client's connection with TLS on it.
///
/// Reading ends with `Ok` at the client's close_notify, and with `UnexpectedEof` where the transport ends without one
/// (RFC 8446 §6.1). Nothing more is taken to be written while 32 KiB wait here for the client.
pub struct ServerStream<IO> {
    io: IO,
    tls: UnbufferedServerConnection,
    /// Records received.
    incoming: Inbox,
    /// Whether a whole one may be among them.
    fresh: bool,
    /// Octets of opened records that their reader had no room for.
    opened: Opened,
    /// Records to be sent.
    sealed: Outbox,
    client_closed: bool,
    closed: bool,
}

impl<IO: Source + AsyncWrite + Unpin> ServerStream<IO> {
    /// A connection that begins with these octets of the client's.
    ///
    /// # Errors
    /// Where the configuration is unusable.
    pub(super) fn new(config: Arc<ServerConfig>, io: IO, received: Inbox) -> io::Result<Self> {
        Ok(Self {
            io,
            tls: UnbufferedServerConnection::new(config).map_err(invalid)?,
            fresh: !received.is_empty(),
            incoming: received,
            opened: Opened::default(),
            sealed: Outbox::default(),
            client_closed: false,
            closed: false,
        })
    }

    /// rustls's side of it.
    pub(super) fn connection(&self) -> &UnbufferedServerConnection {
        &self.tls
    }

    /// Takes up what the client began with.
    ///
    /// # Errors
    /// Where the handshake has failed.
    pub(super) fn answer_hello(&mut self) -> io::Result<()> {
        self.open(&mut ReadBuf::new(&mut []))
    }

    /// Whether the answer to a hello is what is to be computed next, to the second one after a HelloRetryRequest.
    pub(super) fn awaits_hello(&self) -> bool {
        match self.tls.handshake_kind() {
            None => true,
            Some(HandshakeKind::FullWithHelloRetryRequest) => self.tls.negotiated_key_exchange_group().is_none(),
            Some(HandshakeKind::Full | HandshakeKind::Resumed) => false,
        }
    }

    /// Sends what there is to send and waits for another hello, for [`Self::answer_hello`].
    ///
    /// # Errors
    /// Where the client has gone, or sends it in too many pieces.
    pub(super) async fn next_hello(&mut self) -> io::Result<()> {
        let mut hello = Hello::after(self.incoming.unread());
        poll_fn(|cx| {
            ready!(self.sealed.poll_flush(cx, &mut self.io))?;
            hello.poll_receive(cx, &mut self.incoming, &mut self.io)
        })
        .await?;
        self.fresh = true;
        Ok(())
    }

    /// Makes the handshake. The tickets of TLS 1.3 leave later, with the first data or when there is nothing to read.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.open(&mut ReadBuf::new(&mut []))?;
            let done = !self.tls.is_handshaking();
            if done && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                return Poll::Ready(Ok(()));
            }
            ready!(self.sealed.poll_flush(cx, &mut self.io))?;
            if done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx))?;
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // rustls keeps the records of a message here until it is whole, however much they are stuffed.
        let most = if self.tls.is_handshaking() { MOST_RECEIVED } else { MOST_UNOPENED };
        if self.incoming.unread().len() > most {
            let error = "the client's TLS message comes in too many pieces";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let received = self.incoming.poll_fill(cx, &mut self.io);
        match received {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the client closed the connection without TLS's close_notify",
            ))),
            Poll::Ready(Ok(_)) => {
                self.fresh = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.incoming.shrink();
                Poll::Pending
            }
        }
    }

    /// Opens the records received into `room`, and into `opened` what doesn't fit.
    fn open(&mut self, room: &mut ReadBuf<'_>) -> io::Result<()> {
        if !std::mem::take(&mut self.fresh) {
            return Ok(());
        }
        let opened = self.process(room);
        if opened.is_err() {
            self.refuse();
        }
        self.incoming.shrink();
        opened.map_err(invalid)
    }

    /// Sends the alert that explains a failure, if that can be done at once. Nothing is read or written after it.
    fn refuse(&mut self) {
        (self.client_closed, self.closed) = (true, true);
        while self.tls.wants_write() {
            let UnbufferedStatus { state, .. } = self.tls.process_tls_records(self.incoming.unread_mut());
            let Ok(ConnectionState::EncodeTlsData(record)) = state else { break };
            if queue(record, &mut self.sealed).is_err() {
                break;
            }
        }
        let _ = self.sealed.poll_flush(&mut Context::from_waker(Waker::noop()), &mut self.io);
    }

    /// Goes on until rustls waits for more records, or for something to send.
    fn process(&mut self, room: &mut ReadBuf<'_>) -> Result<(), rustls::Error> {
        loop {
            let UnbufferedStatus { mut discard, state, .. } = self.tls.process_tls_records(self.incoming.unread_mut());
            let outcome = state.and_then(|state| match state {
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        let record = record?;
                        discard += record.discard;
                        self.opened.deliver(record.payload, room);
                    }
                    Ok(true)
                }
                ConnectionState::EncodeTlsData(record) => queue(record, &mut self.sealed).map(|()| true),
                ConnectionState::TransmitTlsData(queued) => {
                    // What is queued leaves before anything sealed later.
                    queued.done();
                    Ok(true)
                }
                ConnectionState::PeerClosed => {
                    self.client_closed = true;
                    Ok(true)
                }
                // Early data, the one state left, is never offered.
                _ => Ok(false),
            });
            self.incoming.consume(discard);
            if !outcome? {
                return Ok(());
            }
        }
    }

    /// Seals what `write` writes and sends as much of it as the client takes.
    fn seal(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(WriteTraffic<'_>, &mut [u8]) -> Sealed,
    ) -> io::Result<()> {
        let UnbufferedStatus { discard, state, .. } = self.tls.process_tls_records(self.incoming.unread_mut());
        debug_assert_eq!(discard, 0, "records are opened as they come");
        let ConnectionState::WriteTraffic(traffic) = state.map_err(invalid)? else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        with_sealing_room(|sealing| {
            let length = write(traffic, sealing).map_err(io::Error::other)?;
            self.sealed.send(cx, &mut self.io, &sealing[..length]);
            Ok::<_, io::Error>(())
        })?;
        // What waited before, such as a ticket, leaves with it in one piece.
        match self.sealed.poll_flush(cx, &mut self.io) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Ok(()),
        }
    }
}

type EncodeTlsData<'a> = rustls::unbuffered::EncodeTlsData<'a, rustls::server::ServerConnectionData>;
type WriteTraffic<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::server::ServerConnectionData>;
type Sealed = Result<usize, EncryptError>;

impl<IO: Source + AsyncWrite + Unpin> AsyncRead for ServerStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = room.filled().len();
        this.opened.take(room);
        while room.filled().len() == before && room.remaining() > 0 {
            this.open(room)?;
            if room.filled().len() > before || this.client_closed {
                break;
            }
            if this.poll_receive(cx)?.is_pending() {
                // Tickets wait for no data of ours.
                ready!(this.sealed.poll_flush(cx, &mut this.io))?;
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: Source + AsyncWrite + Unpin> Source for ServerStream<IO> {
    fn is_dry(&self) -> bool {
        let waits_for_records = self.opened.is_empty() && !self.fresh && !self.client_closed;
        waits_for_records && self.sealed.is_flushed() && self.io.is_dry()
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_dry() { self.io.poll_readable(cx) } else { Poll::Ready(()) }
    }
}

impl<IO: Source + AsyncWrite + Unpin> AsyncWrite for ServerStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.sealed.len() >= MOST_SEALED {
            ready!(this.sealed.poll_flush(cx, &mut this.io))?;
        }
        let octets = &octets[..octets.len().min(MOST_SEALED)];
        this.seal(cx, |mut traffic, sealing| traffic.encrypt(octets, sealing))?;
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.sealed.poll_flush(cx, &mut this.io)
    }

    /// Sends close_notify and ends the sending side.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.closed, true) {
            this.seal(cx, |mut traffic, sealing| traffic.queue_close_notify(sealing))?;
        }
        ready!(this.sealed.poll_flush(cx, &mut this.io))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// Octets that wait for their reader.
#[derive(Default)]
struct Opened {
    octets: Vec<u8>,
    start: usize,
}

impl Opened {
    fn deliver(&mut self, octets: &[u8], room: &mut ReadBuf<'_>) {
        let (now, later) = octets.split_at(octets.len().min(room.remaining()));
        room.put_slice(now);
        self.octets.extend_from_slice(later);
    }

    fn is_empty(&self) -> bool {
        self.start == self.octets.len()
    }

    fn take(&mut self, room: &mut ReadBuf<'_>) {
        let waiting = &self.octets[self.start..];
        let count = waiting.len().min(room.remaining());
        room.put_slice(&waiting[..count]);
        self.start += count;
        if self.start == self.octets.len() {
            *self = Self::default();
        }
    }
}

/// Queues a record of rustls's own making.
fn queue(mut record: EncodeTlsData<'_>, sealed: &mut Outbox) -> Result<(), rustls::Error> {
    with_sealing_room(|sealing| {
        let length = record.encode(sealing).map_err(|error| rustls::Error::General(error.to_string()))?;
        sealed.queue(&sealing[..length]);
        Ok(())
    })
}

fn with_sealing_room<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    SEALING.with_borrow_mut(|sealing| {
        sealing.resize(SEALING_ROOM, 0);
        work(sealing)
    })
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
    use rustls::{ConnectionTrafficSecrets, ContentType};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::super::testing::*;
    use super::*;
    use crate::config::Tls;

    /// Both ends of a connection over a transport that holds `room` octets each way.
    async fn pair(room: usize, versions: Versions) -> (TlsStream<DuplexStream>, ServerStream<DuplexStream>) {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("root");
        let server = load(&Tls::new(root.issue(NAMES).write(directory.path(), "server")));
        let (near, far) = tokio::io::duplex(room);
        let connector = TlsConnector::from(client(&root, versions, None));
        let (client, server) = tokio::join!(connector.connect(NAMES[0].try_into().unwrap(), near), server.accept(far));
        (client.unwrap(), server.unwrap().0)
    }

    fn held<IO>(stream: &ServerStream<IO>) -> usize {
        stream.incoming.capacity() + stream.opened.octets.capacity() + stream.sealed.capacity()
    }

    #[tokio::test]
    async fn octets_pass_both_ways_through_a_narrow_transport_and_none_are_held_after() {
        for versions in [ONLY_12, ONLY_13] {
            for room in [100, 1 << 20] {
                let (mut client, mut server) = pair(room, versions).await;
                let sent: Vec<u8> = (0..25_000_u32).flat_map(u32::to_be_bytes).collect();
                let echo = async {
                    let mut octets = vec![0; sent.len()];
                    // Fewer at a time than a record has.
                    for part in octets.chunks_mut(1000) {
                        server.read_exact(part).await.unwrap();
                    }
                    server.write_all(&octets).await.unwrap();
                    server.flush().await.unwrap();
                    server
                };
                let mut received = vec![0; sent.len()];
                let talk = async {
                    client.write_all(&sent).await.unwrap();
                    client.flush().await.unwrap();
                    client.read_exact(&mut received).await.unwrap();
                };
                let (server, ()) = tokio::join!(echo, talk);
                assert!(received == sent, "{room}");
                assert_eq!(held(&server), 0);
            }
        }
    }

    #[tokio::test]
    async fn rule_24_an_end_without_close_notify_is_an_error() {
        let (mut client, mut server) = pair(1 << 16, BOTH).await;
        client.write_all(b"last").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last");
        // The other way is still open (RFC 8446 §6.1), until it is closed in good order too.
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"lastanswer");

        let (client, mut server) = pair(1 << 16, BOTH).await;
        drop(client);
        assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn keys_are_updated_on_demand() {
        let (mut client, mut server) = pair(1 << 16, ONLY_13).await;
        for n in 0..3 {
            client.get_mut().1.refresh_traffic_keys().unwrap();
            client.write_u8(n).await.unwrap();
            client.flush().await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), n);
            server.write_u8(n).await.unwrap();
            server.flush().await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), n);
        }
    }

    /// A message that is announced to be as long as can be, an octet of it in each record.
    #[tokio::test]
    async fn a_message_in_too_many_records_ends_the_connection() {
        let directory = tempfile::tempdir().unwrap();
        let root = Authority::root("root");
        let server = load(&Tls::new(root.issue(NAMES).write(directory.path(), "server")));
        let mut client = Arc::unwrap_or_clone(client(&root, ONLY_13, None));
        client.enable_secret_extraction = true;
        let (near, far) = tokio::io::duplex(1 << 20);
        let connector = TlsConnector::from(Arc::new(client));
        let (client, server) = tokio::join!(connector.connect(NAMES[0].try_into().unwrap(), near), server.accept(far));
        let ((mut transport, session), mut server) = (client.unwrap().into_inner(), server.unwrap().0);
        let suite = session.negotiated_cipher_suite().unwrap().tls13().unwrap();
        let (first, secrets) = session.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("the suite of the tests") };
        let mut encrypter = suite.aead_alg.encrypter(key, iv);
        for (sequence, octet) in (first..).zip([4, 0, 0xFF, 0xFF].into_iter().chain([0; 3000])) {
            let typ = ContentType::Handshake;
            let payload = OutboundChunks::Single(std::slice::from_ref(&octet));
            let plain = OutboundPlainMessage { typ, version: rustls::ProtocolVersion::TLSv1_2, payload };
            transport.write_all(&encrypter.encrypt(plain, sequence).unwrap().encode()).await.unwrap();
        }
        let read =
            tokio::time::timeout(Duration::from_secs(20), server.read_u8()).await.expect("no more is waited for");
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(held(&server) < 3 * MOST_UNOPENED, "{}", held(&server));
    }

    #[tokio::test]
    async fn a_forged_record_ends_the_connection_with_an_alert() {
        let (client, mut server) = pair(1 << 16, ONLY_13).await;
        let (mut transport, mut session) = client.into_inner();
        transport
            .write_all(&[0x17, 3, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(server.write_u8(0).await.is_err());
        let mut octets = [0; 100];
        let count = transport.read(&mut octets).await.unwrap();
        session.read_tls(&mut &octets[..count]).unwrap();
        let alert = session.process_new_packets().unwrap_err();
        assert_eq!(alert, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
    }
}
