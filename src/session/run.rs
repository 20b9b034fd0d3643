//! The loop that moves PDUs both ways: one future a session, polled when either side has something.
//!
//! Each direction advances as far as it can without waiting for the other, so that a client that sends without reading
//! and a backend that does the same cannot block each other. What a peer doesn't take is bounded: while octets wait for
//! one peer, the other is not read.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::Settings;
use super::buffer::{Inbox, Outbox};
use super::establish::{Establish, EstablishError};
use super::operations::Operation;
use super::registry::{Command, Entry};
use super::state::{Answer, Ending, Layer, RequestVerdict, ResponseVerdict, Settled, State};
use crate::failure::{EndReason, FailoverKind, Refusal};
use crate::ldap::{self, FrameError, MessageId, OperationKind, Request, Response, ResponseKind, ResultCode, reply};
use crate::metrics::Share;
use crate::pool::{Backend, EventKind};
use crate::upstream::Upstream;

/// Octets that may wait for a peer before the other side is no longer read.
const MOST_WAITING: usize = 64 * 1024;
/// A response longer than this passes to the client as it arrives; a shorter one waits until it is whole, so that a
/// backend lost in the middle of it leaves the client's stream intact.
const PASS_FROM: usize = 32 * 1024;
/// Octets a final response may have: it is read whole.
const MOST_FINAL: usize = 16 * 1024 * 1024;
/// A tunnel that is drained ends once this long has passed without a byte: its operations can't be seen.
const TUNNEL_QUIET: Duration = Duration::from_secs(1);
/// Turns of the loop before other sessions get theirs.
const TURNS: usize = 32;
/// How long a client may take to read our last words, and octets of its own we discard meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const MOST_LINGERING: usize = 1 << 20;

/// What a session came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is over.
    Ended(EndReason),
    /// The client wants TLS on this connection; the success response has left. See [`Run::into_parts`].
    StartTls,
}

/// A session taken off its transport.
pub(super) struct Parts<T> {
    pub client: T,
    pub state: State,
    pub entry: Entry,
}

/// A session at work.
pub(super) struct Run<T> {
    settings: Arc<Settings>,
    entry: Entry,
    state: State,
    client: T,
    from_client: Inbox,
    to_client: Outbox,
    link: Link,
    to_upstream: Outbox,
    lost: Option<Arc<Backend>>,
    /// What failover is about to have done, counted when the next upstream stands.
    moving: Option<FailoverKind>,
    phase: Phase,
    client_ended: bool,
    clock: Clock,
    timer: Pin<Box<Sleep>>,
}

/// The way to a backend.
enum Link {
    /// None: the next request opens one.
    Down,
    /// It is being opened.
    Opening(Pin<Box<dyn Future<Output = Result<Upstream, EstablishError>> + Send>>),
    /// It stands.
    Up(Box<Up>),
}

struct Up {
    upstream: Upstream,
    inbox: Inbox,
    passing: Passing,
    in_flight: Share,
}

/// A response too long to be held, on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passing {
    Nothing,
    ToClient(usize),
    ToNobody(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// StartTLS was answered; the response is leaving.
    StartingTls,
    /// The last words are leaving.
    Flushing(EndReason),
    /// TLS and the sending side are closing.
    ShuttingDown(EndReason),
    /// The client may still be reading; resetting now could destroy what it hasn't read.
    Lingering(EndReason, usize),
    /// Nothing more can be done for the client.
    Over(EndReason),
}

impl Phase {
    fn reason(self) -> EndReason {
        match self {
            Self::Serving | Self::StartingTls => EndReason::WriteTimeout,
            Self::Flushing(reason) | Self::ShuttingDown(reason) | Self::Lingering(reason, _) | Self::Over(reason) => {
                reason
            }
        }
    }
}

/// When things last happened.
struct Clock {
    began: Instant,
    first_request: bool,
    /// The client's last octet, or the last operation's end.
    active: Instant,
    /// The first octet of a request that is not whole.
    partial: Option<Instant>,
    /// Since when octets wait for the client without one being taken.
    client_stuck: Option<Instant>,
    upstream_stuck: Option<Instant>,
    closing: Option<Instant>,
}

/// Whether a step changed anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Yes,
    No,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Run<T> {
    pub(super) fn new(settings: Arc<Settings>, parts: Parts<T>) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + settings.limits.first_request_timeout));
        Self {
            settings,
            entry: parts.entry,
            state: parts.state,
            client: parts.client,
            from_client: Inbox::default(),
            to_client: Outbox::default(),
            link: Link::Down,
            to_upstream: Outbox::default(),
            lost: None,
            moving: None,
            phase: Phase::Serving,
            client_ended: false,
            clock: Clock {
                began: now,
                first_request: false,
                active: now,
                partial: None,
                client_stuck: None,
                upstream_stuck: None,
                closing: None,
            },
            timer,
        }
    }

    /// Takes the session off its transport.
    pub(super) fn into_parts(self) -> Parts<T> {
        Parts { client: self.client, state: self.state, entry: self.entry }
    }

    fn turn(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Outcome> {
        for _ in 0..TURNS {
            if let Poll::Ready(outcome) = self.close(cx, now) {
                return Poll::Ready(outcome);
            }
            if self.phase != Phase::Serving {
                return Poll::Pending;
            }
            let steps = [
                self.flush_client(cx, now),
                self.open(cx, now),
                self.flush_upstream(cx, now),
                self.read_client(cx, now),
                self.read_upstream(cx, now),
            ];
            // Commands come last, so that what the client has already sent is served before a drain ends the session.
            if !steps.contains(&Moved::Yes) && self.obey(now) == Moved::No {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    // --- towards the backend ---------------------------------------------------------------------------------------

    fn read_client(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        if self.to_upstream.len() >= MOST_WAITING || self.to_client.len() >= MOST_WAITING {
            return Moved::No;
        }
        if !self.from_client.is_empty() && self.clock.partial.is_none() {
            // Whole requests are held back until the bind before them is answered.
            if self.state.bind().awaiting().is_some() {
                return Moved::No;
            }
            self.take_requests(cx, now);
            return Moved::Yes;
        }
        if !self.client_ended {
            match self.from_client.poll_fill(cx, &mut self.client) {
                Poll::Ready(Ok(0)) => self.client_ended = true,
                Poll::Ready(Ok(count)) => {
                    self.settings.listener.received(count);
                    self.clock.active = now;
                }
                Poll::Ready(Err(_)) => {
                    self.end(Ending::silent(EndReason::ClientLost));
                    return Moved::Yes;
                }
                Poll::Pending => {
                    self.from_client.settle();
                    return Moved::No;
                }
            }
        }
        self.take_requests(cx, now);
        // A half-closed client still gets what it asked for.
        if self.client_ended && self.phase == Phase::Serving {
            let opaque = self.state.layer() == Layer::Opaque;
            if opaque || (self.state.operations().awaited() == 0 && self.to_client.is_empty()) {
                self.end(Ending::silent(EndReason::ClientClosed));
                return Moved::Yes;
            }
            return Moved::No;
        }
        Moved::Yes
    }

    /// Deals with the whole requests in the inbox.
    fn take_requests(&mut self, cx: &mut Context<'_>, now: Instant) {
        let mut inbox = std::mem::take(&mut self.from_client);
        let octets = inbox.unread();
        // What is forwarded is a run of adjacent requests, sent with one write.
        let mut run = 0;
        let mut at = 0;
        self.clock.partial = self.clock.partial.filter(|_| !octets.is_empty());
        while let Some(&first) = octets.get(at) {
            match self.state.layer() {
                Layer::Inspected => {}
                Layer::Undecided => {
                    self.state.decide_layer(first);
                    if self.state.layer() == Layer::Opaque {
                        self.become_tunnel();
                    }
                    continue;
                }
                Layer::Opaque => {
                    at = octets.len();
                    break;
                }
            }
            let rest = &octets[at..];
            let request = match self.frame(rest) {
                Ok(Some(request)) => request,
                Ok(None) => {
                    self.clock.partial.get_or_insert(now);
                    break;
                }
                Err(ending) => {
                    self.forward(cx, &octets[run..at]);
                    (run, at) = (octets.len(), octets.len());
                    self.end(ending);
                    break;
                }
            };
            self.clock.partial = None;
            self.clock.first_request = true;
            let length = request.pdu().len();
            let position = self.to_upstream.position() + (at - run) as u64;
            match self.state.request(&request, position, &self.settings.limits, now) {
                RequestVerdict::Forward => {
                    if request.kind() == OperationKind::Abandon {
                        self.settings.metrics.operations.record(OperationKind::Abandon, 0);
                    }
                    at += length;
                    continue;
                }
                RequestVerdict::Hold => break,
                verdict => {
                    self.forward(cx, &octets[run..at]);
                    at += length;
                    run = at;
                    self.carry_out(verdict, &request, cx);
                }
            }
            if self.phase != Phase::Serving {
                (run, at) = (octets.len(), octets.len());
                break;
            }
        }
        if run < at {
            self.forward(cx, &octets[run..at]);
        }
        inbox.consume(at);
        self.from_client = inbox;
        self.from_client.settle();
        self.show_in_flight();
    }

    /// The request that `octets` begin with, if it is whole.
    fn frame<'a>(&self, octets: &'a [u8]) -> Result<Option<Request<'a>>, Ending> {
        let limits = &self.settings.limits;
        let Some(envelope) = ldap::envelope(octets, self.state.size_limit(limits)).map_err(bad_request)? else {
            return Ok(None);
        };
        if OperationKind::from_request_tag(envelope.tag).is_none() {
            let text = format!("0x{:02x} is not the tag of an LDAP request", envelope.tag);
            return Err(Ending::told(EndReason::ProtocolError, ResultCode::PROTOCOL_ERROR, text));
        }
        self.state.oversize(&envelope, limits).map_err(bad_request)?;
        Ok(octets.get(..envelope.length).and_then(|pdu| Request::new(pdu, envelope)))
    }

    fn carry_out(&mut self, verdict: RequestVerdict, request: &Request<'_>, cx: &mut Context<'_>) {
        match verdict {
            RequestVerdict::Answer(answer) => self.answer(answer),
            RequestVerdict::End(ending) => self.end(ending),
            RequestVerdict::StartTls(id) => self.begin_start_tls(id),
            RequestVerdict::Unbind => {
                self.settings.metrics.operations.record(OperationKind::Unbind, 0);
                if let Link::Up(up) = &mut self.link {
                    // Best effort: the connection closes right after.
                    let _ = self.to_upstream.send(cx, &mut up.upstream.stream, request.pdu());
                }
                self.end(Ending::silent(EndReason::Unbind));
            }
            RequestVerdict::Ignore => {
                if request.kind() == OperationKind::Abandon {
                    self.settings.metrics.operations.record(OperationKind::Abandon, 0);
                }
            }
            RequestVerdict::Forward | RequestVerdict::Hold => {}
        }
    }

    /// Sends octets to the backend, or queues them until there is one.
    fn forward(&mut self, cx: &mut Context<'_>, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        match &mut self.link {
            Link::Up(up) => {
                up.upstream.backend().metrics().sent(octets.len());
                // An error shows again, with its consequences, when the upstream is flushed.
                if self.to_upstream.send(cx, &mut up.upstream.stream, octets).is_err() {
                    self.to_upstream.queue(octets);
                }
            }
            Link::Down | Link::Opening(_) => self.to_upstream.queue(octets),
        }
    }

    fn flush_upstream(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        let Link::Up(up) = &mut self.link else { return Moved::No };
        let before = self.to_upstream.taken();
        match self.to_upstream.poll_flush(cx, &mut up.upstream.stream) {
            Poll::Ready(Ok(())) => {
                self.clock.upstream_stuck = None;
                if self.to_upstream.taken() == before { Moved::No } else { Moved::Yes }
            }
            Poll::Ready(Err(_)) => {
                self.lose(now);
                Moved::Yes
            }
            Poll::Pending => {
                if self.to_upstream.taken() != before {
                    self.clock.upstream_stuck = None;
                }
                self.clock.upstream_stuck.get_or_insert(now);
                Moved::No
            }
        }
    }

    /// Opens the upstream once there is something to send.
    fn open(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        if matches!(self.link, Link::Down) && !self.to_upstream.is_empty() {
            let establish = Establish {
                pool: Arc::clone(&self.settings.pool),
                guard: Arc::clone(&self.settings.replay_guard),
                client: self.entry.client,
                lost: self.lost.take(),
                credential: self.state.credential().cloned(),
            };
            self.link = Link::Opening(Box::pin(establish.run()));
        }
        let Link::Opening(opening) = &mut self.link else { return Moved::No };
        match opening.as_mut().poll(cx) {
            Poll::Pending => Moved::No,
            Poll::Ready(Ok(upstream)) => {
                if let Some(kind) = self.moving.take() {
                    let kind = if self.state.credential().is_some() { FailoverKind::BindReplay } else { kind };
                    self.settings.metrics.failovers.count(kind);
                }
                let backend = Arc::clone(upstream.backend());
                let in_flight = backend.metrics().operations_in_flight();
                backend.metrics().sent(self.to_upstream.len());
                self.entry.set_facts(|facts| facts.backend = Some(backend));
                let up = Up { upstream, inbox: Inbox::default(), passing: Passing::Nothing, in_flight };
                self.link = Link::Up(Box::new(up));
                self.show_in_flight();
                Moved::Yes
            }
            Poll::Ready(Err(error)) => {
                self.link = Link::Down;
                self.to_upstream.restart(Vec::new());
                self.moving = None;
                self.fail(error, now);
                Moved::Yes
            }
        }
    }

    fn fail(&mut self, error: EstablishError, now: Instant) {
        match error {
            EstablishError::NoBackend(error) => {
                self.settings.no_backend.warn(&self.settings.pool.settings().name, &error, now);
                self.settings.metrics.failovers.count(FailoverKind::Exhausted);
                let answers = self.state.fail_all(Refusal::NoBackend, NO_BACKEND);
                self.answer_lost(answers);
            }
            EstablishError::ReplayRefused(code) => {
                tracing::warn!(session = self.entry.id, client = %self.entry.client, code = code.map(|code| code.0),
                    "the session's bind was refused by another backend: was the password changed?");
                self.settings.metrics.failovers.count(FailoverKind::ReplayRefused);
                let answers = self.state.fail_all(Refusal::ReplayRefused, REPLAY_REFUSED);
                self.answer_lost(answers);
                self.end(Ending::told(EndReason::ReplayRefused, ResultCode::UNAVAILABLE, REPLAY_REFUSED));
            }
        }
        self.clock.active = now;
    }

    // --- towards the client ----------------------------------------------------------------------------------------

    fn read_upstream(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        let Link::Up(up) = &mut self.link else { return Moved::No };
        if !self.to_client.is_empty() {
            return Moved::No;
        }
        match up.inbox.poll_fill(cx, &mut up.upstream.stream) {
            Poll::Pending => {
                up.inbox.settle();
                Moved::No
            }
            Poll::Ready(Ok(count)) if count > 0 => {
                up.upstream.backend().metrics().received(count);
                if self.state.layer() == Layer::Opaque {
                    self.clock.active = now;
                }
                self.take_responses(cx, now);
                Moved::Yes
            }
            Poll::Ready(_) => {
                self.lose(now);
                Moved::Yes
            }
        }
    }

    /// Deals with the responses in the upstream's inbox.
    fn take_responses(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Link::Up(mut up) = std::mem::replace(&mut self.link, Link::Down) else { return };
        let octets = up.inbox.unread();
        let mut run = 0;
        let mut at = 0;
        let mut lost = false;
        let mut ending = None;
        while at < octets.len() {
            if self.state.layer() == Layer::Opaque {
                at = octets.len();
                break;
            }
            let rest = &octets[at..];
            match &mut up.passing {
                Passing::ToClient(left) => {
                    let count = (*left).min(rest.len());
                    at += count;
                    up.passing = if count == *left { Passing::Nothing } else { Passing::ToClient(*left - count) };
                    continue;
                }
                Passing::ToNobody(left) => {
                    let count = (*left).min(rest.len());
                    self.deliver(cx, &octets[run..at]);
                    at += count;
                    run = at;
                    up.passing = if count == *left { Passing::Nothing } else { Passing::ToNobody(*left - count) };
                    continue;
                }
                Passing::Nothing => {}
            }
            let Ok(envelope) = ldap::envelope(rest, usize::MAX) else {
                lost = true;
                break;
            };
            let Some(envelope) = envelope else { break };
            let Some(kind) = ResponseKind::from_tag(envelope.tag) else {
                lost = true;
                break;
            };
            let response = rest.get(..envelope.length).and_then(|pdu| Response::new(pdu, envelope));
            let verdict = match &response {
                Some(response) => self.state.response(response, now),
                None if envelope.length > PASS_FROM && !kind.is_final() => {
                    let verdict = self.state.part(envelope.message_id, kind, envelope.length);
                    up.passing = match verdict {
                        ResponseVerdict::Forward(_) => Passing::ToClient(envelope.length),
                        _ => Passing::ToNobody(envelope.length),
                    };
                    continue;
                }
                None if envelope.length > MOST_FINAL => {
                    lost = true;
                    break;
                }
                None => break,
            };
            match verdict {
                ResponseVerdict::Forward(settled) => {
                    if let (Some(settled), Some(response)) = (settled, &response) {
                        self.settle(&settled, response, up.upstream.backend(), now);
                    }
                    at += envelope.length;
                }
                ResponseVerdict::Ignore => {
                    self.deliver(cx, &octets[run..at]);
                    at += envelope.length;
                    run = at;
                }
                ResponseVerdict::Lost => {
                    lost = true;
                    break;
                }
                ResponseVerdict::ForwardAndEnd(reason) => {
                    at += envelope.length;
                    ending = Some(reason);
                    break;
                }
            }
        }
        self.deliver(cx, &octets[run..at]);
        up.inbox.consume(at);
        up.inbox.settle();
        self.link = Link::Up(up);
        self.show_in_flight();
        if lost {
            self.lose(now);
        } else if let Some(reason) = ending {
            self.end(Ending::silent(reason));
        }
    }

    /// Sends octets to the client, or queues them.
    fn deliver(&mut self, cx: &mut Context<'_>, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        self.settings.listener.sent(octets.len());
        // An error shows again when the client is flushed.
        if self.to_client.send(cx, &mut self.client, octets).is_err() {
            self.to_client.queue(octets);
        }
    }

    fn flush_client(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        let before = self.to_client.taken();
        match self.to_client.poll_flush(cx, &mut self.client) {
            Poll::Ready(Ok(())) => {
                self.clock.client_stuck = None;
                if self.to_client.taken() == before { Moved::No } else { Moved::Yes }
            }
            Poll::Ready(Err(_)) => {
                self.end(Ending::silent(EndReason::ClientLost));
                Moved::Yes
            }
            Poll::Pending => {
                if self.to_client.taken() != before {
                    self.clock.client_stuck = None;
                }
                self.clock.client_stuck.get_or_insert(now);
                Moved::No
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        self.settings.metrics.refusals.count(answer.reason);
        self.settings.metrics.operations.record(answer.kind, answer.code.0);
        self.entry.operations.fetch_add(1, Ordering::Relaxed);
        self.to_client.queue(&answer.pdu());
    }

    fn answer_lost(&mut self, answers: Vec<(Operation, Answer)>) {
        for (_, answer) in answers {
            self.answer(answer);
        }
    }

    /// Counts an operation that the backend has answered.
    fn settle(&mut self, settled: &Settled, response: &Response<'_>, backend: &Arc<Backend>, now: Instant) {
        let Settled { operation, code } = settled;
        let code = code.unwrap_or(ResultCode::OTHER);
        self.clock.active = now;
        self.entry.operations.fetch_add(1, Ordering::Relaxed);
        self.settings.metrics.operations.record(operation.kind, code.0);
        backend.metrics().operation(operation.kind, now - operation.started);
        if operation.kind == OperationKind::Bind {
            match code {
                ResultCode::SUCCESS => {
                    let name = self.state.bound_name();
                    self.entry.set_facts(|facts| facts.bind_name = name);
                }
                ResultCode::INVALID_CREDENTIALS => {
                    let diagnostic = response.result().map_or(&b""[..], |result| result.diagnostic);
                    self.settings.metrics.bind_failed(sub_code(diagnostic));
                }
                _ => {}
            }
        }
    }

    // --- losing, ending --------------------------------------------------------------------------------------------

    fn lose(&mut self, now: Instant) {
        let Link::Up(up) = std::mem::replace(&mut self.link, Link::Down) else { return };
        let backend = Arc::clone(up.upstream.backend());
        let in_flight = self.state.operations().awaited();
        backend.report(self.entry.client.ip(), EventKind::Lost { in_flight });
        let cut = matches!(up.passing, Passing::ToClient(_));
        drop(up);
        let loss = self.state.lose(self.to_upstream.taken(), self.to_upstream.waiting(), now);
        self.to_upstream.restart(loss.resend);
        for kind in loss.kinds {
            self.settings.metrics.failovers.count(kind);
        }
        self.entry.set_facts(|facts| facts.backend = None);
        if cut {
            // The client is in the middle of a PDU: nothing else can be said on this connection.
            return self.end(Ending::silent(EndReason::BackendLost));
        }
        self.answer_lost(loss.answers);
        match loss.ending {
            Some(ending) => {
                if ending.reason == EndReason::Pinned && in_flight == 0 {
                    self.settings.metrics.failovers.count(FailoverKind::Pinned);
                }
                self.end(ending);
            }
            None => {
                self.moving = Some(FailoverKind::Idle);
                self.lost = Some(backend);
            }
        }
    }

    /// Does what the session was told from outside.
    fn obey(&mut self, now: Instant) -> Moved {
        if !self.entry.has_commands() || self.phase != Phase::Serving {
            return Moved::No;
        }
        if self.entry.is_told(Command::Kill) {
            return self.end_now(EndReason::Killed, "an operator of the proxy has ended this connection");
        }
        if self.entry.is_told(Command::Distrust) {
            return self.end_now(EndReason::Untrusted, "your address is no longer trusted by this service");
        }
        if self.entry.is_told(Command::Stop) {
            let answers = self.state.fail_all(Refusal::Draining, DRAINING);
            self.answer_lost(answers);
            return self.end_now(EndReason::Shutdown, DRAINING);
        }
        let opaque = self.state.layer() == Layer::Opaque;
        let quiet = self.state.operations().awaited() == 0
            && self.from_client.is_empty()
            && self.to_client.is_empty()
            && (!opaque || now >= self.clock.active + TUNNEL_QUIET);
        if self.entry.is_told(Command::Drain) && quiet {
            return self.end_now(EndReason::Shutdown, DRAINING);
        }
        if self.entry.is_told(Command::Move) && quiet && self.state.operations().is_empty() && !opaque {
            self.entry.fulfil(Command::Move);
            if let Link::Up(up) = &self.link
                && self.state.pin(now).is_none()
            {
                self.lost = Some(Arc::clone(up.upstream.backend()));
                self.moving = Some(FailoverKind::Drain);
                self.link = Link::Down;
                self.entry.set_facts(|facts| facts.backend = None);
                return Moved::Yes;
            }
        }
        Moved::No
    }

    fn end_now(&mut self, reason: EndReason, text: &'static str) -> Moved {
        self.end(Ending::told(reason, ResultCode::UNAVAILABLE, text));
        Moved::Yes
    }

    fn end(&mut self, ending: Ending) {
        if self.phase != Phase::Serving {
            return;
        }
        if let Some((code, text)) = &ending.notice
            && self.state.layer() != Layer::Opaque
        {
            self.to_client.queue(&reply::notice_of_disconnection(*code, text));
        }
        self.phase = Phase::Flushing(ending.reason);
        self.link = Link::Down;
    }

    /// Ends what has been decided to end: last words, close_notify, FIN (§5.3), and a moment for the client to read.
    fn close(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Outcome> {
        loop {
            let client = &mut self.client;
            match self.phase {
                Phase::Serving => return Poll::Pending,
                Phase::Over(reason) => return Poll::Ready(Outcome::Ended(reason)),
                Phase::StartingTls => match self.to_client.poll_flush(cx, client) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Outcome::Ended(EndReason::ClientLost)),
                    Poll::Ready(Ok(())) => return Poll::Ready(Outcome::StartTls),
                },
                Phase::Flushing(EndReason::ClientLost) => return Poll::Ready(Outcome::Ended(EndReason::ClientLost)),
                Phase::Flushing(reason) => match self.to_client.poll_flush(cx, client) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Outcome::Ended(reason)),
                    Poll::Ready(Ok(())) => {
                        self.clock.closing = Some(now + LINGER);
                        self.phase = Phase::ShuttingDown(reason);
                    }
                },
                Phase::ShuttingDown(reason) => match Pin::new(client).poll_shutdown(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Outcome::Ended(reason)),
                    Poll::Ready(Ok(())) if self.client_ended || reason == EndReason::Unbind => {
                        return Poll::Ready(Outcome::Ended(reason));
                    }
                    Poll::Ready(Ok(())) => self.phase = Phase::Lingering(reason, 0),
                },
                Phase::Lingering(reason, discarded) => {
                    let mut inbox = std::mem::take(&mut self.from_client);
                    inbox.consume(inbox.unread().len());
                    let read = inbox.poll_fill(cx, client);
                    inbox.consume(inbox.unread().len());
                    inbox.settle();
                    match read {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(count)) if count > 0 && discarded < MOST_LINGERING => {
                            self.phase = Phase::Lingering(reason, discarded + count);
                        }
                        Poll::Ready(_) => return Poll::Ready(Outcome::Ended(reason)),
                    }
                }
            }
        }
    }

    fn begin_start_tls(&mut self, id: MessageId) {
        self.settings.metrics.operations.record(OperationKind::Extended, 0);
        self.to_client.queue(&reply::start_tls(id, ResultCode::SUCCESS, ""));
        self.phase = Phase::StartingTls;
    }

    fn become_tunnel(&mut self) {
        self.settings.metrics.tunnels.inc();
        self.entry.set_facts(|facts| facts.tunnel = true);
    }

    fn show_in_flight(&mut self) {
        if let Link::Up(up) = &mut self.link {
            up.in_flight.set(self.state.operations().awaited());
        }
    }

    // --- time ------------------------------------------------------------------------------------------------------

    /// Ends or answers what has taken too long; returns when to look again.
    fn keep_time(&mut self, cx: &mut Context<'_>, now: Instant) -> Instant {
        let limits = Arc::clone(&self.settings);
        let limits = &limits.limits;
        let mut next = now + Duration::from_secs(3600);
        let mut due = |at: Instant| {
            if at > now {
                next = next.min(at);
            }
            at <= now
        };
        if self.phase != Phase::Serving {
            let closing = self.clock.closing.get_or_insert(now + limits.write_timeout);
            if due(*closing) {
                self.phase = Phase::Over(self.phase.reason());
            }
            return next;
        }
        let busy = self.state.operations().awaited() > 0;
        if !self.clock.first_request && due(self.clock.began + limits.first_request_timeout) {
            self.end(Ending::silent(EndReason::FirstRequestTimeout));
        } else if self.clock.partial.is_some_and(|since| due(since + limits.request_timeout)) {
            let text = "the request did not arrive whole in time (limits.request_timeout)";
            self.end(Ending::told(EndReason::RequestTimeout, ResultCode::PROTOCOL_ERROR, text));
        } else if self.clock.client_stuck.is_some_and(|since| due(since + limits.write_timeout)) {
            self.end(Ending::silent(EndReason::WriteTimeout));
        } else if self.clock.upstream_stuck.is_some_and(|since| due(since + limits.write_timeout)) {
            self.lose(now);
        } else if !busy && due(self.clock.active + limits.idle_timeout) {
            let text = "closed for being idle (limits.idle_timeout): reconnect when needed";
            self.end(Ending::told(EndReason::IdleTimeout, ResultCode::UNAVAILABLE, text));
        }
        if let Some(timeout) = limits.operation_timeout {
            while let Some((operation, answer)) = self.state.time_out(timeout, now) {
                self.answer(answer);
                if operation.kind == OperationKind::Bind {
                    // A bind can't be abandoned (§4.11): only losing the connection keeps its late result from mattering.
                    self.lose(now);
                } else {
                    self.forward(cx, &abandon(operation.id));
                }
            }
            if let Some(oldest) = self.state.operations().oldest() {
                due(oldest.started + timeout);
            }
        }
        if self.entry.is_told(Command::Drain) && self.state.layer() == Layer::Opaque {
            due(self.clock.active + TUNNEL_QUIET);
        }
        self.state.expire_credential(now);
        if let Some(expiry) = self.state.credential_expiry() {
            due(expiry);
        }
        next
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Run<T> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.get_mut();
        this.entry.wake_by(cx.waker());
        loop {
            let now = Instant::now();
            let phase = this.phase;
            if let Poll::Ready(outcome) = this.turn(cx, now) {
                return Poll::Ready(outcome);
            }
            let next = this.keep_time(cx, now);
            if this.phase != phase {
                continue;
            }
            // Deadlines mostly move away: the timer is set anew only when it has fired or would fire too late.
            if next < this.timer.deadline() || this.timer.is_elapsed() {
                this.timer.as_mut().reset(next);
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

const NO_BACKEND: &str = "no directory server can be reached; retry later";
const REPLAY_REFUSED: &str = "your bind is no longer accepted by the directory: reconnect and bind again";
const DRAINING: &str = "the proxy is shutting down: reconnect";

fn bad_request(error: FrameError) -> Ending {
    let reason = match error {
        FrameError::TooLarge { .. } => EndReason::RequestSize,
        _ => EndReason::ProtocolError,
    };
    Ending::told(reason, ResultCode::PROTOCOL_ERROR, error.to_string())
}

/// An Abandon of this operation, under a messageID of its own that no client of ours uses.
fn abandon(id: MessageId) -> Vec<u8> {
    let mut pdu = vec![0x30, 0x0C, 0x02, 0x04, 0x7F, 0xFF, 0xFF, 0xFF, 0x50, 0x04];
    pdu.extend(id.to_be_bytes());
    pdu
}

/// The word behind `data` in AD's diagnosticMessage.
fn sub_code(diagnostic: &[u8]) -> &str {
    let _ = diagnostic;
    "none"
}
