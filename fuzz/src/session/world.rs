//! A session with a client and backends in memory, moved by a [`Script`].
//!
//! The session is polled only when something has woken it, as a runtime would, so that a wake-up that is missing shows
//! as a request that nobody answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ldaps_proxy::failure::EndReason;
use ldaps_proxy::ldap::{OperationKind, oid};
use ldaps_proxy::pipe::Pipe;
use ldaps_proxy::session::{Handle, Registry, Served, Serving, Session};
use ldaps_proxy::tls::Handshake;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use super::ledger::Ledger;
use super::pdu;
use super::script::{Script, Step};
use super::setup::Setup;

/// Plays one input to its end and checks what came of it.
pub async fn play(input: &[u8]) {
    let Some((octets, script)) = Script::new(input) else { return };
    let mut world = World::new(Setup::new(octets));
    world.pump().await;
    for step in script {
        world.step(step).await;
        if world.served.is_some() {
            break;
        }
    }
    if !world.setup.vanishes {
        world.settle().await;
    }
    world.end().await;
}

/// Seconds that everybody waits for an answer, when everybody does their best: longer than any connect budget.
const PATIENCE: u32 = 60;

struct World {
    setup: Setup,
    registry: Arc<Registry>,
    handle: Arc<Handle>,
    session: Option<Pin<Box<Serving<Pipe>>>>,
    served: Option<EndReason>,
    woken: Arc<Woken>,
    client: End,
    backend: Option<End>,
    ledger: Ledger,
    chunk: usize,
    /// Time has passed while the client didn't read, so the proxy may have given up in the middle of a response.
    client_was_stuck: bool,
}

impl World {
    fn new(setup: Setup) -> Self {
        DIALLED.with_borrow_mut(|dialled| *dialled = Dialled { pipe: setup.backend_pipe, ..Dialled::default() });
        let registry = Arc::new(Registry::default());
        let entry = registry.enter(SocketAddr::from(([192, 0, 2, 1], 1000)), "l".into());
        let handle = registry.find(entry.id).expect("it has just been entered");
        let (near, far) = duplex(setup.client_pipe);
        let session = Session::new(Arc::clone(&setup.settings), entry, Pipe::from(far), setup.start_tls);
        Self {
            ledger: Ledger::new(setup.settings.limits.operation_timeout.is_some()),
            setup,
            registry,
            handle,
            session: Some(Box::pin(session.serve())),
            served: None,
            woken: Arc::new(Woken(AtomicBool::new(true))),
            client: End::new(near),
            backend: None,
            chunk: usize::MAX,
            client_was_stuck: false,
        }
    }

    async fn step(&mut self, step: Step<'_>) {
        match step {
            Step::ClientSends(octets) => self.client_sends(octets),
            Step::BackendSends(octets) => self.backend_sends(octets),
            Step::Ask { kind, id, flavour } => self.client_sends(&pdu::request(kind, id, flavour)),
            Step::Answer { which, flavour, code } => self.answer(which, flavour, code),
            Step::BackendCloses => self.backend_closes(),
            Step::Refuse(times) => DIALLED.with_borrow_mut(|dialled| dialled.refuse = times),
            Step::Advance(time) => self.advance(time).await,
            Step::Tell(command) => self.handle.command(command),
            Step::ClientHalfCloses => self.client.closing = true,
            Step::ClientReads(reads) => self.client.reads = reads,
            Step::BackendReads(reads) => {
                if let Some(backend) = &mut self.backend {
                    backend.reads = reads;
                }
            }
            Step::Chunk(octets) => self.chunk = octets,
        }
        self.pump().await;
    }

    fn client_sends(&mut self, octets: &[u8]) {
        if !self.client.closing {
            self.ledger.client_sends(octets);
            self.client.queued.extend(octets);
        }
    }

    fn backend_sends(&mut self, octets: &[u8]) {
        if let Some(backend) = &mut self.backend {
            self.ledger.backend_sends(octets);
            backend.queued.extend(octets);
        }
    }

    fn answer(&mut self, which: u8, flavour: u8, code: u8) {
        const CODES: [u8; 8] = [0, 14, 49, 52, 51, 32, 10, 4];
        let code = if code < 128 { CODES[usize::from(code) % CODES.len()] } else { code & 0x7F };
        let open = self.ledger.open();
        let chosen = (!open.is_empty()).then(|| open[usize::from(which) % open.len()]);
        let (id, kind) = chosen.unwrap_or((u32::from(which), OperationKind::Search));
        let octets = match flavour % 14 {
            0..=2 => pdu::done(id, kind, code, false),
            3 => pdu::entry(id, 8),
            4 => pdu::reference(id),
            5 => pdu::intermediate(id),
            6 => pdu::entry(id, 40_000),
            7 => {
                // Part of a long one; the rest may never come.
                let mut entry = pdu::entry(id, 40_000);
                entry.truncate(20_000);
                entry
            }
            8 => pdu::page_done(id, code),
            9 => pdu::done(id, kind, code, true),
            10 => pdu::extended(id, code, ""),
            11 => pdu::done(id.wrapping_add(1) & 0x7FFF_FFFF, kind, code, false),
            12 => pdu::extended(0, code, oid::NOTICE_OF_DISCONNECTION),
            _ => pdu::extended(0, code, "1.2.3"),
        };
        self.backend_sends(&octets);
    }

    fn backend_closes(&mut self) {
        if let Some(mut backend) = self.backend.take() {
            // What it has received it has received, even if it dies now.
            while let Some(octets) = backend.read() {
                self.ledger.backend_receives(&octets);
            }
            self.ledger.backend_changes();
        }
    }

    async fn advance(&mut self, time: Duration) {
        self.client_was_stuck |= !self.client.reads;
        tokio::time::advance(time).await;
    }

    /// Lets everybody do what they can.
    async fn pump(&mut self) {
        // A session that wakes itself without moving an octet would keep a worker busy for ever.
        let mut idle_turns = 0;
        loop {
            let mut moved = self.client.write(self.chunk);
            if let Some(backend) = &mut self.backend {
                moved |= backend.write(self.chunk);
            }
            let woken = self.woken.0.swap(false, Ordering::Relaxed);
            if woken {
                self.poll_session();
            }
            moved |= self.meet_new_backends();
            moved |= self.read();
            if !moved && !woken {
                // Tasks that the proxy has spawned do what they can as well.
                tokio::task::yield_now().await;
                if !self.woken.0.load(Ordering::Relaxed) {
                    break;
                }
            }
            idle_turns = if moved { 0 } else { idle_turns + 1 };
            assert!(idle_turns < 1000, "the session wakes itself and does nothing");
        }
    }

    fn poll_session(&mut self) {
        let Some(session) = &mut self.session else { return };
        let waker = Waker::from(Arc::clone(&self.woken));
        let Poll::Ready(served) = session.as_mut().poll(&mut Context::from_waker(&waker)) else { return };
        self.session = None;
        match served {
            Served::Ended(reason) => self.served = Some(reason),
            Served::StartTls(session) => {
                self.client.reads = true;
                self.read();
                self.ledger.start_tls();
                let (near, far) = duplex(self.setup.client_pipe);
                self.client = End::new(near);
                let (_, session) = session.off_transport();
                self.session = Some(Box::pin(session.on_tls(Pipe::from(far), &handshake()).serve()));
                self.woken.0.store(true, Ordering::Relaxed);
            }
        }
    }

    fn meet_new_backends(&mut self) -> bool {
        let new = DIALLED.with_borrow_mut(|dialled| std::mem::take(&mut dialled.far));
        let met = !new.is_empty();
        for pipe in new {
            self.backend_closes();
            self.backend = Some(End::new(pipe));
        }
        met
    }

    /// Both sides read what is there, if they read at all.
    fn read(&mut self) -> bool {
        self.ledger.tunnel |= self.handle.facts().tunnel;
        let mut moved = false;
        while self.client.reads
            && let Some(octets) = self.client.read()
        {
            self.ledger.client_receives(&octets);
            moved = true;
        }
        if let Some(backend) = &mut self.backend {
            while backend.reads
                && let Some(octets) = backend.read()
            {
                self.ledger.backend_receives(&octets);
                moved = true;
            }
            if backend.ended {
                self.backend_closes();
            }
        }
        moved
    }

    /// From here on everybody behaves: clients and backends read, and backends answer. Then nothing may stay unanswered.
    async fn settle(&mut self) {
        let mut patience = PATIENCE;
        DIALLED.with_borrow_mut(|dialled| dialled.refuse = 0);
        self.client.reads = true;
        self.chunk = usize::MAX;
        for round in 0.. {
            assert!(round < 10_000, "it never comes to rest");
            if let Some(backend) = &mut self.backend {
                backend.reads = true;
            }
            self.pump().await;
            if self.backend.is_some() && self.ledger.is_mid_answer() {
                self.backend_closes();
                continue;
            }
            let open = self.ledger.open().to_vec();
            if self.backend.is_none() || open.is_empty() {
                if patience == 0 || !self.is_alive() || self.ledger.unanswered().is_empty() {
                    break;
                }
                // Whoever tries again may wait a moment first.
                patience -= 1;
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            for (id, kind) in open {
                self.backend_sends(&pdu::done(id, kind, 0, false));
            }
        }
        if self.is_alive() {
            let unanswered = self.ledger.unanswered();
            assert!(unanswered.is_empty(), "{unanswered:?} wait for ever");
            assert!(!self.ledger.is_cut(), "half a response");
        }
    }

    fn is_alive(&self) -> bool {
        self.served.is_none() && !self.client.ended && !self.ledger.told && !self.ledger.tunnel
    }

    /// The client leaves, and the session with it.
    async fn end(mut self) {
        self.client.reads = true;
        let alive = self.served.is_none() && !self.client.ended;
        if self.setup.vanishes && alive {
            let (near, _) = duplex(1);
            self.client = End::new(near);
        } else {
            self.client.closing = true;
        }
        for _ in 0..4 {
            self.pump().await;
            if self.served.is_some() {
                break;
            }
            tokio::time::advance(Duration::from_secs(3700)).await;
        }
        let reason = self.served.expect("a session ends some time after its client");
        self.check_last_words(reason, alive);

        assert!(self.registry.is_empty());
        self.backend_closes();
        drop(DIALLED.take());
        let backends = self.setup.settings.pool.now().backends();
        assert!(backends.iter().all(|backend| backend.sessions() == 0), "a seat is kept");
    }

    fn check_last_words(&self, reason: EndReason, alive: bool) {
        if alive || self.ledger.tunnel || self.client_was_stuck {
            return;
        }
        let cut = self.ledger.is_cut_in_a_long_response();
        assert!(cut || !self.ledger.is_cut(), "{reason}: cut off in a response");
        // Whoever asks too late for a first request has not asked.
        let silent = matches!(reason, EndReason::Unbind | EndReason::WriteTimeout | EndReason::FirstRequestTimeout);
        let excused = cut || self.ledger.told || silent;
        let unanswered = self.ledger.unanswered();
        assert!(excused || unanswered.is_empty(), "{reason}: {unanswered:?} unanswered without a word");
    }
}

/// One side's end of a pipe.
struct End {
    pipe: DuplexStream,
    queued: VecDeque<u8>,
    reads: bool,
    /// Nothing more will be queued.
    closing: bool,
    closed: bool,
    /// The proxy has closed its side.
    ended: bool,
}

impl End {
    fn new(pipe: DuplexStream) -> Self {
        Self { pipe, queued: VecDeque::new(), reads: true, closing: false, closed: false, ended: false }
    }

    /// Writes at most `most` octets; whether any went.
    fn write(&mut self, most: usize) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        let (octets, _) = self.queued.as_slices();
        let octets = &octets[..octets.len().min(most)];
        if !octets.is_empty() {
            match Pin::new(&mut self.pipe).poll_write(cx, octets) {
                Poll::Ready(Ok(count)) => {
                    self.queued.drain(..count);
                    return count > 0;
                }
                Poll::Ready(Err(_)) => self.queued.clear(),
                Poll::Pending => {}
            }
        }
        if self.closing && !self.closed && self.queued.is_empty() {
            self.closed = true;
            return matches!(Pin::new(&mut self.pipe).poll_shutdown(cx), Poll::Ready(Ok(())));
        }
        false
    }

    /// Some octets, if there are any.
    fn read(&mut self) -> Option<Vec<u8>> {
        let mut octets = [0; 4096];
        let mut buffer = ReadBuf::new(&mut octets);
        let read = Pin::new(&mut self.pipe).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        let octets = buffer.filled().to_vec();
        self.ended |= read.is_ready() && octets.is_empty();
        (!octets.is_empty()).then_some(octets)
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The connections that the proxy has opened and nobody has met yet.
#[derive(Default)]
struct Dialled {
    pipe: usize,
    refuse: u8,
    far: Vec<DuplexStream>,
}

thread_local! {
    static DIALLED: RefCell<Dialled> = RefCell::default();
}

/// Opens a connection for the proxy.
pub fn dial(_backend: SocketAddr) -> io::Result<Pipe> {
    DIALLED.with_borrow_mut(|dialled| {
        if let Some(left) = dialled.refuse.checked_sub(1) {
            dialled.refuse = left;
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = duplex(dialled.pipe);
        dialled.far.push(far);
        Ok(near.into())
    })
}

fn handshake() -> Handshake {
    Handshake { version: "1.3", suite: "", group: "", resumed: false, sni: None, client_subject: None }
}
