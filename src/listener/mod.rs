//! Accepting connections: bind, limits, back-off.

mod addresses;
mod admission;
mod door;
mod turns;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use addresses::Addresses;
pub use admission::Admission;
pub use door::{Door, House, Keys};

/// Connections that may wait in the kernel; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// An idle client is asked whether it is still there this often. What stands between forgets connections that are silent for
/// longer, and tells neither side: Amazon's balancers after 350 s unless told otherwise.
const KEEPALIVE_TIME: Duration = Duration::from_secs(300);
/// Without an answer it is asked again after this long, nine times by Linux' default.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Pauses after an accept that failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Opens a listening socket, with TCP_NODELAY for what it accepts.
///
/// # Errors
/// Those of the kernel, with the address in them.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        listen(&socket)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// Makes a bound socket listen as ours do. What it accepts inherits its options.
pub(crate) fn listen(socket: &Socket) -> io::Result<()> {
    // Without it, answers wait for acknowledgements.
    socket.set_tcp_nodelay(true)?;
    // A client's hello is answered at once: its acknowledgement travels with ours, one segment fewer a session.
    #[cfg(target_os = "linux")]
    socket.set_tcp_quickack(false)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL))?;
    socket.listen(BACKLOG)
}

/// Accepts until `stop`. Nothing that happens to one connection ends it.
pub async fn accept(listener: Arc<TcpListener>, door: Arc<Door>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((tcp, peer)) => door.knock(tcp, canonical(peer)),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                door.accept_failed(&error);
                // The connection stays in the kernel's queue; until something closes, another try would fail as well.
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// The peer gave up before we took it: nothing is wrong with us.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// The address with an IPv4-mapped one as IPv4, which is how people write trust lists and read logs.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    /// An idle client behind a balancer that forgets it after 350 s would wait for ever for what it asks next.
    #[tokio::test]
    async fn clients_are_kept_alive() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let (_client, (accepted, _)) = (client.expect("it listens"), accepted.expect("it accepts"));
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().expect("an option"));
        let time = socket.tcp_keepalive_time().expect("an option");
        assert_eq!(time, KEEPALIVE_TIME);
        assert!(time + KEEPALIVE_INTERVAL < Duration::from_secs(350), "a lost probe is repeated in time");
    }
}
