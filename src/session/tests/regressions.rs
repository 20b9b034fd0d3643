//! What once went wrong: one session before one backend, whose part the test plays itself.

mod backends;
mod endings;
mod identities;
mod turns;

use super::*;
use crate::pool::Backend;

/// A search, in one piece, whose answer the client doesn't wait for.
const SEARCH: Send = Send { kind: Kind::Search, cut: 80, wait: false };
/// Octets of a request that the sockets to a backend don't hold.
const LARGER_THAN_SOCKETS: usize = 15 << 20;

struct Stage {
    /// The backend's.
    listener: TcpListener,
    client: Client,
    session: tokio::task::JoinHandle<Served<Pipe>>,
    registry: Arc<Registry>,
    backend: Arc<Backend>,
}

impl Stage {
    /// `pipe` octets are on their way to and from the client at most.
    async fn set(pipe: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut settings = Arc::into_inner(settings(pool(&Arc::default()).await)).expect("nobody else has it");
        settings.pool.now().admit(&[Endpoint {
            address,
            host: "127.0.0.1".into(),
            weight: 1,
            tier: 0,
            max_sessions: 0,
        }]);
        change(&mut settings);
        let backend = Arc::clone(&settings.pool.now().backends()[0]);
        let registry = Arc::new(Registry::default());
        let (near, far) = duplex(pipe);
        let entry = registry.enter(([127, 0, 0, 1], 1000).into(), "l".into());
        let session =
            tokio::spawn(Session::new(Arc::new(settings), entry, Pipe::from(far), StartTls::Established).serve());
        Self { listener, client: Client::new("client", near), session, registry, backend }
    }

    /// The connection that the session opens next, once a request has arrived there.
    async fn asked(&self) -> TcpStream {
        let (mut upstream, _) = self.listener.accept().await.expect("the session opens its upstream");
        arrives(&mut upstream).await;
        upstream
    }

    /// Ends it, after no more connections than were accepted.
    fn nobody_comes(self) {
        let another = self.listener.into_std().expect("a socket").accept();
        assert_eq!(another.expect_err("nothing more to send").kind(), std::io::ErrorKind::WouldBlock);
        self.session.abort();
    }

    /// The session's upstream, once its client has bound.
    async fn bound(&mut self) -> TcpStream {
        self.client.send(Send { kind: Kind::Bind, ..SEARCH }).await;
        let mut upstream = self.asked().await;
        let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
        upstream.write_all(&success).await.expect("a socket");
        self.client.read_answers().await;
        upstream
    }

    /// The next upstream of a session that has bound, once its bind has been replayed there.
    async fn asked_again(&self) -> TcpStream {
        let (mut upstream, _) = self.listener.accept().await.expect("the session opens its upstream");
        assert_eq!(tags(&arrives(&mut upstream).await), [BIND_REQUEST]);
        let success = ldap::reply::result(OperationKind::Bind, 1, ldap::ResultCode::SUCCESS, "");
        upstream.write_all(&success).await.expect("a socket");
        upstream
    }
}

/// The next request's octets, or their beginning.
async fn arrives(upstream: &mut TcpStream) -> Vec<u8> {
    let mut octets = vec![0; 200];
    let count = upstream.read(&mut octets).await.expect("a request arrives");
    assert!(count > 0, "a request arrives");
    octets.truncate(count);
    octets
}

const BIND_REQUEST: u8 = 0x60;
const SEARCH_REQUEST: u8 = 0x63;

/// What the requests in these octets ask for.
fn tags(mut octets: &[u8]) -> Vec<u8> {
    let mut tags = Vec::new();
    while let Some(envelope) = ldap::envelope(octets, usize::MAX).expect("well-formed") {
        tags.push(envelope.tag);
        octets = octets.get(envelope.length..).unwrap_or_default();
    }
    tags
}

fn admit_larger_than_sockets(settings: &mut Settings) {
    settings.limits.request_size_anonymous = 2 * LARGER_THAN_SOCKETS;
    settings.limits.request_size = 2 * LARGER_THAN_SOCKETS;
}

/// A request of this operation, filled with what doesn't matter.
fn larger_than_sockets(id: u8, tag: u8) -> Vec<u8> {
    let length = |octets: usize| u32::try_from(octets).expect("32 bits").to_be_bytes();
    let whole = length(LARGER_THAN_SOCKETS + 9);
    let operation = length(LARGER_THAN_SOCKETS);
    let head = [&[0x30, 0x84][..], &whole, &[0x02, 1, id, tag, 0x84], &operation].concat();
    [head, vec![0; LARGER_THAN_SOCKETS]].concat()
}

fn read_only() -> Policy {
    Policy::new(&config::Policy { read_only: true, ..config::Policy::default() }).expect("it names no DN")
}
