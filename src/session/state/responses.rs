//! What a response changes in a session's knowledge of itself.

use tokio::time::Instant;

use super::{Layer, State};
use crate::failure::EndReason;
use crate::ldap::{MessageId, OperationKind, Response, ResponseKind, ResultCode};
use crate::session::operations::Kept;
use crate::session::verdict::{Details, ResponseVerdict, Settled};

impl State {
    /// Takes up one whole response.
    #[inline]
    pub fn response(&mut self, response: &Response<'_>, now: Instant) -> ResponseVerdict {
        let id = response.message_id();
        if id == 0 {
            return self.unsolicited(response);
        }
        if !response.kind().is_final() {
            let is_awaited = self.part(id, response.kind(), response.pdu().len());
            return if is_awaited { ResponseVerdict::Forward(None) } else { ResponseVerdict::Ignore };
        }
        self.conclude(response, now).map_or(ResponseVerdict::Ignore, |settled| ResponseVerdict::Forward(Some(settled)))
    }

    /// Ends the operation that a final response answers, if there is one.
    #[inline(always)]
    fn conclude(&mut self, response: &Response<'_>, now: Instant) -> Option<Settled> {
        let code = response.code();
        let mut settled = self.operations.end(response.message_id(), |operation| {
            operation.delivered_octets += response.pdu().len() as u64;
            if operation.writes && code == Some(ResultCode::SUCCESS) {
                self.pins.wrote(now);
            }
            // Of most there is no more to be said than this.
            let has_details =
                operation.kind == OperationKind::Bind || operation.page.is_some() || operation.described.is_some();
            let details = has_details.then(|| Box::new(Details { operation: operation.take(), bind_name: None }));
            Settled { kind: operation.kind, started: operation.started, code, details }
        })?;
        if settled.details.is_some() {
            self.conclude_details(&mut settled, response, now);
        }
        Some(settled)
    }

    /// The same of what not every operation has.
    fn conclude_details(&mut self, settled: &mut Settled, response: &Response<'_>, now: Instant) {
        let Some(details) = &mut settled.details else { return };
        if let Some(page) = details.operation.page {
            self.pins.paged(page, response.paging_cookie());
        }
        if settled.kind != OperationKind::Bind {
            return;
        }
        // A success of which not everything can be read is none.
        settled.code = response.result().map(|result| result.code);
        let code = settled.code.unwrap_or(ResultCode::OPERATIONS_ERROR);
        let kept = match std::mem::take(&mut details.operation.kept) {
            Kept::Bind(bind) if self.failover.replay_bind => Some(bind),
            _ => None,
        };
        let bound = self.bind.response(code, kept, now);
        details.bind_name = bound.name;
        if bound.may_begin_layer {
            self.layer = Layer::Undecided;
        }
        if code == ResultCode::SUCCESS {
            self.pins.rebound();
        }
        // What was asked before it was asked by somebody else.
        self.operations.forget_requests();
    }

    /// Takes up an entry, a reference or an intermediate response, of which the first octets may be all that has arrived;
    /// false if nobody awaits it.
    #[inline(always)]
    pub fn part(&mut self, id: MessageId, kind: ResponseKind, length: usize) -> bool {
        debug_assert!(!kind.is_final());
        let Some(operation) = self.operations.find_mut(id) else { return false };
        match kind {
            ResponseKind::Entry => operation.entries += 1,
            ResponseKind::Reference => operation.references += 1,
            _ => operation.intermediates += 1,
        }
        operation.delivered_octets += length as u64;
        true
    }

    fn unsolicited(&self, response: &Response<'_>) -> ResponseVerdict {
        if !response.is_notice_of_disconnection() {
            return ResponseVerdict::Forward(None);
        }
        match response.result().map(|result| result.code) {
            Some(ResultCode::BUSY | ResultCode::UNAVAILABLE) => ResponseVerdict::Lost,
            _ => ResponseVerdict::ForwardAndEnd(EndReason::BackendNotice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Failover;
    use crate::ldap::{Authentication, BindRequest, Envelope, Request, envelope};
    use crate::session::pins::Pin;
    use crate::session::state::StartTls;

    /// Octets and the envelope in them, which must be whole.
    fn framed(pdu: &[u8]) -> (&[u8], Envelope) {
        (pdu, envelope(pdu, usize::MAX).expect("well-formed").expect("whole"))
    }

    /// Its name and, for a replay, its request would be kept for as long as the session lives.
    #[test]
    fn of_an_oversized_bind_little_is_kept() {
        let now = Instant::now();
        for (octets, replayed) in [(100, true), (20_000, false)] {
            let name = [&b"ann\0"[..], &vec![0xFF; octets]].concat();
            let element = |tag: u8, content: &[u8]| {
                let length = u32::try_from(content.len()).expect("32 bits").to_be_bytes();
                [&[tag, 0x84][..], &length, content].concat()
            };
            let bind = element(0x60, &[&b"\x02\x01\x03"[..], &element(0x04, &name), b"\x80\x01p"].concat());
            let pdu = element(0x30, &[&b"\x02\x01\x01"[..], &bind].concat());
            let mut state = State::new(Failover::default(), StartTls::Established);
            let (bind, envelope) = framed(&pdu);
            state.begin(&Request::new(bind, envelope).expect("a bind"), 0, None, now);
            let (success, envelope) = framed(b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00");
            let verdict = state.response(&Response::new(success, envelope).expect("a response"), now);
            let ResponseVerdict::Forward(Some(Settled { details: Some(details), .. })) = verdict else {
                panic!("a bind")
            };
            assert_eq!(details.bind_name.as_deref(), Some("ann"));
            assert!(state.bind().is_authenticated());
            assert_eq!(state.credential().is_some(), replayed);
        }
        let long = [b'x'; 2000];
        let bind = BindRequest { name: &long, authentication: Authentication::Simple(b"p") };
        assert_eq!(super::super::simple_name(&bind).expect("it is simple").len(), 1024);
    }

    /// Its backend knows nothing of the bind: what it keeps for the session still stands.
    #[test]
    fn a_refused_bind_of_somebody_anonymous_leaves_its_pins() {
        let mut state = State::new(Failover::default(), StartTls::Established);
        let search = b"\x30\x30\x02\x01\x01\x63\x2b\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\x87\x01a\
            \x30\x15\x04\x13highestCommittedUSN";
        let (search, envelope) = framed(search);
        state.begin(&Request::new(search, envelope).expect("a search"), 0, None, Instant::now());
        let pin = state.pin(Instant::now());
        assert_eq!(pin, Some(Pin::UpdateSequence));
        assert!(!state.refuse_bind());
        assert_eq!(state.pin(Instant::now()), pin);
    }

    /// A diagnostic that is longer than the result around it: who can't read it hasn't bound.
    #[test]
    fn a_bind_whose_success_cannot_be_read_whole_binds_nobody() {
        let now = Instant::now();
        for (response, binds) in [
            (b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00", true),
            (b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x05", false),
        ] {
            let mut state = State::new(Failover::default(), StartTls::Established);
            let (bind, envelope) = framed(b"\x30\x0f\x02\x01\x01\x60\x0a\x02\x01\x03\x04\x02cn\x80\x01p");
            state.begin(&Request::new(bind, envelope).expect("a bind"), 0, None, now);
            let (pdu, envelope) = framed(response);
            let verdict = state.response(&Response::new(pdu, envelope).expect("a response"), now);
            assert!(matches!(verdict, ResponseVerdict::Forward(Some(_))), "the client is to judge for itself");
            assert_eq!(state.bind().is_authenticated(), binds);
        }
    }
}
