//! The operations in flight of one session, and what becomes of each if its upstream is lost. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::pins::Page;
use crate::access_log::RequestPart;
use crate::buffer::{Lent, Spares};
use crate::failure::{FailoverKind, Refusal};
use crate::ldap::{MessageId, OperationKind};

/// A request's octets, kept to be sent again, and never printed.
#[derive(Clone)]
pub enum KeptRequest {
    /// It holds a password: wiped when dropped.
    Secret(Zeroizing<Box<[u8]>>),
    /// It doesn't: wiping every search would cost as much as framing it.
    Plain(Lent),
}

impl KeptRequest {
    /// Keeps a copy of a bind.
    pub fn secret(pdu: &[u8]) -> Self {
        Self::Secret(Zeroizing::new(pdu.into()))
    }

    /// Keeps a copy of a search or a compare.
    pub fn plain(pdu: &[u8]) -> Self {
        Self::Plain(Lent::copy_of(pdu))
    }

    /// The request.
    pub fn pdu(&self) -> &[u8] {
        match self {
            Self::Secret(pdu) => pdu,
            Self::Plain(pdu) => pdu,
        }
    }
}

impl fmt::Debug for KeptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptRequest({} octets)", self.pdu().len())
    }
}

/// A request that awaits its final response.
#[derive(Debug)]
pub struct Operation {
    /// Its messageID.
    pub id: MessageId,
    /// What it asks for.
    pub kind: OperationKind,
    /// When its last octet arrived.
    pub started: Instant,
    /// Where its first octet stands in the stream of octets queued for the upstream.
    pub position: u64,
    /// Octets of the request.
    pub length: usize,
    /// Whether it may change the directory.
    pub writes: bool,
    /// The request, if it may be sent again after its upstream took it.
    pub kept: Option<KeptRequest>,
    /// Entries delivered to the client.
    pub entries: u64,
    /// References delivered.
    pub references: u64,
    /// Intermediate responses delivered.
    pub intermediates: u64,
    /// Octets of responses delivered to the client.
    pub delivered_octets: u64,
    /// Whether it has been sent to a second upstream already.
    pub resent: bool,
    /// The page it asks for, if it does (RFC 2696).
    pub page: Option<Page>,
    /// How long it waited for a seat at a backend.
    pub queue: Duration,
    /// How long it waited for its upstream to be opened.
    pub connect: Duration,
    /// What the access log will say of it.
    pub described: Option<RequestPart>,
}

/// What becomes of an operation whose upstream is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never left: it goes to the next upstream as if nothing had happened.
    Requeue,
    /// It goes to the next upstream, once.
    Resend(FailoverKind),
    /// The client gets `unavailable` with this reason and diagnostic.
    Fail(FailoverKind, Refusal, &'static str),
}

impl Operation {
    /// An operation that ends as it begins, for its record.
    #[inline(always)]
    pub fn ended(
        id: MessageId,
        kind: OperationKind,
        started: Instant,
        length: usize,
        described: Option<RequestPart>,
    ) -> Self {
        Self {
            id,
            kind,
            started,
            position: 0,
            length,
            writes: false,
            kept: None,
            entries: 0,
            references: 0,
            intermediates: 0,
            delivered_octets: 0,
            resent: false,
            page: None,
            queue: Duration::ZERO,
            connect: Duration::ZERO,
            described,
        }
    }

    /// What its record is made of, taken from it: all but the copy of the request.
    pub fn take_record(&mut self) -> Self {
        Self { kept: None, described: self.described.take(), ..*self }
    }

    /// All of it; what stays has neither a copy of the request nor a record.
    pub fn take(&mut self) -> Self {
        Self { kept: self.kept.take(), ..self.take_record() }
    }

    /// Octets that are kept of its request, and for its record.
    pub fn kept_octets(&self) -> usize {
        kept_octets(self.kept.as_ref(), self.described.as_ref())
    }

    /// Whether the client has part of the result.
    pub fn is_underway(&self) -> bool {
        self.entries + self.references + self.intermediates > 0
    }

    /// What becomes of it if its upstream is lost after taking `taken` octets of the stream.
    fn fate(&self, taken: u64) -> Fate {
        if self.position >= taken {
            Fate::Requeue
        } else if self.is_underway() {
            Fate::Fail(FailoverKind::LostMidResult, Refusal::LostMidResult, LOST_MID_RESULT)
        } else if self.writes {
            Fate::Fail(FailoverKind::OutcomeUnknown, Refusal::OutcomeUnknown, OUTCOME_UNKNOWN)
        } else if self.kept.is_some() && !self.resent {
            Fate::Resend(match self.kind {
                OperationKind::Compare => FailoverKind::RetryCompare,
                OperationKind::Bind => FailoverKind::RetryBind,
                _ => FailoverKind::RetrySearch,
            })
        } else {
            Fate::Fail(FailoverKind::Exhausted, Refusal::BackendLost, BACKEND_LOST)
        }
    }
}

/// Octets that are kept of a request, and for its record.
#[inline(always)]
pub fn kept_octets(kept: Option<&KeptRequest>, described: Option<&RequestPart>) -> usize {
    described.map_or(0, RequestPart::octets) + kept.map_or(0, |kept| kept.pdu().len())
}

const LOST_MID_RESULT: &str =
    "backend lost mid-result: the entries received are not the whole result; repeat the search";
const OUTCOME_UNKNOWN: &str =
    "outcome unknown: the backend was lost before it answered; read the entry to see whether the change was made";
pub(super) const BACKEND_LOST: &str = "the backend was lost and the operation could not be sent to another; repeat it";

/// A session's operations in flight, oldest first. What every request asks of them is counted, not looked for.
#[derive(Debug, Default)]
pub struct Operations {
    in_flight: VecDeque<Operation>,
    writes: usize,
    /// The highest messageID since nothing was in flight: most clients count up, and begin anew at times.
    highest: MessageId,
    abandoned: Abandoned,
}

impl Operations {
    /// How many operations the client awaits.
    pub fn awaited(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether a new request may carry this messageID: it is in use neither by an operation in progress nor by an
    /// abandoned one, whose late result could be taken for another's (§4.1.1.1).
    pub fn may_use(&self, id: MessageId) -> bool {
        id > self.highest || (self.find(id).is_none() && !self.abandoned.contains(id))
    }

    /// Takes up an operation.
    #[inline(always)]
    pub fn begin(&mut self, operation: Operation) {
        debug_assert!(self.find(operation.id).is_none());
        self.writes += usize::from(operation.writes);
        if self.in_flight.capacity() == 0 {
            self.in_flight = SPARE_TABLES.with(Spares::lend).unwrap_or_default();
            if self.abandoned.is_empty() {
                self.highest = 0;
            }
        }
        self.highest = self.highest.max(operation.id);
        self.in_flight.push_back(operation);
    }

    /// The operation of this messageID.
    pub fn find(&self, id: MessageId) -> Option<&Operation> {
        self.in_flight.iter().find(|operation| operation.id == id)
    }

    /// The operation of this messageID, to note a response.
    #[inline]
    pub fn find_mut(&mut self, id: MessageId) -> Option<&mut Operation> {
        let place = self.place_of(id)?;
        self.in_flight.get_mut(place)
    }

    /// Where an operation stands that is answered. Most servers answer in the order of the requests.
    #[inline]
    fn place_of(&self, id: MessageId) -> Option<usize> {
        match self.in_flight.front()? {
            oldest if oldest.id == id => Some(0),
            _ => self.in_flight.iter().position(|operation| operation.id == id),
        }
    }

    /// Ends an operation after a `last` look at it. It is dropped where it stands: moving it costs more than the look.
    pub fn end<R>(&mut self, id: MessageId, last: impl FnOnce(&mut Operation) -> R) -> Option<R> {
        let place = self.place_of(id)?;
        let operation = &mut self.in_flight[place];
        self.writes -= usize::from(operation.writes);
        let seen = last(operation);
        drop(if place == 0 { self.in_flight.pop_front() } else { self.in_flight.remove(place) });
        if self.in_flight.is_empty() {
            let table = std::mem::take(&mut self.in_flight);
            if table.capacity() <= MOST_SPARE_PLACES {
                SPARE_TABLES.with(|spare| spare.take_back(table));
            }
        }
        Some(seen)
    }

    /// Ends an operation that the backend may still answer, or never: its ID stays out of use. What is returned is without
    /// the copy of the request.
    pub fn abandon(&mut self, id: MessageId) -> Option<Operation> {
        let operation = self.end(id, Operation::take_record)?;
        self.abandoned.insert(id);
        Some(operation)
    }

    /// Keeps no request to be sent again any more; returns the octets that were kept.
    pub fn forget_requests(&mut self) -> usize {
        let kept = self.in_flight.iter_mut().filter_map(|operation| operation.kept.take());
        kept.map(|request| request.pdu().len()).sum()
    }

    /// Whether a write the upstream may have taken is unanswered: reads after it must not be repeated elsewhere.
    pub fn has_unanswered_write(&self) -> bool {
        self.writes > 0
    }

    /// The operation that began first.
    pub fn oldest(&self) -> Option<&Operation> {
        self.in_flight.front()
    }

    /// Empties the table, each operation with its fate if its upstream is lost after taking `taken` octets.
    pub fn lose(&mut self, taken: u64) -> Vec<(Operation, Fate)> {
        self.take_all()
            .map(|operation| {
                let fate = operation.fate(taken);
                (operation, fate)
            })
            .collect()
    }

    /// Notes that all have waited for an upstream since `since`, or since they began: for a seat during `queued`, then for
    /// its connection.
    pub fn upstream_awaited(&mut self, since: Instant, queued: Duration, now: Instant) {
        for operation in &mut self.in_flight {
            let waited = now - operation.started.max(since);
            let connect = waited.min((now - since).saturating_sub(queued));
            operation.connect += connect;
            operation.queue += waited - connect;
        }
    }

    /// Empties the table.
    pub fn take_all(&mut self) -> impl Iterator<Item = Operation> + use<> {
        self.writes = 0;
        std::mem::take(&mut self.in_flight).into_iter()
    }
}

/// Tables a worker keeps while no session needs them, and places each may have.
const SPARE_TABLE_COUNT: usize = 32;
const MOST_SPARE_PLACES: usize = 64;

thread_local! {
    static SPARE_TABLES: Spares<VecDeque<Operation>> = const { Spares::new(SPARE_TABLE_COUNT) };
}

/// The messageIDs of operations that ended without a response: never free again within the session (§4.1.1.1).
#[derive(Debug, Default)]
struct Abandoned {
    ids: VecDeque<MessageId>,
}

impl Abandoned {
    /// A client that abandons more than this many operations has moved on from the first ones.
    const MOST: usize = 1024;

    fn contains(&self, id: MessageId) -> bool {
        self.ids.contains(&id)
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    fn insert(&mut self, id: MessageId) {
        if self.ids.len() == Self::MOST {
            self.ids.pop_front();
        }
        self.ids.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(id: MessageId, kind: OperationKind, position: u64) -> Operation {
        Operation {
            position,
            writes: kind.may_write(),
            kept: Some(KeptRequest::secret(&[0; 10])),
            ..Operation::ended(id, kind, Instant::now(), 10, None)
        }
    }

    /// The rows of the failover table that concern one operation.
    #[test]
    fn fates() {
        use OperationKind::*;
        let with = |change: fn(&mut Operation), kind| {
            let mut operation = operation(1, kind, 0);
            change(&mut operation);
            operation.fate(10)
        };
        let untouched: fn(&mut Operation) = |_| {};
        assert_eq!(with(untouched, Search), Fate::Resend(FailoverKind::RetrySearch));
        assert_eq!(with(untouched, Compare), Fate::Resend(FailoverKind::RetryCompare));
        assert_eq!(with(untouched, Bind), Fate::Resend(FailoverKind::RetryBind));
        for kind in [Add, Modify, Delete, ModifyDn, Extended] {
            assert!(matches!(with(untouched, kind), Fate::Fail(FailoverKind::OutcomeUnknown, ..)), "{kind}");
            assert_eq!(with(|operation| operation.position = 10, kind), Fate::Requeue, "{kind} never left");
        }
        assert!(matches!(with(|search| search.entries = 1, Search), Fate::Fail(FailoverKind::LostMidResult, ..)));
        assert!(matches!(with(|search| search.resent = true, Search), Fate::Fail(FailoverKind::Exhausted, ..)));
        assert!(matches!(with(|search| search.kept = None, Search), Fate::Fail(FailoverKind::Exhausted, ..)));
    }

    #[test]
    fn rule_7_an_abandoned_id_is_never_free_again() {
        let mut operations = Operations::default();
        operations.begin(operation(5, OperationKind::Search, 0));
        assert!(!operations.may_use(5));
        assert!(operations.abandon(5).is_some_and(|abandoned| abandoned.kept.is_none()));
        assert!(operations.abandon(5).is_none(), "nothing is kept for an answer that may never come");
        assert!(operations.is_empty() && !operations.may_use(5) && operations.may_use(6));
    }

    /// 60 ms in the queue, then 40 ms to connect; later 20 ms to connect to another.
    #[test]
    fn waiting_is_for_a_seat_first_and_then_for_the_connection() {
        let (mut operations, began) = (Operations::default(), Instant::now());
        let after = |milliseconds| began + Duration::from_millis(milliseconds);
        for (id, started) in [(1, 0), (2, 50), (3, 90)] {
            let kind = OperationKind::Search;
            operations.begin(Operation { started: after(started), ..operation(id, kind, 0) });
        }
        operations.upstream_awaited(after(0), Duration::from_millis(60), after(100));
        let timing = |operations: &Operations| {
            [1, 2, 3].map(|id| {
                let operation = operations.find(id).expect("in flight");
                (operation.queue.as_millis(), operation.connect.as_millis())
            })
        };
        assert_eq!(timing(&operations), [(60, 40), (10, 40), (0, 10)]);
        operations.upstream_awaited(after(200), Duration::ZERO, after(220));
        assert_eq!(timing(&operations), [(60, 60), (10, 60), (0, 30)]);
    }

    #[test]
    fn an_id_counts_as_high_until_nothing_is_in_flight() {
        let mut operations = Operations::default();
        operations.begin(operation(0x7FFF_FFFF, OperationKind::Search, 0));
        operations.begin(operation(1, OperationKind::Search, 0));
        assert_eq!(operations.highest, 0x7FFF_FFFF);
        operations.end(1, |_| ()).expect("in flight");
        operations.end(0x7FFF_FFFF, |_| ()).expect("in flight");
        operations.begin(operation(2, OperationKind::Search, 0));
        assert_eq!(operations.highest, 2, "a client that begins anew isn't looked for in vain from then on");
        operations.abandon(2).expect("in flight");
        operations.begin(operation(1, OperationKind::Search, 0));
        assert!(!operations.may_use(2), "what was abandoned is still looked for");
    }

    #[test]
    fn abandoned_ids_are_bounded() {
        let mut operations = Operations::default();
        for id in 1..5000 {
            operations.begin(operation(id, OperationKind::Search, 0));
            operations.abandon(id);
        }
        assert_eq!(operations.abandoned.ids.len(), Abandoned::MOST);
        assert!(!operations.may_use(4999));
    }
}
