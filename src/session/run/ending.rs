//! Losing the upstream, obeying commands, keeping time, and ending.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::{Link, Moved, Outcome, Phase, Run, Up};
use crate::buffer::{Inbox, Source};
use crate::failure::{EndReason, FailoverKind, Refusal, Trouble};
use crate::ldap::{MessageId, OperationKind, Request, ResultCode, reply};
use crate::pool::{Duty, EventKind, Health, Left};
use crate::session::registry::Command;
use crate::session::state::{Layer, SESSION_LOST};
use crate::session::verdict::{Answer, Ending, Overdue};

/// A tunnel that is drained ends once this long has passed without a byte: its operations can't be seen.
const TUNNEL_QUIET: Duration = Duration::from_secs(1);
/// How long a client may take to read our last words, and octets of its own we discard meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const MOST_LINGERING: usize = 1 << 20;
/// How often a session that has to leave a drained backend looks whether it can.
const LEAVING: Duration = Duration::from_secs(1);
const PAGE: usize = 4096;

const BIND_TOO_EARLY: &str =
    "a refused bind ended the session's identity before this was answered: await results, then bind";
const DRAINING: &str = "the proxy is shutting down: reconnect";

impl<T: Source + AsyncWrite + Unpin> Run<T> {
    pub(super) fn lose(&mut self, now: Instant) {
        let Link::Up(up) = &self.link else { return };
        let backend = Arc::clone(up.upstream.backend());
        let in_flight = self.state.operations().awaited();
        backend.report(self.entry.client.ip(), EventKind::Lost { in_flight });
        let cut = up.is_inside_a_response();
        self.hang_up();
        let loss = self.state.lose(self.to_upstream.taken(), self.to_upstream.waiting(), now);
        self.to_upstream.restart(loss.resend);
        for kind in loss.kinds {
            self.settings.metrics.failovers.count(kind);
        }
        if in_flight > 0 {
            let detail = format_args!("operations in flight: {in_flight}, of {}", self.entry.client.ip());
            self.record(Trouble::UpstreamLost, backend.name(), detail);
        } else if let Some(ending) = &loss.ending {
            self.record(
                ending.reason,
                self.entry.client.ip(),
                format_args!("its session ended with {}", backend.name()),
            );
        }
        if cut {
            // The client is in the middle of a PDU: nothing else can be said on this connection.
            for (operation, _) in &loss.answers {
                self.unanswered(operation, now);
            }
            return self.end(Ending::silent(EndReason::BackendLost));
        }
        self.answer_all(loss.answers, now);
        match loss.ending {
            Some(ending) => {
                if ending.reason == EndReason::Pinned && in_flight == 0 {
                    self.settings.metrics.failovers.count(FailoverKind::Pinned);
                }
                self.end(ending);
            }
            None => {
                self.moving = Some(FailoverKind::Idle);
                // A backend that closes an idle connection in good order is as good as before.
                self.left = (in_flight > 0).then_some(Left::Lost(backend));
            }
        }
    }

    /// Ends the session if it was told from outside to end at once.
    pub(super) fn obey_at_once(&mut self, now: Instant) -> Moved {
        if !self.entry.has_commands() {
            return Moved::No;
        }
        if self.entry.is_told(Command::Kill) {
            return self.end_now(EndReason::Killed, "an operator of the proxy has ended this connection");
        }
        if self.entry.is_told(Command::Distrust) {
            return self.end_now(EndReason::Untrusted, "your address is no longer trusted by this service");
        }
        if self.entry.is_told(Command::Stop) {
            let answers = self.state.stop(self.to_upstream.taken(), Refusal::Draining, DRAINING);
            self.answer_all(answers, now);
            return self.end_now(EndReason::Shutdown, DRAINING);
        }
        Moved::No
    }

    /// Does what the session was told from outside and that can wait until it has a moment.
    pub(super) fn obey(&mut self, now: Instant) -> Moved {
        if !self.entry.has_commands() || self.phase != Phase::Serving {
            return Moved::No;
        }
        if self.entry.is_told(Command::Leave) {
            self.entry.fulfil(Command::Leave);
            // It may have found out by itself, and be with another backend by now.
            if let Link::Up(up) = &self.link
                && up.upstream.backend().health() == Health::Down
            {
                self.lose(now);
                return Moved::Yes;
            }
        }
        let opaque = self.state.layer() == Layer::Opaque;
        let quiet = self.state.operations().awaited() == 0
            && self.from_client.is_empty()
            && self.to_client.is_empty()
            && (!opaque || now >= self.clock.active + TUNNEL_QUIET);
        if self.entry.is_told(Command::Drain) && quiet {
            return self.end_now(EndReason::Shutdown, DRAINING);
        }
        if quiet && !opaque { self.leave_for_another(now) } else { Moved::No }
    }

    /// Leaves the backend, if the session was told to and another can take over.
    fn leave_for_another(&mut self, now: Instant) -> Moved {
        // What was abandoned may have its answer half delivered, or be half sent.
        if self.is_inside_a_response() || !self.to_upstream.is_flushed() {
            return Moved::No;
        }
        let outweighed = self.entry.is_told(Command::Rebalance);
        self.entry.fulfil(Command::Rebalance);
        let Link::Up(up) = &self.link else { return Moved::No };
        let backend = Arc::clone(up.upstream.backend());
        if backend.duty() == Duty::Enabled {
            // The drain was taken back.
            self.entry.fulfil(Command::Move);
        }
        let drained = self.entry.is_told(Command::Move);
        let another =
            || self.settings.pool.now().backends().iter().any(|other| other.is_usable() && !other.is(&backend));
        if !(drained || outweighed) || self.state.pin(now).is_some() || !another() {
            return Moved::No;
        }
        self.entry.fulfil(Command::Move);
        let (left, moving) = match drained {
            true => (Left::Lost(backend), FailoverKind::Drain),
            false => (Left::Outweighed(backend), FailoverKind::Rebalance),
        };
        (self.left, self.moving) = (Some(left), Some(moving));
        self.hang_up();
        Moved::Yes
    }

    fn hang_up(&mut self) {
        self.link = Link::Down;
        self.entry.set_facts(|facts| facts.backend = None);
    }

    /// Answers a bind that goes no further, and leaves the identity it ends, with the upstream, so that nothing that follows is
    /// done under a name the client has given up. What was asked under that name is recorded under it first.
    pub(super) fn refuse_bind(&mut self, answer: Answer, request: &Request<'_>, now: Instant) {
        if !self.state.refuse_bind() {
            return self.answer(answer, request, now);
        }
        if self.is_inside_a_response() {
            self.give_up_unfinished(now);
            self.answer(answer, request, now);
            return self.end(Ending::silent(EndReason::Policy));
        }
        self.hang_up();
        let unfinished = self.state.stop(self.to_upstream.taken(), Refusal::ProtocolError, BIND_TOO_EARLY);
        let was_too_early = !unfinished.is_empty();
        self.to_upstream.restart(Vec::new());
        self.answer_all(unfinished, now);
        self.answer(answer, request, now);
        if was_too_early {
            self.end(Ending::told(EndReason::Policy, ResultCode::UNWILLING_TO_PERFORM, BIND_TOO_EARLY));
        }
    }

    /// Ends a session whose name can't be told to another backend, and whose connection to one is gone.
    pub(super) fn lose_identity(&mut self, now: Instant) {
        self.to_upstream.restart(Vec::new());
        self.settings.metrics.failovers.count(FailoverKind::Pinned);
        let answers = self.state.fail_all(ResultCode::UNAVAILABLE, Refusal::Pinned, SESSION_LOST);
        self.answer_all(answers, now);
        self.end(Ending::told(EndReason::Pinned, ResultCode::UNAVAILABLE, SESSION_LOST));
    }

    fn end_now(&mut self, reason: EndReason, text: &'static str) -> Moved {
        self.end(Ending::told(reason, ResultCode::UNAVAILABLE, text));
        Moved::Yes
    }

    pub(super) fn end(&mut self, ending: Ending) {
        if self.phase != Phase::Serving {
            return;
        }
        if is_fault(ending.reason) {
            let text = ending.notice.as_ref().map_or("", |(_, text)| text);
            self.record(ending.reason, self.entry.client.ip(), text);
        }
        if let Some((code, text)) = &ending.notice
            && self.state.layer() != Layer::Opaque
            && !self.is_inside_a_response()
        {
            self.to_client.queue(&reply::notice_of_disconnection(*code, text));
        }
        if self.state.awaits_unsent_bind(self.to_upstream.taken()) {
            self.give_attempt_back(ResultCode::UNAVAILABLE, Instant::now());
        }
        // Of another nobody will know what came of it: no login need wait for that.
        self.attempt = None;
        self.phase = Phase::Flushing(ending.reason);
        self.link = Link::Down;
        // The turn under way would open another upstream for what is left, which may begin in the middle of a request.
        self.to_upstream.restart(Vec::new());
    }

    /// Ends what has been decided to end: last words, close_notify, FIN (§5.3), and a moment for the client to read.
    pub(super) fn close(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Outcome> {
        loop {
            match self.phase {
                Phase::Serving => return Poll::Pending,
                Phase::Leaving(reason) => {
                    // A backend that takes nothing must not cut short what the client was told before it said goodbye.
                    let _ = self.to_client.poll_flush(cx, &mut self.client);
                    let moved = [self.open(cx, now), self.flush_upstream(cx, now)];
                    if !self.to_upstream.is_flushed() {
                        if moved.contains(&Moved::Yes) {
                            continue;
                        }
                        return Poll::Pending;
                    }
                    self.link = Link::Down;
                    self.phase = Phase::Flushing(reason);
                    continue;
                }
                Phase::Over(reason) => return Poll::Ready(Outcome::Ended(reason)),
                Phase::StartingTls => match self.to_client.poll_flush(cx, &mut self.client) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Outcome::Ended(EndReason::ClientLost)),
                    Poll::Ready(Ok(())) => return Poll::Ready(Outcome::StartTls),
                },
                Phase::Flushing(EndReason::ClientLost) => return Poll::Ready(Outcome::Ended(EndReason::ClientLost)),
                Phase::Flushing(reason) => match self.to_client.poll_flush(cx, &mut self.client) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Outcome::Ended(reason)),
                    Poll::Ready(Ok(())) => {
                        self.clock.closing = Some(now + LINGER);
                        self.phase = Phase::ShuttingDown(reason);
                    }
                },
                Phase::ShuttingDown(reason) => match Pin::new(&mut self.client).poll_shutdown(cx) {
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
                    let read = inbox.poll_fill(cx, &mut self.client);
                    inbox.consume(inbox.unread().len());
                    inbox.shrink();
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

    /// Ends the session if its buffers are large while all sessions' together are too large.
    pub(super) fn keep_to_memory(&mut self) {
        let from_upstream = if let Link::Up(up) = &self.link { up.inbox.capacity() } else { 0 };
        let ours = self.from_client.capacity() + self.to_client.capacity() + self.to_upstream.capacity();
        // In whole pages: most sessions keep less, and what all hold together is counted in one place.
        let kept = self.state.operations().held_octets() / PAGE * PAGE;
        let held = ours + self.held_words.capacity() + from_upstream + kept;
        if !self.memory.hold(held) && self.phase == Phase::Serving {
            self.settings.metrics.refusals.count(Refusal::BufferMemory);
            let text = "the proxy's buffers are full (limits.buffer_memory): send smaller requests, read faster, or retry later";
            self.end(Ending::told(EndReason::BufferMemory, ResultCode::BUSY, text));
            self.from_client = Inbox::default();
            self.to_upstream.restart(Vec::new());
        }
    }

    /// Since when a backend that is down, and was tried because no other is left, has not answered at all. That it takes
    /// connections says little: the kernel of a machine that hangs does.
    fn silent_since(&self, up: &Up) -> Option<Instant> {
        let doubtful = !up.upstream.has_answered() && up.upstream.backend().health() == Health::Down;
        let oldest = self.state.operations().oldest().filter(|_| doubtful)?;
        Some(oldest.started.max(up.opened))
    }

    /// Ends or answers what has taken too long; returns whether there was any, and when to look again.
    pub(super) fn keep_time(&mut self, cx: &mut Context<'_>, now: Instant) -> (Moved, Instant) {
        let mut moved = Moved::No;
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
                moved = Moved::Yes;
            }
            return (moved, next);
        }
        let busy = self.state.operations().awaited() > 0;
        // A client that is gone looks like one that has only nothing more to ask, and behind a bind it isn't read. Neither
        // can be waited for without end: a change notification has none.
        let maybe_gone = self.client_ended || self.state.bind().awaiting().is_some();
        let all_taken = self.to_client.is_empty();
        if !self.clock.first_request && due(self.clock.began + limits.first_request_timeout) {
            self.end(Ending::silent(EndReason::FirstRequestTimeout));
        } else if self.clock.partial.is_some_and(|since| due(since + limits.request_timeout)) {
            let text = "the request did not arrive whole in time (limits.request_timeout)";
            self.end(Ending::told(EndReason::RequestTimeout, ResultCode::PROTOCOL_ERROR, text));
        } else if self.clock.client_stuck.is_some_and(|since| due(since + limits.write_timeout)) {
            self.end(Ending::silent(EndReason::WriteTimeout));
        } else if let Link::Up(up) = &self.link
            && (up.stuck.is_some_and(|since| due(since + limits.write_timeout))
                // What we have to say must not wait for ever for the end of a response of which no more comes.
                || (all_taken && up.awaited.is_some_and(|since| due(since + limits.write_timeout)))
                || self
                    .silent_since(up)
                    .is_some_and(|since| due(since + self.settings.pool.now().settings().connect_budget)))
        {
            self.lose(now);
            moved = Moved::Yes;
        } else if (!busy || maybe_gone) && due(self.clock.active + limits.idle_timeout) {
            let text = "closed for being idle (limits.idle_timeout): reconnect when needed";
            self.end(Ending::told(EndReason::IdleTimeout, ResultCode::UNAVAILABLE, text));
        }
        if self.phase != Phase::Serving {
            // Nothing may follow the notice of disconnection, not even the answer to what is overdue as well.
            return (Moved::Yes, next);
        }
        if let Some(timeout) = limits.operation_timeout {
            while let Some(overdue) = self.state.time_out(timeout, self.to_upstream.taken(), now) {
                moved = Moved::Yes;
                // While the client doesn't take what there is, the backend isn't read.
                if let Link::Up(up) = &self.link
                    && overdue.was_unanswered()
                    && all_taken
                {
                    up.upstream.backend().report(self.entry.client.ip(), EventKind::TimedOut);
                }
                let Overdue { operation, answer, is_unsent } = overdue;
                let kind = operation.kind;
                let (id, position, length) = (operation.id, operation.position, operation.length);
                if kind == OperationKind::Bind && is_unsent && !operation.resent {
                    self.give_attempt_back(answer.code, now);
                }
                self.answer_all(vec![(operation, answer)], now);
                if kind == OperationKind::Bind {
                    // A bind can't be abandoned (§4.11): only losing the connection keeps its late result from mattering.
                    // One that waits for its upstream isn't sent any more; all that was asked before it is overdue as well.
                    match self.link {
                        Link::Up(_) => self.lose(now),
                        Link::Down | Link::Opening(..) => {
                            self.link = Link::Down;
                            self.to_upstream.restart(Vec::new());
                        }
                    }
                } else if is_unsent {
                    self.to_upstream.take_back(position, length);
                } else {
                    self.forward(cx, &abandon(id));
                }
            }
            if let Some(oldest) = self.state.operations().oldest() {
                due(oldest.started + timeout);
            }
        }
        if let Some(login) = &self.queued_login {
            due(login.due());
        }
        if self.entry.is_told(Command::Move) && matches!(self.link, Link::Up(_)) {
            due(now + LEAVING);
        }
        if self.entry.is_told(Command::Drain) && self.state.layer() == Layer::Opaque {
            due(self.clock.active + TUNNEL_QUIET);
        }
        self.state.expire_credential(now);
        if let Some(expiry) = self.state.credential_expiry() {
            due(expiry);
        }
        (moved, next)
    }
}

/// Whether a session that ended so failed by itself: neither usual nor told of elsewhere.
fn is_fault(reason: EndReason) -> bool {
    use EndReason::{BufferMemory, Policy, ProtocolError, RequestSize, RequestTimeout, WriteTimeout};
    matches!(reason, ProtocolError | RequestSize | RequestTimeout | WriteTimeout | BufferMemory | Policy)
}

/// An Abandon of this operation, under a messageID of its own that no client of ours uses.
fn abandon(id: MessageId) -> Vec<u8> {
    let mut pdu = vec![0x30, 0x0C, 0x02, 0x04, 0x7F, 0xFF, 0xFF, 0xFF, 0x50, 0x04];
    pdu.extend(id.to_be_bytes());
    pdu
}
