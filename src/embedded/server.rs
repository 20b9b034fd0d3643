//! The directory on a TCP port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ldap3_proto::{LdapCodec, LdapMsg};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::conversation::{Conversation, Ending};
use super::directory::Directory;
use crate::ldap::{Envelope, OperationKind, ResultCode, envelope, reply};

/// Further connections wait in the listen backlog.
const MAX_CONNECTIONS: usize = 10_000;
const LISTEN_BACKLOG: u32 = 1024;
/// Octets. The codec's own default of 32 KiB is less than a search for a long list of names takes.
const MAX_REQUEST: usize = 1024 * 1024;
const MAX_NESTING: usize = 128;
/// What an idle connection keeps ready to read into, in octets.
const READ_CHUNK: usize = 1024;
/// Responses are written when this much has gathered.
const WRITE_CHUNK: usize = 64 * 1024;
/// What accept waits after an error such as no file descriptors left, which it would meet again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening directory. Dropping it stops it; [`stop`](Self::stop) also waits until it has.
pub struct Server {
    address: SocketAddr,
    tasks: TaskTracker,
    running: DropGuard,
}

impl Server {
    /// Serves `directory` on `address` (port 0: any free one) under the host name `name`, such as `dc1`.
    ///
    /// An address that an earlier server has just left may be taken at once. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the operating system answers to bind and listen.
    pub fn bind(address: SocketAddr, directory: Arc<Directory>, name: &str) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(LISTEN_BACKLOG)?;
        let address = listener.local_addr()?;
        let (tasks, stopped) = (TaskTracker::new(), CancellationToken::new());
        let accepting = accept(listener, directory, Arc::from(name), tasks.clone(), stopped.clone());
        tasks.spawn(stopped.clone().run_until_cancelled_owned(accepting));
        tasks.close();
        Ok(Self { address, tasks, running: stopped.drop_guard() })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and every connection at once, as a killed process would; returns when they are closed.
    pub async fn stop(self) {
        drop(self.running);
        self.tasks.wait().await;
    }
}

async fn accept(
    listener: TcpListener,
    directory: Arc<Directory>,
    name: Arc<str>,
    tasks: TaskTracker,
    stopped: CancellationToken,
) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let conversation = Conversation::new(Arc::clone(&directory), Arc::clone(&name), next_connection());
                let serving = stopped.clone().run_until_cancelled_owned(serve(stream, conversation));
                tasks.spawn(async move {
                    // Whatever ended it, a client's hasty close above all, the connection is over.
                    let _ = serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the embedded directory can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one client, request by request, until either side ends it. A client that doesn't read isn't read from.
async fn serve(mut stream: TcpStream, mut conversation: Conversation) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut inbound, mut outbound) = (BytesMut::new(), BytesMut::new());
    let notice = loop {
        let envelope = match envelope(&inbound, MAX_REQUEST) {
            Ok(Some(envelope)) if inbound.len() >= envelope.length => envelope,
            Ok(_) => {
                stream.write_all_buf(&mut outbound).await?;
                inbound.reserve(READ_CHUNK);
                if stream.read_buf(&mut inbound).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            Err(error) => break error.to_string(),
        };
        match answer(&mut conversation, inbound.split_to(envelope.length), &envelope) {
            Ok(responses) => write(&mut stream, &mut outbound, responses).await?,
            Err(Ending::Unbind) => return stream.write_all_buf(&mut outbound).await,
            Err(Ending::ProtocolError(why)) => break why.to_owned(),
        }
    };
    outbound.extend_from_slice(&reply::notice_of_disconnection(ResultCode::PROTOCOL_ERROR, &notice));
    stream.write_all_buf(&mut outbound).await?;
    stream.shutdown().await
}

/// The responses to one whole PDU. `ldap3_proto` decodes no name, password or filter value that isn't UTF-8, as in
/// `(objectGUID=\00\FF*)`: such a request gets protocolError, and the connection goes on.
fn answer(conversation: &mut Conversation, mut pdu: BytesMut, envelope: &Envelope) -> Result<Responses, Ending> {
    if let Ok(Some(request)) = codec().decode(&mut pdu) {
        return conversation.answer(request, OffsetDateTime::now_utc()).map(Responses::Decoded);
    }
    let kind =
        OperationKind::from_request_tag(envelope.tag).ok_or(Ending::ProtocolError("a client sends requests only"))?;
    let why = "the embedded directory can't read this request";
    Ok(Responses::Encoded(reply::result(kind, envelope.message_id, ResultCode::PROTOCOL_ERROR, why)))
}

enum Responses {
    Decoded(Vec<LdapMsg>),
    Encoded(Vec<u8>),
}

/// Appends the responses to `outbound` and writes what exceeds a chunk.
async fn write(stream: &mut TcpStream, outbound: &mut BytesMut, responses: Responses) -> io::Result<()> {
    match responses {
        Responses::Encoded(bytes) => outbound.extend_from_slice(&bytes),
        Responses::Decoded(messages) => {
            for message in messages {
                codec().encode(message, outbound)?;
                if outbound.len() >= WRITE_CHUNK {
                    stream.write_all_buf(outbound).await?;
                }
            }
        }
    }
    Ok(())
}

fn codec() -> LdapCodec {
    LdapCodec::new(Some(MAX_REQUEST), Some(MAX_NESTING))
}

/// Unique in the process, so that one server's paging cookie isn't valid at another.
fn next_connection() -> u64 {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
    CONNECTIONS.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
