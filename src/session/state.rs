//! One session without its sockets: what becomes of each request and each response. Pure; time is an argument.

mod losses;
mod responses;

use std::time::Duration;

use tokio::time::Instant;

use super::bind::{BindState, Identity, Method};
use super::operations::{Kept, KeptBind, Operation, Operations};
use super::pins::{Pin, Pins};
use super::verdict::{Answer, Ending, RequestVerdict};
use crate::access_log::RequestPart;
use crate::config::{Failover, FailoverMode, Limits};
use crate::failure::{EndReason, Refusal};
use crate::ldap::{
    Authentication, BindRequest, Envelope, FrameError, OperationKind, Request, ResultCode, oid, until_nul,
};

/// Octets of requests in flight one session keeps for sending again. What doesn't fit is answered `unavailable` if its upstream is
/// lost.
const MOST_KEPT: usize = 1 << 20;

/// Octets of a bind that is kept to be replayed, for as long as its session lives. One that is longer binds to its backend.
const MOST_KEPT_BIND: usize = 4 * 1024;
/// Octets that are kept of the name in a bind.
const MOST_KEPT_NAME: usize = 1024;

/// A session's knowledge of itself.
#[derive(Debug)]
pub struct State {
    operations: Operations,
    bind: BindState,
    pins: Pins,
    layer: Layer,
    failover: Failover,
    offers_start_tls: StartTls,
}

/// Whether the client's octets are LDAP the proxy can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layer {
    /// They are.
    #[default]
    Inspected,
    /// A SASL bind has succeeded: the client's next octet tells (RFC 4513 §5.2.1.4).
    Undecided,
    /// A SASL security layer is in place: octets pass unread.
    Opaque,
}

/// What a listener says to StartTLS (RFC 4511 §4.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// There is no certificate to start it with.
    Unsupported,
    /// It may be started.
    Offered,
    /// TLS is up.
    Established,
}

impl State {
    /// A session that has just begun: anonymous (RFC 4513 §4).
    pub fn new(failover: Failover, offers_start_tls: StartTls) -> Self {
        Self {
            operations: Operations::default(),
            bind: BindState::default(),
            pins: Pins::default(),
            layer: Layer::default(),
            failover,
            offers_start_tls,
        }
    }

    /// The operations in flight.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// The authentication state.
    pub fn bind(&self) -> &BindState {
        &self.bind
    }

    /// Whether the client's octets can be read.
    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// TLS is up. Who the session is bound as stays as it is (RFC 4513 §3.2 leaves that to the server).
    pub fn start_tls(&mut self) {
        self.offers_start_tls = StartTls::Established;
    }

    /// The largest request the client may send now, before its kind is known.
    pub fn size_limit(&self, limits: &Limits) -> usize {
        if self.bind.is_authenticated() { limits.request_size } else { limits.request_size_anonymous }
    }

    /// Whether a request is larger than its kind may be.
    pub fn oversize(&self, envelope: &Envelope, limits: &Limits) -> Result<(), FrameError> {
        let limit = match OperationKind::from_request_tag(envelope.tag) {
            Some(OperationKind::Search) => limits.search_size.min(self.size_limit(limits)),
            _ => self.size_limit(limits),
        };
        if envelope.length > limit {
            return Err(FrameError::TooLarge { length: envelope.length, limit });
        }
        Ok(())
    }

    /// The first octet after a successful SASL bind tells, once, whether a security layer is in place.
    pub fn decide_layer(&mut self, first: u8) {
        debug_assert_eq!(self.layer, Layer::Undecided);
        // A wrapped buffer begins with its length in four octets, below 2²⁴; an LDAPMessage with 0x30 (RFC 4422 §3.7).
        self.layer = if first == 0 { Layer::Opaque } else { Layer::Inspected };
    }

    /// Whether TLS protects the client's side.
    pub fn is_encrypted(&self) -> bool {
        self.offers_start_tls == StartTls::Established
    }

    /// What becomes of one whole request by the rules of the protocol and the limits; `None` if they let it pass. What is
    /// forwarded must [`begin`](Self::begin), an abandon must [`abandon`](Self::abandon).
    pub fn admit(&self, request: &Request<'_>, limits: &Limits, now: Instant) -> Option<RequestVerdict> {
        let (id, kind) = (request.message_id(), request.kind());
        if id == 0 {
            return malformed("messageID 0 is reserved for unsolicited notifications");
        }
        if kind == OperationKind::Unbind {
            return Some(RequestVerdict::Unbind);
        }
        let start_tls = request.is_start_tls();
        if start_tls && self.bind.awaiting().is_some() {
            // RFC 4513 §3.1.1: not while a bind is under way. Nothing would be gained by waiting.
            return self.judge_start_tls(|code, reason, diagnostic| {
                Some(RequestVerdict::Answer(Answer::to(request, code, reason, diagnostic.into(), now)))
            });
        }
        // §4.2.1: no request may follow a bind until its response. Clients do pipeline, so it waits instead of failing.
        if self.bind.awaiting().is_some() {
            return Some(RequestVerdict::Hold);
        }
        if kind == OperationKind::Abandon {
            return Some(match self.abandoned(request) {
                Some(_) => RequestVerdict::Forward,
                None => RequestVerdict::Ignore,
            });
        }
        if !self.operations.may_use(id) {
            return malformed(MESSAGE_ID_IN_USE);
        }
        let answer = |code, reason, diagnostic: &'static str| {
            Some(RequestVerdict::Answer(Answer::to(request, code, reason, diagnostic.into(), now)))
        };
        // Between SASL steps waiting would be for ever: the client itself has the next step.
        if self.bind.is_continuing() && kind != OperationKind::Bind {
            return answer(
                ResultCode::PROTOCOL_ERROR,
                Refusal::ProtocolError,
                "a SASL bind is in progress: finish it before other requests",
            );
        }
        if self.operations.awaited() >= limits.operations_in_flight {
            return answer(
                ResultCode::BUSY,
                Refusal::OperationsInFlight,
                "too many operations in flight on this connection (limits.operations_in_flight): await results, then retry",
            );
        }
        if start_tls {
            return self.judge_start_tls(answer);
        }
        // Only StartTLS must not reach the backend, and no filter too deep: what can't be told from them isn't sent.
        let deep = match kind {
            OperationKind::Search => request.filter_is_deeper_than(limits.filter_depth),
            OperationKind::Extended => request.extended_name().map(|_| false),
            _ => Some(false),
        };
        match deep {
            Some(false) => None,
            Some(true) => answer(
                ResultCode::BUSY,
                Refusal::FilterDepth,
                "the search filter is nested too deeply (limits.filter_depth): simplify it",
            ),
            None => answer(
                ResultCode::PROTOCOL_ERROR,
                Refusal::Undecodable,
                "not every server reads this request alike: encode it by RFC 4511 section 5.1",
            ),
        }
    }

    /// Takes up an operation that is forwarded. `position` is where its first octet will stand in the upstream's stream.
    pub fn begin(&mut self, request: &Request<'_>, position: u64, described: Option<RequestPart>, now: Instant) {
        let (id, kind) = (request.message_id(), request.kind());
        let page = if kind == OperationKind::Search { self.pins.search(request) } else { None };
        let kept = self.keep(request);
        if kind == OperationKind::Bind {
            let bind = request.bind();
            let method = bind.as_ref().map_or(Method::Other, Method::of);
            self.bind.request(id, method, bind.as_ref().and_then(simple_name));
        }
        self.operations.make_ready();
        self.operations.begin(Operation {
            position,
            writes: may_write(request),
            kept,
            page,
            ..Operation::ended(id, kind, now, request.pdu().len(), described)
        });
    }

    /// Ends the operation that an Abandon names (§4.11), if there is one. A late answer is legal, but there may be none:
    /// nothing waits for it.
    pub fn abandon(&mut self, request: &Request<'_>, now: Instant) -> Option<Operation> {
        let operation = self.operations.abandon(self.abandoned(request)?.id)?;
        if operation.writes {
            // It may have happened all the same.
            self.pins.wrote(now);
        }
        Some(operation)
    }

    /// Takes up a bind that goes no further than the proxy: it leaves the session anonymous all the same (RFC 4513 §4).
    /// Returns whether the upstream has to be left, because it has an identity, or half of one.
    pub fn refuse_bind(&mut self) -> bool {
        let bound = !matches!(self.bind.identity(), Identity::Anonymous) || self.bind.is_stateful();
        self.bind.fail();
        if bound {
            self.pins.rebound();
        }
        bound
    }

    /// An upstream stands, or none could be opened: what waited for it, at most since `since`, is about to leave or to be
    /// answered. `queued` of that time was spent waiting for a seat.
    pub fn upstream_awaited(&mut self, since: Instant, queued: Duration, now: Instant) {
        self.operations.upstream_awaited(since, queued, now);
    }

    /// What nobody will answer any more.
    pub fn take_unfinished(&mut self) -> impl Iterator<Item = Operation> + use<> {
        self.operations.take_all()
    }

    /// Why the session can't move to another backend now, if it can't.
    pub fn pin(&self, now: Instant) -> Option<Pin> {
        if self.bind.is_stateful() || self.has_lost_its_identity(now) {
            return Some(Pin::Bind);
        }
        self.pins.pin(now, self.failover.write_affinity)
    }

    /// Whether the session is somebody whom no other connection to a backend can be told of any more.
    pub fn has_lost_its_identity(&self, now: Instant) -> bool {
        match self.served() {
            Identity::Simple(credential) => now >= credential.since + self.failover.replay_max_age,
            Identity::Stateful => true,
            Identity::Anonymous | Identity::Unauthenticated => false,
        }
    }

    /// The BindRequest another backend must answer before it may serve this session.
    pub fn credential(&self) -> Option<&KeptBind> {
        match self.served() {
            Identity::Simple(credential) => Some(&credential.request),
            _ => None,
        }
    }

    /// Whether no backend can have judged the bind that is awaited: nothing of it has left, the upstream has taken `taken` octets.
    pub fn awaits_unsent_bind(&self, taken: u64) -> bool {
        let bind = self.bind.awaiting().and_then(|id| self.operations.find(id));
        bind.is_some_and(|bind| bind.is_unsent(taken) && !bind.resent)
    }

    /// Whose the operations in flight are: what was asked before the bind that is awaited is the earlier identity's.
    fn served(&self) -> &Identity {
        let some_before = self.operations.awaited() > 1;
        if self.bind.awaiting().is_some() && some_before { self.bind.earlier() } else { self.bind.identity() }
    }

    /// When the kept credential must be wiped.
    pub fn credential_expiry(&self) -> Option<Instant> {
        match self.bind.identity() {
            Identity::Simple(credential) => Some(credential.since + self.failover.replay_max_age),
            _ => None,
        }
    }

    /// Wipes the credential if it is too old to be replayed.
    pub fn expire_credential(&mut self, now: Instant) {
        if self.credential_expiry().is_some_and(|expiry| now >= expiry) {
            self.bind.forget_credential();
        }
    }

    /// The operation that an Abandon names: an unknown ID is dropped silently, and binds can't be abandoned (§4.11).
    fn abandoned(&self, request: &Request<'_>) -> Option<&Operation> {
        self.operations.find(request.abandoned_id()?).filter(|operation| operation.kind != OperationKind::Bind)
    }

    fn judge_start_tls(
        &self,
        answer: impl Fn(ResultCode, Refusal, &'static str) -> Option<RequestVerdict>,
    ) -> Option<RequestVerdict> {
        match self.offers_start_tls {
            StartTls::Established => {
                answer(ResultCode::OPERATIONS_ERROR, Refusal::StartTls, "TLS is already established on this connection")
            }
            StartTls::Unsupported => answer(
                ResultCode::PROTOCOL_ERROR,
                Refusal::StartTls,
                "StartTLS is not offered here: use the ldaps:// address of this service",
            ),
            StartTls::Offered if !self.operations.is_empty() || self.bind.is_continuing() => {
                answer(ResultCode::OPERATIONS_ERROR, Refusal::StartTls, START_TLS_TOO_EARLY)
            }
            StartTls::Offered => Some(RequestVerdict::StartTls),
        }
    }

    /// Keeps the request, if it may be sent to a second backend after the first has taken it.
    fn keep(&mut self, request: &Request<'_>) -> Kept {
        let repeatable = self.failover.mode == FailoverMode::Session
            && !may_write(request)
            && (request.kind() != OperationKind::Bind || is_simple_bind(request))
            && !self.operations.has_unanswered_write()
            && (!request.has_controls() || has_repeatable_controls(request));
        let length = request.pdu().len();
        if !repeatable || self.operations.kept_octets() + length > MOST_KEPT {
            return Kept::Nothing;
        }
        match request.kind() {
            OperationKind::Bind if length > MOST_KEPT_BIND => Kept::Nothing,
            OperationKind::Bind => Kept::Bind(KeptBind::new(request.pdu())),
            _ => self.operations.copy(request.pdu()),
        }
    }
}

/// The name in a simple bind, as far as Samba reads it and it is worth keeping. A SASL mechanism has its own way to say who.
fn simple_name(bind: &BindRequest<'_>) -> Option<Box<str>> {
    let name = until_nul(bind.name);
    let name = &name[..name.len().min(MOST_KEPT_NAME)];
    matches!(bind.authentication, Authentication::Simple(_)).then(|| String::from_utf8_lossy(name).into())
}

pub(super) const START_TLS_TOO_EARLY: &str = "StartTLS must wait until no operation and no SASL bind is in progress";
pub(super) const SESSION_LOST: &str = "the backend that held this session's state was lost: reconnect, bind and repeat";

const MESSAGE_ID_IN_USE: &str = "the messageID is in use by another operation of this session, or by one that was abandoned or \
                                 took too long and may still be answered";

fn malformed(text: &'static str) -> Option<RequestVerdict> {
    Some(RequestVerdict::End(Ending::told(EndReason::ProtocolError, ResultCode::PROTOCOL_ERROR, text)))
}

/// Whether a request may change the directory. An extended operation may, but for the one that only asks (RFC 4532).
fn may_write(request: &Request<'_>) -> bool {
    request.kind().may_write() && request.extended_name() != Some(oid::WHO_AM_I.as_bytes())
}

fn is_simple_bind(request: &Request<'_>) -> bool {
    request.bind().is_some_and(|bind| matches!(bind.authentication, Authentication::Simple(_)))
}

/// Whether no critical control changes the directory or ties the request to one server.
fn has_repeatable_controls(request: &Request<'_>) -> bool {
    const REPEATABLE: [&str; 9] = [
        oid::PAGED_RESULTS,
        oid::SERVER_SORT,
        oid::VIRTUAL_LIST_VIEW,
        oid::MANAGE_DSA_IT,
        oid::EXTENDED_DN,
        oid::SHOW_DELETED,
        oid::SEARCH_OPTIONS,
        oid::DOMAIN_SCOPE,
        oid::SD_FLAGS,
    ];
    request
        .controls()
        .all(|control| !control.critical || REPEATABLE.iter().any(|known| known.as_bytes() == control.oid))
}
