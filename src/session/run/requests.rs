//! Towards the backend: reading the client, judging its requests, sending them on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::task::coop;
use tokio::time::Instant;

use super::{Link, Moved, OWN_ANSWER, Passing, Phase, QueuedLogin, Run, Up, wait_for};
use crate::buffer::{Inbox, Source};
use crate::failure::{EndReason, FailoverKind, Refusal};
use crate::ldap::{self, Envelope, FrameError, OperationKind, Request, ResultCode, reply};
use crate::policy::{Refused, Standing};
use crate::pool::{Duty, Shortage};
use crate::session::establish::{Establish, EstablishError};
use crate::session::registry::Command;
use crate::session::state::{Layer, START_TLS_TOO_EARLY};
use crate::session::verdict::{Answer, Ending, RequestVerdict};
use crate::throttle::BindName;

/// Octets that may wait for a peer before the other side is no longer read.
const MOST_WAITING: usize = 64 * 1024;

const NO_BACKEND: &str = "no directory server can be reached; retry later";
const NO_SEAT: &str = "every directory server has as many sessions as it may (max_sessions); retry later";
const REPLAY_REFUSED: &str = "your bind is no longer accepted by the directory: reconnect and bind again";

impl<T: Source + AsyncWrite + Unpin> Run<T> {
    pub(super) fn read_client(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        // What the backend has said may wait for a client that sends before it reads; what we say ourselves may not pile up.
        if self.to_upstream.len() >= MOST_WAITING || self.own_words >= MOST_WAITING || self.requests_left == 0 {
            // Nor is it the client's fault then that the rest of a request doesn't arrive.
            self.clock.partial = self.clock.partial.map(|_| now);
            return Moved::No;
        }
        if !self.from_client.is_empty() && self.clock.partial.is_none() {
            // Whole requests are held back until the bind before them is answered, a login while others' results are awaited.
            let is_queued = self.queued_login.as_ref().is_some_and(|login| now < login.due());
            if self.state.bind().awaiting().is_some() || is_queued {
                return Moved::No;
            }
            self.take_requests(cx, now);
            return Moved::Yes;
        }
        if !self.client_ended {
            if self.dry.client {
                return Moved::No;
            }
            match self.from_client.poll_fill(cx, &mut self.client) {
                Poll::Ready(Ok(0)) => self.client_ended = true,
                Poll::Ready(Ok(count)) => {
                    self.settings.listener.received(count);
                    self.entry.received.fetch_add(count as u64, Ordering::Relaxed);
                    self.clock.active = now;
                }
                Poll::Ready(Err(_)) => {
                    self.end(Ending::silent(EndReason::ClientLost));
                    return Moved::Yes;
                }
                Poll::Pending => {
                    self.dry.client = coop::has_budget_remaining();
                    self.from_client.shrink();
                    return Moved::No;
                }
            }
        }
        self.take_requests(cx, now);
        // A half-closed client still gets what it asked for.
        if self.client_ended && self.phase == Phase::Serving {
            if self.state.layer() == Layer::Opaque {
                // It may have unbound: that can't be seen.
                self.phase = Phase::Leaving(EndReason::ClientClosed);
                return Moved::Yes;
            }
            if self.state.operations().awaited() == 0 && self.to_client.is_empty() {
                self.end(Ending::silent(EndReason::ClientClosed));
                return Moved::Yes;
            }
            return Moved::No;
        }
        self.dry.client = wait_for(&mut self.client, cx);
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
        // A request that is not whole is looked at again when more of it arrives, so none is left unlooked at behind `partial`.
        debug_assert!(self.requests_left > 0);
        while let Some(&first) = octets.get(at).filter(|_| self.requests_left > 0) {
            match self.state.layer() {
                Layer::Inspected => {}
                Layer::Undecided => {
                    self.state.decide_layer(first);
                    if self.state.layer() == Layer::Opaque {
                        self.become_tunnel(now);
                        if self.phase != Phase::Serving {
                            at = octets.len();
                            run = at;
                            break;
                        }
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
                Ok(Some(envelope)) => rest.get(..envelope.length).and_then(|pdu| Request::new(pdu, envelope)),
                Ok(None) => None,
                // Behind a bind it is judged once that is answered: then its client may send more.
                Err(_) if self.state.bind().awaiting().is_some() => {
                    self.clock.partial = None;
                    break;
                }
                Err(error) => {
                    self.forward(cx, &octets[run..at]);
                    (run, at) = (octets.len(), octets.len());
                    self.refuse(error);
                    break;
                }
            };
            let Some(request) = request else {
                self.clock.partial.get_or_insert(now);
                break;
            };
            self.requests_left -= 1;
            self.clock.partial = None;
            self.clock.first_request = true;
            let length = request.pdu().len();
            let verdict = match self.state.admit(&request, &self.settings.limits, now) {
                Some(verdict) => verdict,
                None => self.judge(&request, now),
            };
            match verdict {
                RequestVerdict::Forward => {
                    let position = self.to_upstream.position() + (at - run) as u64;
                    self.begin(&request, position, now);
                    at += length;
                    continue;
                }
                RequestVerdict::Hold => break,
                verdict => {
                    self.forward(cx, &octets[run..at]);
                    at += length;
                    run = at;
                    self.requests_left = self.requests_left.saturating_sub(OWN_ANSWER - 1);
                    self.carry_out(verdict, &request, cx, now);
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
        self.from_client.shrink();
        self.show_in_flight();
    }

    /// The envelope of the request that `octets` begin with, as soon as it is there.
    #[inline]
    fn frame(&self, octets: &[u8]) -> Result<Option<Envelope>, FrameError> {
        let limits = &self.settings.limits;
        let Some(envelope) = ldap::envelope(octets, self.state.size_limit(limits))? else { return Ok(None) };
        if OperationKind::from_request_tag(envelope.tag).is_none() {
            return Err(FrameError::NotARequest(envelope.tag));
        }
        self.state.oversize(&envelope, limits)?;
        Ok(Some(envelope))
    }

    /// Ends a session whose client has sent what is no request, or too large a one.
    #[cold]
    fn refuse(&mut self, error: FrameError) {
        let reason = match error {
            FrameError::TooLarge { .. } => {
                self.settings.metrics.refusals.count(Refusal::RequestSize);
                EndReason::RequestSize
            }
            _ => EndReason::ProtocolError,
        };
        self.end(Ending::told(reason, ResultCode::PROTOCOL_ERROR, error.to_string()));
    }

    /// Asks the listener's policy and the login throttle.
    #[inline]
    fn judge(&mut self, request: &Request<'_>, now: Instant) -> RequestVerdict {
        if self.settings.policy.is_open() && request.kind() != OperationKind::Bind {
            return RequestVerdict::Forward;
        }
        self.judge_closely(request, now)
    }

    fn judge_closely(&mut self, request: &Request<'_>, now: Instant) -> RequestVerdict {
        let standing =
            Standing { anonymous: !self.state.bind().is_authenticated(), encrypted: self.state.is_encrypted() };
        if let Err(Refused { code, reason, diagnostic }) = self.settings.policy.judge(request, standing) {
            return RequestVerdict::Answer(Answer::to(request, code, reason, diagnostic, now));
        }
        let throttle = &self.settings.throttle;
        if let Some(bind) = request.bind().filter(|_| !throttle.is_off()) {
            match throttle.attempt(&BindName::of(&bind), self.entry.client.ip(), now.into_std()) {
                Ok(attempt) => (self.attempt, self.queued_login) = (Some(attempt), None),
                Err(throttled) => {
                    let may_pass = throttled.retry_after.is_none();
                    if may_pass && self.queue_login(now) {
                        return RequestVerdict::Hold;
                    }
                    self.queued_login = None;
                    let code = if may_pass { ResultCode::BUSY } else { ResultCode::UNWILLING_TO_PERFORM };
                    let diagnostic = throttled.to_string().into();
                    return RequestVerdict::Answer(Answer::to(request, code, throttled.reason, diagnostic, now));
                }
            }
        }
        RequestVerdict::Forward
    }

    /// Has a login wait, unless it has waited long enough; whether it does.
    fn queue_login(&mut self, now: Instant) -> bool {
        let login = self.queued_login.get_or_insert_with(|| Box::new(QueuedLogin { since: now, asked: now }));
        login.asked = now;
        now < login.since + QueuedLogin::PATIENCE
    }

    fn begin(&mut self, request: &Request<'_>, position: u64, now: Instant) {
        if !request.is_readable() {
            self.settings.metrics.undecoded_requests.inc();
        }
        if request.kind() == OperationKind::Abandon {
            if let Some(operation) = self.state.abandon(request, now) {
                self.unanswered(&operation, now);
            }
            self.unanswerable(request, now);
        } else {
            let described = self.settings.access_log.describe(request);
            self.state.begin(request, position, described, now);
        }
    }

    fn carry_out(&mut self, verdict: RequestVerdict, request: &Request<'_>, cx: &mut Context<'_>, now: Instant) {
        match verdict {
            RequestVerdict::Answer(answer) if request.kind() == OperationKind::Bind => {
                self.refuse_bind(answer, request, now);
            }
            RequestVerdict::Answer(answer) => self.answer(answer, request, now),
            RequestVerdict::End(ending) => self.end(ending),
            RequestVerdict::StartTls if self.is_inside_a_response() => {
                let (code, reason) = (ResultCode::OPERATIONS_ERROR, Refusal::StartTls);
                self.answer(Answer::to(request, code, reason, START_TLS_TOO_EARLY.into(), now), request, now);
            }
            RequestVerdict::StartTls => self.begin_start_tls(request, now),
            RequestVerdict::Unbind => {
                self.unanswerable(request, now);
                if let Link::Up(up) = &self.link {
                    up.upstream.stream.say_goodbye();
                }
                if !matches!(self.link, Link::Down) || !self.to_upstream.is_empty() {
                    self.forward(cx, request.pdu());
                }
                self.phase = Phase::Leaving(EndReason::Unbind);
            }
            RequestVerdict::Ignore => self.unanswerable(request, now),
            RequestVerdict::Forward | RequestVerdict::Hold => {}
        }
    }

    /// Sends octets to the backend, or queues them until there is one.
    pub(super) fn forward(&mut self, cx: &mut Context<'_>, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        match &mut self.link {
            Link::Up(up) => {
                up.upstream.backend().metrics().sent(octets.len());
                self.to_upstream.send(cx, &mut up.upstream.stream, octets);
            }
            Link::Down | Link::Opening(..) => self.to_upstream.queue(octets),
        }
    }

    pub(super) fn flush_upstream(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        let Link::Up(up) = &mut self.link else { return Moved::No };
        let before = self.to_upstream.taken();
        match self.to_upstream.poll_flush(cx, &mut up.upstream.stream) {
            Poll::Ready(Ok(())) => {
                up.stuck = None;
                if self.to_upstream.taken() == before { Moved::No } else { Moved::Yes }
            }
            Poll::Ready(Err(_)) => {
                self.lose(now);
                Moved::Yes
            }
            Poll::Pending => {
                if self.to_upstream.taken() != before {
                    up.stuck = None;
                }
                up.stuck.get_or_insert(now);
                Moved::No
            }
        }
    }

    /// Opens the upstream once there is something to send.
    pub(super) fn open(&mut self, cx: &mut Context<'_>, now: Instant) -> Moved {
        if matches!(self.link, Link::Down) && !self.to_upstream.is_empty() {
            if self.state.has_lost_its_identity(now) {
                self.lose_identity(now);
                return Moved::Yes;
            }
            let establish = Establish {
                pool: self.settings.pool.now(),
                guard: Arc::clone(&self.settings.replay_guard),
                client: self.entry.client,
                left: self.left.take(),
                credential: self.state.credential().cloned(),
            };
            self.link = Link::Opening(Box::pin(establish.run()), now);
        }
        let Link::Opening(opening, since) = &mut self.link else { return Moved::No };
        let since = *since;
        match opening.as_mut().poll(cx) {
            Poll::Pending => Moved::No,
            Poll::Ready(Ok(upstream)) => {
                if let Some(kind) = self.moving.take() {
                    let bound = kind == FailoverKind::Idle && self.state.credential().is_some();
                    let kind = if bound { FailoverKind::BindReplay } else { kind };
                    self.settings.metrics.failovers.count(kind);
                    self.failovers += 1;
                }
                let backend = Arc::clone(upstream.backend());
                let in_flight = backend.metrics().operations_in_flight();
                backend.metrics().sent(self.to_upstream.len());
                self.state.upstream_awaited(since, upstream.queued, now);
                self.entry.set_facts(|facts| {
                    facts.last_backend = Some(Arc::clone(&backend));
                    facts.backend = Some(Arc::clone(&backend));
                });
                if backend.duty() != Duty::Enabled {
                    // The operator's command went to those that were with it already.
                    self.entry.command(Command::Move);
                }
                let up = Up {
                    upstream,
                    inbox: Inbox::default(),
                    passing: Passing::Nothing,
                    in_flight,
                    opened: now,
                    stuck: None,
                    awaited: None,
                };
                self.link = Link::Up(Box::new(up));
                self.dry.upstream = false;
                self.show_in_flight();
                Moved::Yes
            }
            Poll::Ready(Err(error)) => {
                self.link = Link::Down;
                self.to_upstream.restart(Vec::new());
                self.moving = None;
                self.fail(error, since, now);
                Moved::Yes
            }
        }
    }

    fn fail(&mut self, error: EstablishError, since: Instant, now: Instant) {
        match error {
            EstablishError::NoBackend(error) => {
                self.state.upstream_awaited(since, error.queued, now);
                let pool = self.settings.pool.now();
                let pool = &pool.settings().name;
                if error.shortage == Shortage::NoBackend {
                    self.settings.no_backend.warn(pool, &error, now);
                    self.settings.metrics.failovers.count(FailoverKind::Exhausted);
                }
                let (code, reason, text) = match error.shortage {
                    Shortage::NoBackend => (ResultCode::UNAVAILABLE, Refusal::NoBackend, NO_BACKEND),
                    Shortage::QueueFull => (ResultCode::BUSY, Refusal::QueueFull, NO_SEAT),
                    Shortage::QueueTimeout => (ResultCode::BUSY, Refusal::QueueTimeout, NO_SEAT),
                };
                let attempts: Vec<_> =
                    error.attempts.iter().map(|(backend, why)| format!("{backend}: {why}")).collect();
                let detail = if attempts.is_empty() { text.to_owned() } else { attempts.join("; ") };
                self.record(reason, pool, detail);
                let answers = self.state.fail_all(code, reason, text);
                self.answer_all(answers, now);
            }
            EstablishError::ReplayRefused(code) => {
                self.state.upstream_awaited(since, Duration::ZERO, now);
                tracing::warn!(session = self.entry.id, client = %self.entry.client, code = code.map(|code| code.0),
                    "the session's bind was refused by another backend: was the password changed?");
                self.settings.metrics.failovers.count(FailoverKind::ReplayRefused);
                let answers = self.state.fail_all(ResultCode::UNAVAILABLE, Refusal::ReplayRefused, REPLAY_REFUSED);
                self.answer_all(answers, now);
                self.end(Ending::told(EndReason::ReplayRefused, ResultCode::UNAVAILABLE, REPLAY_REFUSED));
            }
        }
        self.clock.active = now;
    }

    /// From here on octets pass unread, if the policy lets them.
    fn become_tunnel(&mut self, now: Instant) {
        if !self.settings.policy.allows_tunnels() {
            self.settings.metrics.refusals.count(Refusal::SaslLayer);
            let text = "SASL security layers are not allowed here (policy.sasl_layer): bind without sign or seal, TLS protects \
                        the connection";
            return self.end(Ending::told(EndReason::Policy, ResultCode::UNWILLING_TO_PERFORM, text));
        }
        self.settings.metrics.tunnels.inc();
        self.entry.set_facts(|facts| facts.tunnel = true);
        // Their answers would pass unseen, and nothing of ours may be said between sealed octets.
        self.give_up_unfinished(now);
    }

    fn begin_start_tls(&mut self, request: &Request<'_>, now: Instant) {
        self.carried_out(request, &reply::start_tls(request.message_id(), ResultCode::SUCCESS, ""), now);
        self.phase = Phase::StartingTls;
    }
}
