//! What becomes of the operations in flight when their upstream is lost, given up or too slow.

use std::time::Duration;

use tokio::time::Instant;

use super::{Layer, SESSION_LOST, State};
use crate::config::FailoverMode;
use crate::failure::{EndReason, FailoverKind, Refusal};
use crate::ldap::{OperationKind, ResultCode};
use crate::session::bind::Identity;
use crate::session::operations::{BACKEND_LOST, Fate, Kept, Operation};
use crate::session::verdict::{Answer, Ending, Loss};

impl State {
    /// The upstream is lost after taking `taken` octets of its stream; `queued` are the octets it didn't take.
    pub fn lose(&mut self, taken: u64, queued: &[u8], now: Instant) -> Loss {
        let mut loss = Loss::default();
        let pin = self.pin(now);
        let in_session = self.failover.mode == FailoverMode::Session && self.layer != Layer::Opaque;
        let bind_lost = self.bind.awaiting();
        let (lost, copies) = self.operations.lose(taken);
        let fails =
            |(operation, fate): &(Operation, Fate)| Some(operation.id) == bind_lost && matches!(fate, Fate::Fail(..));
        let had_a_name = matches!(self.bind.earlier(), Identity::Simple(_) | Identity::Stateful);
        let nameless = had_a_name && lost.iter().any(fails);
        for (mut operation, fate) in lost {
            match fate {
                Fate::Fail(kind, reason, diagnostic) => {
                    loss.fail(operation, kind, reason, diagnostic);
                }
                _ if pin.is_some() || !in_session => {
                    let reason = if pin.is_some() { Refusal::Pinned } else { Refusal::BackendLost };
                    loss.fail(operation, FailoverKind::Pinned, reason, SESSION_LOST);
                }
                // Whose it was ends with the bind that fails.
                Fate::Requeue | Fate::Resend(_) if nameless => {
                    loss.fail(operation, FailoverKind::Exhausted, Refusal::BackendLost, BACKEND_LOST);
                }
                Fate::Requeue | Fate::Resend(_) => {
                    if let Fate::Resend(kind) = fate {
                        operation.resent = true;
                        loss.kinds.push(kind);
                    }
                    let start = operation.position.checked_sub(taken).and_then(|start| usize::try_from(start).ok());
                    operation.position = loss.resend.len() as u64;
                    let request = match (&operation.kept, start) {
                        (Kept::Bind(bind), _) => bind.pdu(),
                        (Kept::Copy(copy), _) => copies.get(*copy, operation.length),
                        (Kept::Nothing, Some(start)) => &queued[start..start + operation.length],
                        (Kept::Nothing, None) => unreachable!("what is sent again is kept or was still queued"),
                    };
                    loss.resend.extend_from_slice(request);
                    if let Kept::Copy(_) = operation.kept {
                        // It is sent again only once.
                        operation.kept = if operation.resent { Kept::Nothing } else { self.operations.copy(request) };
                    }
                    self.operations.make_ready();
                    self.operations.begin(operation);
                }
            }
        }
        if let Some(id) = bind_lost
            && self.operations.find(id).is_none()
        {
            self.bind.fail();
        }
        loss.ending = if !in_session {
            Some(Ending::told(EndReason::BackendLost, ResultCode::UNAVAILABLE, SESSION_LOST))
        } else {
            pin.map(|_| Ending::told(EndReason::Pinned, ResultCode::UNAVAILABLE, SESSION_LOST))
        };
        loss
    }

    /// No backend could be reached, or none wants the session's identity: everything in flight is answered.
    pub fn fail_all(
        &mut self,
        code: ResultCode,
        reason: Refusal,
        diagnostic: &'static str,
    ) -> Vec<(Operation, Answer)> {
        let mut loss = Loss::default();
        for operation in self.operations.take_all() {
            loss.fail(operation, FailoverKind::Exhausted, reason, diagnostic);
        }
        for (_, answer) in &mut loss.answers {
            answer.code = code;
        }
        if self.bind.awaiting().is_some() {
            self.bind.fail();
        }
        loss.answers
    }

    /// The upstream is given up: everything in flight is answered, and a write that may have happened is told from one
    /// that hasn't.
    pub fn stop(&mut self, taken: u64, reason: Refusal, diagnostic: &'static str) -> Vec<(Operation, Answer)> {
        let mut loss = Loss::default();
        for (operation, fate) in self.operations.lose(taken).0 {
            match fate {
                Fate::Fail(kind, reason @ Refusal::OutcomeUnknown, text) => loss.fail(operation, kind, reason, text),
                _ => loss.fail(operation, FailoverKind::Exhausted, reason, diagnostic),
            }
        }
        loss.answers
    }

    /// The oldest operation, if it has taken longer than `timeout`, ended with timeLimitExceeded: the client gets the
    /// answer, the backend an Abandon of its messageID.
    pub fn time_out(&mut self, timeout: Duration, now: Instant) -> Option<(Operation, Answer)> {
        let overdue = self.operations.oldest().filter(|oldest| now >= oldest.started + timeout)?;
        let operation = self.operations.abandon(overdue.id)?;
        if operation.kind == OperationKind::Bind {
            self.bind.fail();
        }
        let answer = Answer {
            id: operation.id,
            kind: operation.kind,
            code: ResultCode::TIME_LIMIT_EXCEEDED,
            reason: Refusal::OperationTimeout,
            diagnostic: "the backend did not answer in time (limits.operation_timeout): narrow the request or retry"
                .into(),
            started: operation.started,
        };
        Some((operation, answer))
    }
}
