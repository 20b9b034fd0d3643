//! The operations in flight of one session, and what becomes of each if its upstream is lost. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::copies::Copies;
use super::pins::Page;
use crate::access_log::RequestPart;
use crate::buffer::Spares;
use crate::failure::{FailoverKind, Refusal};
use crate::ldap::{MessageId, OperationKind};

/// What is kept of a request to be sent again.
#[derive(Debug, Default)]
pub enum Kept {
    /// Nothing: it may not be.
    #[default]
    Nothing,
    /// The bind it is.
    Bind(KeptBind),
    /// Where its copy begins among its session's [`Copies`].
    Copy(usize),
}

/// A BindRequest's octets, never printed, and wiped when dropped: they hold a password.
#[derive(Clone)]
pub struct KeptBind(Zeroizing<Box<[u8]>>);

impl KeptBind {
    /// Keeps a copy.
    pub fn new(pdu: &[u8]) -> Self {
        Self(Zeroizing::new(pdu.into()))
    }

    /// The request.
    pub fn pdu(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeptBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptBind({} octets)", self.0.len())
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
    /// What is kept of it, if it may be sent again after its upstream took it.
    pub kept: Kept,
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
            kept: Kept::Nothing,
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
        Self { kept: Kept::Nothing, described: self.described.take(), ..*self }
    }

    /// All of it but a copy of its request, which ends with it.
    pub fn take(&mut self) -> Self {
        let kept = match std::mem::take(&mut self.kept) {
            Kept::Copy(_) => Kept::Nothing,
            kept => kept,
        };
        Self { kept, ..self.take_record() }
    }

    /// Octets that are kept of its request, and for its record.
    #[inline(always)]
    fn kept_octets(&self) -> usize {
        let request = if matches!(self.kept, Kept::Nothing) { 0 } else { self.length };
        request + self.described.as_ref().map_or(0, RequestPart::octets)
    }

    fn kept_copy(&mut self) -> Option<(&mut usize, usize)> {
        match &mut self.kept {
            Kept::Copy(start) => Some((start, self.length)),
            Kept::Nothing | Kept::Bind(_) => None,
        }
    }

    /// Whether nothing of it has left, where the upstream has taken `taken` octets of the stream.
    pub fn is_unsent(&self, taken: u64) -> bool {
        self.position >= taken
    }

    /// Whether the client has part of the result.
    pub fn is_underway(&self) -> bool {
        self.entries + self.references + self.intermediates > 0
    }

    /// What becomes of it if its upstream is lost after taking `taken` octets of the stream.
    fn fate(&self, taken: u64) -> Fate {
        if self.is_unsent(taken) {
            Fate::Requeue
        } else if self.is_underway() {
            Fate::Fail(FailoverKind::LostMidResult, Refusal::LostMidResult, LOST_MID_RESULT)
        } else if self.writes {
            Fate::Fail(FailoverKind::OutcomeUnknown, Refusal::OutcomeUnknown, OUTCOME_UNKNOWN)
        } else if !matches!(self.kept, Kept::Nothing) && !self.resent {
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

const LOST_MID_RESULT: &str =
    "backend lost mid-result: the entries received are not the whole result; repeat the search";
const OUTCOME_UNKNOWN: &str =
    "outcome unknown: the backend was lost before it answered; read the entry to see whether the change was made";
pub(super) const BACKEND_LOST: &str = "the backend was lost and the operation could not be sent to another; repeat it";

/// A session's operations in flight, oldest first. What every request asks of them is counted, not looked for.
#[derive(Debug, Default)]
pub struct Operations {
    in_flight: VecDeque<Operation>,
    copies: Copies,
    kept_octets: usize,
    writes: usize,
    /// The highest messageID since nothing was in flight, or so far where something was abandoned: most clients count up.
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

    /// Makes ready for an operation that is about to begin. This is apart from [`begin`](Self::begin) because a table lent there
    /// makes the compiler write the operation twice.
    #[inline]
    pub fn make_ready(&mut self) {
        if self.in_flight.capacity() == 0 {
            self.in_flight = SPARE_TABLES.with(Spares::lend).unwrap_or_default();
        }
        if self.in_flight.is_empty() && self.abandoned.is_empty() {
            self.highest = 0;
        }
    }

    /// Copies the request of an operation that is about to begin, so that it can be sent again.
    #[inline]
    pub fn copy(&mut self, request: &[u8]) -> Kept {
        if self.copies.have_room_inside(request.len()) {
            self.close_up_copies();
        }
        Kept::Copy(self.copies.add(request))
    }

    fn close_up_copies(&mut self) {
        self.copies.close_up(self.in_flight.iter_mut().filter_map(Operation::kept_copy));
    }

    /// Octets that are kept of requests, and for their records.
    pub fn kept_octets(&self) -> usize {
        self.kept_octets
    }

    /// Octets of memory they take.
    pub fn held_octets(&self) -> usize {
        self.kept_octets + self.copies.unused()
    }

    /// Takes up an operation. A copy of its request must be the last one [made](Self::copy): the copies stand in the order of
    /// the table.
    #[inline(always)]
    pub fn begin(&mut self, operation: Operation) {
        debug_assert!(self.find(operation.id).is_none());
        self.kept_octets += operation.kept_octets();
        self.writes += usize::from(operation.writes);
        self.highest = self.highest.max(operation.id);
        self.in_flight.push_back(operation);
    }

    /// The operation of this messageID.
    pub fn find(&self, id: MessageId) -> Option<&Operation> {
        self.in_flight.get(self.place_of(id)?)
    }

    /// The operation of this messageID, to note a response.
    #[inline]
    pub fn find_mut(&mut self, id: MessageId) -> Option<&mut Operation> {
        let place = self.place_of(id)?;
        self.in_flight.get_mut(place)
    }

    /// Where an operation stands. Most that are looked for are the oldest: most servers answer in the order of the requests.
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
        self.kept_octets -= operation.kept_octets();
        if let Some((_, length)) = operation.kept_copy() {
            self.copies.release(length);
        }
        let seen = last(operation);
        drop(if place == 0 { self.in_flight.pop_front() } else { self.in_flight.remove(place) });
        if self.copies.are_loose() {
            self.close_up_copies();
        }
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

    /// Notes that an operation of which nothing had left, and `length` octets from `position` on in the stream, is not sent.
    pub fn withdraw(&mut self, position: u64, length: usize) {
        for later in self.in_flight.iter_mut().filter(|operation| operation.position > position) {
            later.position -= length as u64;
        }
    }

    /// Keeps no request to be sent again any more.
    pub fn forget_requests(&mut self) {
        for operation in &mut self.in_flight {
            self.kept_octets -= operation.kept_octets();
            operation.kept = Kept::Nothing;
            self.kept_octets += operation.kept_octets();
        }
        self.copies = Copies::default();
    }

    /// Whether a write the upstream may have taken is unanswered: reads after it must not be repeated elsewhere.
    pub fn has_unanswered_write(&self) -> bool {
        self.writes > 0
    }

    /// The operation that began first.
    pub fn oldest(&self) -> Option<&Operation> {
        self.in_flight.front()
    }

    /// Empties the table, each operation with its fate if its upstream is lost after taking `taken` octets, and the copies of
    /// their requests.
    pub fn lose(&mut self, taken: u64) -> (Vec<(Operation, Fate)>, Copies) {
        let copies = std::mem::take(&mut self.copies);
        let with_fate = |operation: Operation| {
            let fate = operation.fate(taken);
            (operation, fate)
        };
        (self.take_all().map(with_fate).collect(), copies)
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
        self.kept_octets = 0;
        self.copies = Copies::default();
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
    use proptest::prelude::*;

    use super::*;

    fn operation(id: MessageId, kind: OperationKind, position: u64) -> Operation {
        Operation {
            position,
            writes: kind.may_write(),
            kept: Kept::Bind(KeptBind::new(&[0; 10])),
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
        assert!(matches!(with(|search| search.kept = Kept::Nothing, Search), Fate::Fail(FailoverKind::Exhausted, ..)));
    }

    #[test]
    fn rule_7_an_abandoned_id_is_never_free_again() {
        let mut operations = Operations::default();
        operations.begin(operation(5, OperationKind::Search, 0));
        assert!(!operations.may_use(5));
        assert!(operations.abandon(5).is_some_and(|abandoned| matches!(abandoned.kept, Kept::Nothing)));
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
        operations.make_ready();
        operations.begin(operation(2, OperationKind::Search, 0));
        assert_eq!(operations.highest, 2, "a client that begins anew isn't looked for in vain from then on");
        operations.abandon(2).expect("in flight");
        operations.make_ready();
        operations.begin(operation(1, OperationKind::Search, 0));
        assert!(!operations.may_use(2), "what was abandoned is still looked for");
    }

    #[test]
    fn searches_behind_one_that_stays_take_the_room_of_those_that_ended() {
        let mut operations = Operations::default();
        for id in 1..1000 {
            let kept = operations.copy(&[0; 150]);
            operations.begin(Operation { length: 150, kept, ..operation(id, OperationKind::Search, 0) });
            assert_eq!(operations.held_octets(), operations.kept_octets(), "at {id} they outgrew a spare buffer");
            if id > 1 {
                operations.end(id, |_| ()).expect("in flight");
            }
        }
    }

    /// What an operation of the test below keeps of its request.
    enum Model {
        Nothing,
        Bind(usize),
        Copy(Vec<u8>),
    }

    impl Model {
        fn octets(&self) -> usize {
            match self {
                Self::Nothing => 0,
                Self::Bind(length) => *length,
                Self::Copy(request) => request.len(),
            }
        }
    }

    proptest! {
        /// Operations come and go in any order, are abandoned, forgotten and moved to another upstream: the copy of each stays
        /// what its request was, what is no longer needed makes way, and nothing is held once none is in flight.
        #[test]
        fn each_copy_is_its_request_until_the_operation_ends(
            steps in prop::collection::vec((0_u8..20, any::<prop::sample::Index>(), 7_usize..3000), 1..200),
        ) {
            let mut operations = Operations::default();
            let mut model: Vec<(MessageId, Model)> = Vec::new();
            for (id, (step, which, length)) in (1..).zip(steps) {
                let searched = |kept| Operation { length, kept, ..operation(id, OperationKind::Search, 0) };
                match step {
                    0 => {
                        operations.begin(searched(Kept::Nothing));
                        model.push((id, Model::Nothing));
                    }
                    1 => {
                        operations.begin(searched(Kept::Bind(KeptBind::new(&vec![0; length]))));
                        model.push((id, Model::Bind(length)));
                    }
                    2 => {
                        operations.forget_requests();
                        model.iter_mut().for_each(|(_, kept)| *kept = Model::Nothing);
                    }
                    3 => {
                        let (lost, copies) = operations.lose(0);
                        for (mut operation, _) in lost {
                            if let Kept::Copy(start) = operation.kept {
                                operation.kept = operations.copy(copies.get(start, operation.length));
                            }
                            operations.begin(operation);
                        }
                    }
                    4..=11 if !model.is_empty() => {
                        let (ended, _) = model.remove(which.index(model.len()));
                        let known = if step == 4 {
                            operations.abandon(ended).is_some()
                        } else {
                            operations.end(ended, |_| ()).is_some()
                        };
                        prop_assert!(known);
                    }
                    _ => {
                        let request: Vec<u8> = (0..length).map(|at| (at as u32 ^ id) as u8).collect();
                        let kept = operations.copy(&request);
                        operations.begin(searched(kept));
                        model.push((id, Model::Copy(request)));
                    }
                }
                for (id, kept) in &model {
                    let operation = operations.find(*id).expect("in flight");
                    match (&operation.kept, kept) {
                        (Kept::Nothing, Model::Nothing) | (Kept::Bind(_), Model::Bind(_)) => {}
                        (Kept::Copy(start), Model::Copy(request)) => {
                            prop_assert_eq!(operations.copies.get(*start, request.len()), request);
                        }
                        (kept, _) => prop_assert!(false, "{kept:?}"),
                    }
                }
                let in_use: usize = model.iter().map(|(_, kept)| kept.octets()).sum();
                prop_assert_eq!(operations.kept_octets(), in_use);
                prop_assert!(operations.held_octets() <= 8 * 1024 + 5 * in_use, "{operations:?}");
            }
            for (id, _) in model {
                operations.end(id, |_| ()).expect("in flight");
            }
            prop_assert_eq!(operations.held_octets(), 0);
        }
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
