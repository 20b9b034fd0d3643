//! The session against a model: whatever clients send, backends answer and connections do, every request gets exactly one
//! final answer or the session ends with a notice; no response reaches another session; no octet is lost, repeated or
//! reordered; no write is executed twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapBindResponse, LdapCompareRequest, LdapDerefAliases, LdapFilter, LdapModify,
    LdapModifyRequest, LdapModifyType, LdapMsg, LdapOp, LdapPartialAttribute, LdapResult, LdapResultCode,
    LdapSearchRequest, LdapSearchResultEntry, LdapSearchScope,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::bytes::{Buf as _, BytesMut};
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::*;
use crate::config;
use crate::ldap::{self, OperationKind, ResponseKind};
use crate::pipe::Pipe;
use crate::pool::{Endpoint, Health, Pool};
use crate::upstream::Connector;

mod regressions;

/// A request a client sends, and how its octets are cut.
#[derive(Debug, Clone, Copy)]
struct Send {
    kind: Kind,
    cut: usize,
    /// Whether the client waits for all answers before it goes on.
    wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Search,
    Compare,
    Modify,
    Bind,
    Abandon,
}

/// What a backend does with a request it has received.
#[derive(Debug, Clone, Copy)]
enum React {
    /// Entries, then the result.
    Answer { entries: u8, size: u16 },
    /// Entries, then silence and the end of the connection.
    Close { entries: u8, size: u16 },
    /// A notice of disconnection with `unavailable`, then the end.
    Notice,
}

fn sends() -> impl Strategy<Value = Vec<Send>> {
    let kind = prop_oneof![
        6 => Just(Kind::Search),
        2 => Just(Kind::Compare),
        2 => Just(Kind::Modify),
        2 => Just(Kind::Bind),
        1 => Just(Kind::Abandon),
    ];
    let send = (kind, 1_usize..80, any::<bool>()).prop_map(|(kind, cut, wait)| Send { kind, cut, wait });
    prop::collection::vec(send, 1..25)
}

fn reactions() -> impl Strategy<Value = Vec<React>> {
    // Sizes around those at which a response passes to the client before it is whole.
    let size = prop_oneof![8 => 0_u16..300, 1 => 30_000_u16..40_000];
    let react = prop_oneof![
        8 => (0_u8..5, size.clone()).prop_map(|(entries, size)| React::Answer { entries, size }),
        1 => (0_u8..3, size).prop_map(|(entries, size)| React::Close { entries, size }),
        1 => Just(React::Notice),
    ];
    prop::collection::vec(react, 0..40)
}

/// What all backends share: what to do next, and what they have done.
#[derive(Default)]
struct Backends {
    reactions: Mutex<VecDeque<React>>,
    writes: Mutex<BTreeMap<String, usize>>,
}

impl Backends {
    fn next(&self) -> React {
        let answer = React::Answer { entries: 1, size: 10 };
        self.reactions.lock().expect("no panic under the lock").pop_front().unwrap_or(answer)
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&self).serve(stream));
        }
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut codec = LdapCodec::new(Some(1 << 20), None);
        let mut received = BytesMut::new();
        loop {
            while let Some(message) = codec.decode(&mut received).expect("the proxy forwards only whole, good PDUs") {
                if self.react(message, &mut codec, &mut stream).await.is_none() {
                    return;
                }
            }
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
        }
    }

    /// `None` ends the connection.
    async fn react(&self, message: LdapMsg, codec: &mut LdapCodec, stream: &mut TcpStream) -> Option<()> {
        let LdapMsg { msgid, op, .. } = message;
        let (name, done) = match op {
            LdapOp::SearchRequest(search) => (search.base, LdapOp::SearchResultDone(success())),
            LdapOp::CompareRequest(compare) => (compare.dn, LdapOp::CompareResult(success())),
            LdapOp::ModifyRequest(modify) => {
                *self.writes.lock().expect("no panic under the lock").entry(modify.dn.clone()).or_default() += 1;
                (modify.dn, LdapOp::ModifyResponse(success()))
            }
            LdapOp::BindRequest(bind) => {
                (bind.dn, LdapOp::BindResponse(LdapBindResponse { res: success(), saslcreds: None }))
            }
            LdapOp::AbandonRequest(_) => return Some(()),
            other => panic!("the proxy sent {other:?}"),
        };
        let (entries, size, ends) = match self.next() {
            React::Answer { entries, size } => (entries, size, false),
            React::Close { entries, size } => (entries, size, true),
            React::Notice => {
                let notice = reply_unavailable();
                stream.write_all(&notice).await.ok()?;
                return None;
            }
        };
        let mut out = BytesMut::new();
        let entries = if matches!(done, LdapOp::SearchResultDone(_)) { entries } else { 0 };
        for number in 0..entries {
            let entry = entry(&name, number, size);
            codec.encode(LdapMsg { msgid, op: entry, ctrl: Vec::new() }, &mut out).expect("memory");
        }
        if !ends {
            codec.encode(LdapMsg { msgid, op: done, ctrl: Vec::new() }, &mut out).expect("memory");
        }
        stream.write_all(&out).await.ok()?;
        (!ends).then_some(())
    }
}

fn entry(name: &str, number: u8, size: u16) -> LdapOp {
    let value = vec![number.wrapping_mul(31) ^ size as u8; size.into()];
    LdapOp::SearchResultEntry(LdapSearchResultEntry {
        dn: format!("{number},{name}"),
        attributes: vec![LdapPartialAttribute { atype: "a".into(), vals: vec![value] }],
    })
}

fn success() -> LdapResult {
    LdapResult { code: LdapResultCode::Success, matcheddn: String::new(), message: String::new(), referral: Vec::new() }
}

fn reply_unavailable() -> Vec<u8> {
    ldap::reply::notice_of_disconnection(ldap::ResultCode::UNAVAILABLE, "going down")
}

/// One client: what it has asked, and what it has been told.
struct Client {
    name: String,
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    received: BytesMut,
    next: u32,
    open: BTreeMap<u32, Kind>,
    entries: BTreeMap<u32, u8>,
    abandoned: BTreeSet<u32>,
    /// The last result.
    code: Option<ldap::ResultCode>,
    told: bool,
    ended: bool,
}

impl Client {
    fn new(name: &str, transport: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(transport);
        Self {
            name: name.into(),
            reader,
            writer,
            received: BytesMut::new(),
            next: 1,
            open: BTreeMap::new(),
            entries: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            code: None,
            told: false,
            ended: false,
        }
    }

    /// The octets of its next request; none where nothing can be abandoned.
    fn request(&mut self, kind: Kind) -> Option<BytesMut> {
        let id = self.next;
        self.next += 1;
        let dn = format!("{id},{}", self.name);
        let op = match kind {
            Kind::Search => LdapOp::SearchRequest(LdapSearchRequest {
                base: dn,
                scope: LdapSearchScope::Subtree,
                aliases: LdapDerefAliases::Never,
                sizelimit: 0,
                timelimit: 0,
                typesonly: false,
                filter: LdapFilter::Present("cn".into()),
                attrs: Vec::new(),
            }),
            Kind::Compare => LdapOp::CompareRequest(LdapCompareRequest { dn, atype: "cn".into(), val: b"v".to_vec() }),
            Kind::Modify => LdapOp::ModifyRequest(LdapModifyRequest {
                dn,
                changes: vec![LdapModify {
                    operation: LdapModifyType::Replace,
                    modification: LdapPartialAttribute { atype: "cn".into(), vals: vec![b"v".to_vec()] },
                }],
            }),
            Kind::Bind => {
                LdapOp::BindRequest(LdapBindRequest { version: 3, dn, cred: LdapBindCred::Simple("secret".into()) })
            }
            Kind::Abandon => {
                let (&target, _) = self.open.iter().find(|(_, kind)| **kind != Kind::Bind)?;
                self.open.remove(&target);
                self.abandoned.insert(target);
                LdapOp::AbandonRequest(target as i32)
            }
        };
        if kind != Kind::Abandon {
            self.open.insert(id, kind);
        }
        let mut octets = BytesMut::new();
        let message = LdapMsg { msgid: id as i32, op, ctrl: Vec::new() };
        LdapCodec::default().encode(message, &mut octets).expect("memory");
        Some(octets)
    }

    async fn send(&mut self, send: Send) {
        let Some(octets) = self.request(send.kind) else { return };
        for mut part in octets.chunks(send.cut) {
            while !part.is_empty() && !self.ended {
                // Whoever only writes may wait for ever for a proxy whose answers nobody takes.
                tokio::select! {
                    written = self.writer.write(part) => match written {
                        Ok(count) if count > 0 => part = &part[count..],
                        _ => return,
                    },
                    read = self.reader.read_buf(&mut self.received) => {
                        self.ended = read.unwrap_or(0) == 0;
                        self.take_all();
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads until everything asked is answered, or the session has ended.
    async fn read_answers(&mut self) {
        while !self.ended && !self.open.is_empty() {
            self.read_some().await;
        }
    }

    async fn read_some(&mut self) {
        self.ended = self.reader.read_buf(&mut self.received).await.unwrap_or(0) == 0;
        self.take_all();
    }

    fn take_all(&mut self) {
        while let Some(envelope) = ldap::envelope(&self.received, usize::MAX).expect("the proxy sends good PDUs") {
            if self.received.len() < envelope.length {
                break;
            }
            let pdu = self.received.copy_to_bytes(envelope.length);
            let response = ldap::Response::new(&pdu, envelope).expect("the proxy sends responses");
            self.take(&response);
        }
        if self.ended {
            assert!(self.received.is_empty() || !self.told, "half a PDU after the last words");
        }
    }

    fn take(&mut self, response: &ldap::Response<'_>) {
        assert!(!self.told, "{}: something came after the notice of disconnection", self.name);
        let id = response.message_id();
        if response.is_notice_of_disconnection() {
            self.told = true;
            return;
        }
        if self.abandoned.contains(&id) {
            return;
        }
        let kind = *self.open.get(&id).unwrap_or_else(|| panic!("{}: nobody waits for {id}", self.name));
        match response.kind() {
            ResponseKind::Entry => {
                let number = self.entries.entry(id).or_default();
                let dn = format!("{number},{id},{}", self.name);
                assert!(
                    response.pdu().windows(dn.len()).any(|octets| octets == dn.as_bytes()),
                    "{dn} is not the entry that came"
                );
                *number += 1;
            }
            ResponseKind::Final(answered) => {
                let asked = match kind {
                    Kind::Search => OperationKind::Search,
                    Kind::Compare => OperationKind::Compare,
                    Kind::Modify => OperationKind::Modify,
                    Kind::Bind => OperationKind::Bind,
                    Kind::Abandon => unreachable!("an abandon is never open"),
                };
                assert_eq!(answered, asked);
                self.code = response.result().map(|result| result.code);
                self.open.remove(&id);
            }
            other => panic!("{}: nobody asked for {other:?}", self.name),
        }
    }
}

fn settings(pool: Pool) -> Arc<Settings> {
    let metrics = Metrics::new();
    Arc::new(Settings {
        pool: CurrentPool::new(Arc::new(pool)),
        replay_guard: ReplayGuard::new(),
        limits: Limits::default(),
        policy: Policy::new(&config::Policy::default()).expect("the default policy names no DN"),
        referrals: None,
        memory: Memory::new(1 << 30, Arc::clone(&metrics)),
        throttle: Arc::new(LoginThrottle::new(&config::LoginThrottle::default())),
        access_log: AccessLog::off(),
        listener: metrics.listener("l"),
        metrics,
        no_backend: Outage::default(),
    })
}

async fn pool(backends: &Arc<Backends>) -> Pool {
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(Arc::clone(backends).listen(listener));
        let host = address.ip().to_string();
        endpoints.push(Endpoint { address, host, weight: 1, tier: 0, max_sessions: 0 });
    }
    let settings = Arc::new(config::Pool::new("p", Vec::new()));
    let connector = Connector::new(&settings).expect("cleartext needs nothing");
    let pool = Pool::new(settings, connector, Metrics::new(), mpsc::channel(64).0);
    pool.admit(&endpoints);
    pool
}

async fn play(scripts: [Vec<Send>; 2], reactions: Vec<React>) {
    let backends = Arc::new(Backends { reactions: Mutex::new(reactions.into()), ..Backends::default() });
    let settings = settings(pool(&backends).await);
    let registry = Arc::new(Registry::default());
    let mut tasks = tokio::task::JoinSet::new();
    for (index, script) in scripts.into_iter().enumerate() {
        // A small pipe: nothing is taken that isn't read.
        let (near, far) = duplex(512);
        let address = SocketAddr::from(([127, 0, 0, 1], 1000 + index as u16));
        let entry = registry.enter(address, "l".into());
        let session = Session::new(Arc::clone(&settings), entry, Pipe::from(far), StartTls::Established);
        tasks.spawn(async move {
            session.serve().await;
        });
        let mut client = Client::new(&format!("client{index}"), near);
        tasks.spawn(async move {
            for send in script {
                if client.ended {
                    break;
                }
                client.send(send).await;
                if send.wait {
                    client.read_answers().await;
                }
            }
            client.read_answers().await;
            if !client.open.is_empty() {
                // Cut in the middle of a long entry, nothing can be said; else it must have been.
                assert!(client.told || !client.received.is_empty(), "{:?} unanswered without a word", client.open);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    for (dn, times) in backends.writes.lock().expect("no panic under the lock").iter() {
        assert_eq!(*times, 1, "{dn} was executed more than once");
    }
    assert!(registry.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_or_the_session_says_why(a in sends(), b in sends(), reactions in reactions()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let played = runtime.block_on(async { timeout(Duration::from_secs(20), play([a, b], reactions)).await });
        prop_assert!(played.is_ok(), "somebody waits for ever");
    }
}

/// What every idle session costs beside its TLS state. An async block that holds a session twice is how it grows unseen.
#[test]
fn a_session_at_work_is_one_small_allocation() {
    type Client = crate::tls::ServerStream<TcpStream>;
    let own = size_of::<Serving<Client>>() - size_of::<Client>();
    assert!(own <= 768, "{own} octets");
}
