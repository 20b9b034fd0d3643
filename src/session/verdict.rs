//! What becomes of requests, responses and a session: the words in which its state answers.

use std::borrow::Cow;

use tokio::time::Instant;

use super::operations::Operation;
use crate::failure::{EndReason, FailoverKind, Refusal};
use crate::ldap::{MessageId, OperationKind, Request, ResultCode, reply};

/// What becomes of a request.
#[derive(Debug)]
pub enum RequestVerdict {
    /// Its octets go to the upstream.
    Forward,
    /// It waits for the response to the bind before it (§4.2.1). Nothing after it may be read either.
    Hold,
    /// The proxy answers it; the backend never sees it.
    Answer(Answer),
    /// Nobody answers it.
    Ignore,
    /// The client starts TLS: answer success, then handshake.
    StartTls,
    /// The client says goodbye.
    Unbind,
    /// The session ends with this notice.
    End(Ending),
}

/// A final response by the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request it answers.
    pub id: MessageId,
    /// What the request asked for.
    pub kind: OperationKind,
    /// resultCode
    pub code: ResultCode,
    /// Why.
    pub reason: Refusal,
    /// What the client's owner is told to do.
    pub diagnostic: Cow<'static, str>,
    /// When the request arrived.
    pub started: Instant,
}

impl Answer {
    /// An answer to this request.
    pub fn to(
        request: &Request<'_>,
        code: ResultCode,
        reason: Refusal,
        diagnostic: Cow<'static, str>,
        started: Instant,
    ) -> Self {
        Self { id: request.message_id(), kind: request.kind(), code, reason, diagnostic, started }
    }

    /// The response's octets.
    pub fn pdu(&self) -> Vec<u8> {
        match self.reason {
            Refusal::StartTls => reply::start_tls(self.id, self.code, &self.diagnostic),
            _ => reply::result(self.kind, self.id, self.code, &self.diagnostic),
        }
    }
}

/// How a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: EndReason,
    /// The Notice of Disconnection's code and text; none where the client has gone or can't be told.
    pub notice: Option<(ResultCode, Cow<'static, str>)>,
}

impl Ending {
    /// An ending without a word.
    pub const fn silent(reason: EndReason) -> Self {
        Self { reason, notice: None }
    }

    /// An ending with a Notice of Disconnection.
    pub fn told(reason: EndReason, code: ResultCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, notice: Some((code, text.into())) }
    }
}

/// What becomes of a response.
#[derive(Debug)]
pub enum ResponseVerdict {
    /// Its octets go to the client; if it was final, here is what it ended.
    Forward(Option<Settled>),
    /// Nobody asked for it.
    Ignore,
    /// The backend is about to go: treat it as lost.
    Lost,
    /// Its octets go to the client, then the session ends.
    ForwardAndEnd(EndReason),
}

/// An operation that the backend has answered.
#[derive(Debug)]
pub struct Settled {
    /// What it asked for.
    pub kind: OperationKind,
    /// When its last octet arrived.
    pub started: Instant,
    /// Its result code; `None` where that can't be read, or of a bind's result not everything.
    pub code: Option<ResultCode>,
    /// What more there is to say of a bind, of a page, or to the access log and spans.
    pub details: Option<Box<Details>>,
}

/// What not every operation has.
#[derive(Debug)]
pub struct Details {
    /// The operation, as it ended.
    pub operation: Operation,
    /// Who the session is now bound as, or who was refused, where a simple bind said so.
    pub bind_name: Option<Box<str>>,
}

/// An operation that took too long.
#[derive(Debug)]
pub struct Overdue {
    /// It has ended.
    pub operation: Operation,
    /// What the client gets.
    pub answer: Answer,
    /// Nothing of it has left for the upstream: nothing may any more.
    pub is_unsent: bool,
}

impl Overdue {
    /// Whether the backend was asked and has not said a word: else what took so long may be the client, or its result's size.
    pub fn was_unanswered(&self) -> bool {
        !self.is_unsent && !self.operation.is_underway()
    }
}

/// What becomes of a session whose upstream is lost.
#[derive(Debug, Default)]
pub struct Loss {
    /// Octets for the next upstream, in order.
    pub resend: Vec<u8>,
    /// Answers by the proxy, each with the operation it ends.
    pub answers: Vec<(Operation, Answer)>,
    /// What failover did.
    pub kinds: Vec<FailoverKind>,
    /// How the session ends, if it does.
    pub ending: Option<Ending>,
}

impl Loss {
    pub(super) fn fail(&mut self, operation: Operation, kind: FailoverKind, reason: Refusal, diagnostic: &'static str) {
        self.kinds.push(kind);
        let answer = Answer {
            id: operation.id,
            kind: operation.kind,
            code: ResultCode::UNAVAILABLE,
            reason,
            diagnostic: diagnostic.into(),
            started: operation.started,
        };
        self.answers.push((operation, answer));
    }
}
