//! What becomes of the operations in flight when their upstream is lost, given up or too slow.

use std::time::Duration;

use tokio::time::Instant;

use super::{Layer, SESSION_LOST, State};
use crate::config::FailoverMode;
use crate::failure::{EndReason, FailoverKind, Refusal};
use crate::ldap::{OperationKind, ResultCode};
use crate::session::bind::Identity;
use crate::session::operations::{BACKEND_LOST, Fate, Kept, Operation};
use crate::session::verdict::{Answer, Ending, Loss, Overdue};

const TOO_SLOW: &str = "the backend did not answer in time (limits.operation_timeout): narrow the request or retry";
const WRITE_TOO_SLOW: &str = "outcome unknown: the backend did not answer in time (limits.operation_timeout); read the entry to see \
                              whether the change was made";

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

    /// The oldest operation, if it has taken longer than `timeout`, ended with timeLimitExceeded: the client gets the answer, the
    /// backend an Abandon of its messageID if it may know of it: the upstream has taken `taken` octets of its stream.
    pub fn time_out(&mut self, timeout: Duration, taken: u64, now: Instant) -> Option<Overdue> {
        let overdue = self.operations.oldest().filter(|oldest| now >= oldest.started + timeout)?;
        let (id, is_unsent) = (overdue.id, overdue.is_unsent(taken));
        // What nobody was asked nobody will answer: its messageID is free.
        let operation =
            if is_unsent { self.operations.end(id, Operation::take_record) } else { self.operations.abandon(id) }?;
        if operation.kind == OperationKind::Bind {
            self.bind.fail();
        }
        if is_unsent {
            self.operations.withdraw(operation.position, operation.length);
        } else if operation.writes {
            self.pins.wrote(now);
        }
        let diagnostic = if operation.writes && !is_unsent { WRITE_TOO_SLOW } else { TOO_SLOW };
        let answer = Answer {
            id: operation.id,
            kind: operation.kind,
            code: ResultCode::TIME_LIMIT_EXCEEDED,
            reason: Refusal::OperationTimeout,
            diagnostic: diagnostic.into(),
            started: operation.started,
        };
        Some(Overdue { operation, answer, is_unsent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Failover;
    use crate::ldap::{Request, envelope};
    use crate::session::pins::Pin;
    use crate::session::state::StartTls;

    /// Nobody knows whether it happened: reads that follow belong to the backend that may have done it.
    #[test]
    fn a_write_that_takes_too_long_may_have_happened_if_it_left() {
        let pdu = b"\x30\x0b\x02\x01\x03\x66\x06\x04\x02cn\x30\x00";
        let envelope = envelope(pdu, usize::MAX).expect("well-formed").expect("whole");
        for (taken, pin, outcome_unknown) in [(0, None, false), (pdu.len() as u64, Some(Pin::RecentWrite), true)] {
            let (mut state, began) = (State::new(Failover::default(), StartTls::Established), Instant::now());
            state.begin(&Request::new(pdu, envelope).expect("a modify"), 0, None, began);
            let timeout = Duration::from_secs(1);
            let Overdue { answer, .. } = state.time_out(timeout, taken, began + timeout).expect("it is overdue");
            assert_eq!(state.operations().may_use(3), taken == 0, "what nobody was asked nobody answers late");
            assert_eq!(answer.code, ResultCode::TIME_LIMIT_EXCEEDED);
            assert_eq!(answer.diagnostic.contains("outcome unknown"), outcome_unknown);
            assert_eq!(state.pin(began + timeout), pin);
        }
    }
}
