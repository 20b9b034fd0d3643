//! What a session counts and writes down.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::time::Instant;

use super::{Link, Run};
use crate::access_log::{OperationRecord, SessionRecord, Timing, Who};
use crate::failure::{ClosedList, EndReason, Refusal, SubCode, Trouble};
use crate::ldap::{OperationKind, Request, Response, ResultCode};
use crate::pool::Backend;
use crate::session::Settings;
use crate::session::operations::Operation;
use crate::session::registry::{Entry, Facts};
use crate::session::verdict::{Answer, Details, Settled};

/// Answered operations that differ in nothing the metrics tell, which are counted together: those of one read mostly are.
#[derive(Default)]
pub(super) struct Tally(Option<Alike>);

impl Drop for Tally {
    fn drop(&mut self) {
        // Or operations were counted by nobody.
        debug_assert!(self.0.is_none());
    }
}

struct Alike {
    kind: OperationKind,
    code: ResultCode,
    started: Instant,
    count: usize,
}

/// How an operation ended, for its record.
#[derive(Default)]
struct End<'a> {
    backend: Option<&'a str>,
    code: Option<ResultCode>,
    sub_code: Option<SubCode>,
    refusal: Option<Refusal>,
}

impl<T> Run<T> {
    /// Counts and logs an operation that the backend has answered. What is in the tally must be counted in the end.
    #[inline]
    pub(super) fn settle(
        &mut self,
        settled: Settled,
        response: &Response<'_>,
        backend: &Arc<Backend>,
        tally: &mut Tally,
        now: Instant,
    ) {
        let (kind, started, code) = (settled.kind, settled.started, settled.code.unwrap_or(ResultCode::OTHER));
        match &mut tally.0 {
            Some(alike) if alike.kind == kind && alike.code == code && alike.started == started => alike.count += 1,
            _ => {
                self.count_tally(tally, backend, now);
                tally.0 = Some(Alike { kind, code, started, count: 1 });
            }
        }
        if let Some(details) = settled.details {
            self.tell_details(*details, code, response, backend, now);
        }
    }

    /// Counts operations that the backend has answered.
    pub(super) fn count_tally(&mut self, tally: &mut Tally, backend: &Backend, now: Instant) {
        let Some(Alike { kind, code, started, count }) = tally.0.take() else { return };
        self.clock.active = now;
        self.count(kind, code, count);
        backend.metrics().answered(kind, now - started, count);
    }

    /// Tells what not every operation has to tell: what came of a bind, and the access log of any.
    fn tell_details(
        &mut self,
        details: Details,
        code: ResultCode,
        response: &Response<'_>,
        backend: &Arc<Backend>,
        now: Instant,
    ) {
        let Details { operation, bind_name } = details;
        let mut sub_code = None;
        if operation.kind == OperationKind::Bind {
            if let Some(attempt) = self.attempt.take() {
                attempt.settle(code, now.into_std());
            }
            if code == ResultCode::INVALID_CREDENTIALS {
                let diagnostic = response.result().map_or(&b""[..], |result| result.diagnostic);
                let reason = SubCode::of(diagnostic);
                self.settings.metrics.bind_failures.count(reason);
                let name = bind_name.as_deref().unwrap_or("a name that isn't known");
                let detail = format_args!("{name} at {}: {reason}. {}", backend.name(), reason.meaning());
                self.record(Trouble::BindRefused, self.entry.client.ip(), detail);
                sub_code = Some(reason);
            }
            if let Some(credential) = self.state.credential().filter(|_| code == ResultCode::SUCCESS) {
                self.settings.replay_guard.vouch(credential);
            }
            // A bind that failed leaves the session anonymous (RFC 4513 §4).
            let bound_as = bind_name.filter(|_| code == ResultCode::SUCCESS);
            self.entry.set_facts(|facts| facts.bind_name = bound_as);
        }
        let end = End { backend: Some(backend.name()), code: Some(code), sub_code, refusal: None };
        self.log_operation(&operation, end, now);
    }

    /// Sends, counts and logs a final response by the proxy to a request that never became an operation.
    pub(super) fn answer(&mut self, answer: Answer, request: &Request<'_>, now: Instant) {
        let operation = self.record_of(request, answer.started);
        self.answer_all(vec![(operation, answer)], now);
    }

    /// The same for operations that the backend didn't answer.
    pub(super) fn answer_all(&mut self, answers: Vec<(Operation, Answer)>, now: Instant) {
        for (mut operation, answer) in answers {
            self.settings.metrics.refusals.count(answer.reason);
            if !matches!(answer.reason, Refusal::NoBackend | Refusal::QueueFull | Refusal::QueueTimeout) {
                let detail = format_args!("{}: {}", answer.kind, answer.diagnostic);
                self.record(answer.reason, self.entry.client.ip(), detail);
            }
            self.count(answer.kind, answer.code, 1);
            if answer.kind == OperationKind::Bind {
                self.entry.set_facts(|facts| facts.bind_name = None);
                // One that timed out may have been judged.
                if answer.reason == Refusal::OperationTimeout {
                    self.attempt = None;
                }
                self.give_attempt_back(answer.code, now);
            }
            let pdu = answer.pdu();
            operation.delivered_octets += pdu.len() as u64;
            self.count_sent(pdu.len());
            self.own_words += pdu.len();
            if let Link::Up(up) = &mut self.link
                && up.is_inside_a_response()
            {
                self.held_words.extend_from_slice(&pdu);
                up.awaited.get_or_insert(now);
            } else {
                self.to_client.queue(&pdu);
            }
            let end = End { code: Some(answer.code), refusal: Some(answer.reason), ..End::default() };
            self.log_operation(&operation, end, now);
        }
        self.clock.active = now;
        self.show_in_flight();
    }

    /// Sends, counts and logs the success of a request that the proxy itself carries out.
    pub(super) fn carried_out(&mut self, request: &Request<'_>, response: &[u8], now: Instant) {
        let mut operation = self.record_of(request, now);
        operation.delivered_octets = response.len() as u64;
        self.count(operation.kind, ResultCode::SUCCESS, 1);
        self.count_sent(response.len());
        self.to_client.queue(response);
        self.log_operation(&operation, End { code: Some(ResultCode::SUCCESS), ..End::default() }, now);
    }

    /// Counts and logs a request that has no response: an unbind or an abandon.
    pub(super) fn unanswerable(&mut self, request: &Request<'_>, now: Instant) {
        self.count(request.kind(), ResultCode::SUCCESS, 1);
        self.log_operation(&self.record_of(request, now), End::default(), now);
    }

    /// A request as an operation that ends as it begins, for its record.
    fn record_of(&self, request: &Request<'_>, started: Instant) -> Operation {
        let described = self.settings.access_log.describe(request);
        Operation::ended(request.message_id(), request.kind(), started, request.pdu().len(), described)
    }

    /// Logs what will never be answered, and the session itself.
    pub(in crate::session) fn close_account(&mut self, reason: EndReason) {
        let now = Instant::now();
        if !self.settings.access_log.is_on() {
            return;
        }
        self.give_up_unfinished(now);
        log_session(&self.settings, &self.entry, self.began, self.failovers, reason);
    }

    pub(super) fn show_in_flight(&mut self) {
        let awaited = self.state.operations().awaited();
        self.entry.in_flight.store(awaited, Ordering::Relaxed);
        if let Link::Up(up) = &mut self.link {
            up.in_flight.set(awaited);
        }
    }

    /// A login that no directory has judged costs its name nothing.
    pub(super) fn give_attempt_back(&mut self, code: ResultCode, now: Instant) {
        if let Some(attempt) = self.attempt.take() {
            attempt.settle(code, now.into_std());
        }
    }

    /// Counts and logs what is in flight as what will never be answered.
    pub(super) fn give_up_unfinished(&mut self, now: Instant) {
        for operation in self.state.take_unfinished() {
            self.unanswered(&operation, now);
        }
    }

    /// Keeps something that went wrong for the status page.
    pub(super) fn record(&self, reason: impl ClosedList, subject: impl Display, detail: impl Display) {
        self.settings.metrics.failures.record(SystemTime::now(), reason, subject, detail);
    }

    /// Whether the client has the beginning of a response and not its end.
    pub(super) fn is_inside_a_response(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.is_inside_a_response())
    }

    /// Counts octets to the client.
    pub(super) fn count_sent(&self, octets: usize) {
        self.settings.listener.sent(octets);
        self.entry.sent.fetch_add(octets as u64, Ordering::Relaxed);
    }

    fn count(&self, kind: OperationKind, code: ResultCode, count: usize) {
        self.entry.operations.fetch_add(count as u64, Ordering::Relaxed);
        self.settings.metrics.operations.record(kind, code.0, count);
    }

    /// Logs what has no result for the metrics: it was abandoned, or its client has gone.
    pub(super) fn unanswered(&self, operation: &Operation, now: Instant) {
        self.entry.operations.fetch_add(1, Ordering::Relaxed);
        self.log_operation(operation, End::default(), now);
    }

    fn log_operation(&self, operation: &Operation, end: End<'_>, now: Instant) {
        let Some(described) = &operation.described else { return };
        let facts = self.entry.read_facts();
        let total = now - operation.started;
        let wall = self.clock.wall.get().unwrap_or_else(SystemTime::now);
        self.clock.wall.set(Some(wall));
        self.settings.access_log.operation(&OperationRecord {
            time: wall,
            who: who(&self.entry, &facts),
            message_id: operation.id,
            operation: operation.kind,
            request: described,
            backend: end.backend,
            result: end.code,
            sub_code: end.sub_code,
            refusal: end.refusal,
            entries: operation.entries,
            references: operation.references,
            bytes_in: operation.length as u64,
            bytes_out: operation.delivered_octets,
            retries: operation.resent.into(),
            timing: Timing {
                queue: operation.queue,
                connect: operation.connect,
                backend: total.saturating_sub(operation.queue + operation.connect),
                total,
            },
        });
    }
}

/// Logs a session that has ended.
pub(in crate::session) fn log_session(
    settings: &Settings,
    entry: &Entry,
    began: Instant,
    failovers: u64,
    ended: EndReason,
) {
    let facts = entry.read_facts();
    settings.access_log.session(&SessionRecord {
        time: SystemTime::now(),
        who: who(entry, &facts),
        backend: facts.last_backend.as_deref().map(Backend::name),
        tunnel: facts.tunnel,
        operations: entry.operations.load(Ordering::Relaxed),
        failovers,
        bytes_in: entry.received.load(Ordering::Relaxed),
        bytes_out: entry.sent.load(Ordering::Relaxed),
        duration: began.elapsed(),
        ended,
    });
}

fn who<'a>(entry: &'a Entry, facts: &'a Facts) -> Who<'a> {
    Who {
        session: entry.id,
        client: entry.client,
        listener: &entry.listener,
        tls: facts.tls.as_ref(),
        bound_as: facts.bind_name.as_deref(),
        written: &facts.written,
    }
}
