//! Buffers that are there only while octets move: an idle connection holds none.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::LocalKey;

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_util::bytes::BufMut as _;
use tokio_util::io::poll_read_buf;

/// Octets asked for in one read. Twice as much costs half of the throughput on uploads (measured, bench/README.md).
const READ: usize = 32 * 1024;
/// An inbox that holds no more than this between two reads gives its large buffer back.
const KEPT: usize = 4 * 1024;
/// What [`Inbox::poll_top_up`] reads at least where more is there.
pub const FULL_READ: usize = READ - KEPT;

/// Spare buffers a worker keeps: a session reads into one for TLS and one for each of its two sides at a time.
const SPARES: usize = 3;
/// Octets that a spare buffer may hold.
const MOST_SPARE: usize = 4 * READ;
/// The same for long PDUs, of all workers together: as sessions move between workers, each worker's own would sooner or later
/// all be there. Memory that the system has to provide and take back for each long PDU cost a fifth of the CPU on uploads
/// (measured, bench/README.md).
const LONG_SPARES: usize = 4;
const MOST_LONG_SPARE: usize = 2 * 1024 * 1024;

thread_local! {
    /// The buffers that sessions of this worker read into, one after the other.
    static SPARE: Spares<Vec<u8>> = const { Spares::new(SPARES) };
}

static LONG_SPARE: Shared = Shared(Mutex::new(Spares::new(LONG_SPARES)));

/// What is kept to be lent to one session after the other.
pub struct Spares<T> {
    here: RefCell<Vec<T>>,
    most: usize,
}

impl<T> Spares<T> {
    /// Keeps at most `most`.
    pub const fn new(most: usize) -> Self {
        Self { here: RefCell::new(Vec::new()), most }
    }

    /// Lends one, if one is here.
    pub fn lend(&self) -> Option<T> {
        self.here.borrow_mut().pop()
    }

    /// Takes one back, if there is room.
    #[inline]
    pub fn take_back(&self, spare: T) {
        let mut here = self.here.borrow_mut();
        if here.len() < self.most {
            here.push(spare);
        }
    }
}

/// Spare buffers that all workers share.
struct Shared(Mutex<Spares<Vec<u8>>>);

impl Shared {
    fn lend(&self) -> Option<Vec<u8>> {
        self.spares().lend()
    }

    /// As [`Spares::take_back`], except for one that is too long to be kept for ever.
    fn take_back(&self, spare: Vec<u8>) {
        if spare.capacity() <= MOST_LONG_SPARE {
            self.spares().take_back(spare);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Spares<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives room back that a crowd needed and those who stayed don't.
pub fn shrink_after_crowd<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    const SMALL_TABLE: usize = 64;
    if map.capacity() > SMALL_TABLE && map.len() * 8 < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}

/// What an [`Inbox`] is filled from. Where it can tell that there is nothing to read, no buffer has to be lent to find out,
/// which is most of what such a read costs.
///
/// A read or [`Source::poll_readable`] that was pending while the task had budget left ([`tokio::task::coop`]) has its task woken
/// once the source is no longer dry. Whoever was told to wait so and finds it still dry need not ask again.
pub trait Source: AsyncRead {
    /// Whether a read would wait, as far as that is known.
    fn is_dry(&self) -> bool {
        false
    }

    /// Pending where a read would be, and ready where it may have something, be it an end or an error.
    fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Source for TcpStream {
    fn is_dry(&self) -> bool {
        self.try_io(Interest::READABLE, || Ok(())).is_err()
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error shows again when it is read.
        self.poll_read_ready(cx).map(|_| ())
    }
}

#[cfg(test)]
impl Source for tokio::io::DuplexStream {}

#[cfg(test)]
impl Source for &[u8] {}

/// Octets received and not yet dealt with.
#[derive(Debug, Default)]
pub struct Inbox {
    buffer: Vec<u8>,
    start: usize,
}

impl Inbox {
    /// What has arrived and is not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The same, for those who decipher in place.
    pub fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }

    /// Octets of memory it takes.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether nothing is left to deal with.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// Marks octets as dealt with.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.buffer.len());
    }

    /// Reads what is there, up to [`READ`] octets more: `Ok(0)` is the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, io: &mut (impl Source + Unpin)) -> Poll<io::Result<usize>> {
        self.poll_read(cx, io, READ)
    }

    /// The same, up to [`READ`] octets with the few that are left: on their way to a client they fit two records and one write.
    /// With a few octets more, half of all writes had a third record and a segment of their own (measured, bench/README.md).
    pub fn poll_top_up(&mut self, cx: &mut Context<'_>, io: &mut (impl Source + Unpin)) -> Poll<io::Result<usize>> {
        let left = self.unread().len();
        self.poll_read(cx, io, if left > KEPT { READ } else { READ - left })
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl Source + Unpin),
        most: usize,
    ) -> Poll<io::Result<usize>> {
        if io.is_dry() {
            ready!(io.poll_readable(cx));
        }
        if self.buffer.capacity() < READ {
            let mut spare = SPARE.with(Spares::lend).unwrap_or_default();
            spare.extend_from_slice(self.unread());
            *self = Self { buffer: spare, start: 0 };
        } else if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.buffer.len() + READ > MOST_SPARE && self.buffer.capacity() <= MOST_SPARE {
            self.lengthen(&LONG_SPARE);
        }
        self.buffer.reserve(most);
        let mut room = (&mut self.buffer).limit(most);
        poll_read_buf(Pin::new(io), cx, &mut room)
    }

    /// Goes on in a buffer for long PDUs.
    fn lengthen(&mut self, spares: &Shared) {
        let mut long = spares.lend().unwrap_or_default();
        long.extend_from_slice(&self.buffer);
        give_back(std::mem::replace(&mut self.buffer, long));
    }

    /// Gives the buffer back, or keeps just what is still needed.
    pub fn shrink(&mut self) {
        let left = self.buffer.len() - self.start;
        if left > KEPT || self.buffer.capacity() == 0 {
            return;
        }
        if left > 0 && self.buffer.capacity() <= 2 * KEPT {
            return;
        }
        let rest = if left > 0 { self.unread().to_vec() } else { Vec::new() };
        self.start = 0;
        give_back(std::mem::replace(&mut self.buffer, rest));
    }
}

/// Leaves a buffer to the next who needs one, if there is room for it.
#[inline]
fn give_back(mut buffer: Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > MOST_SPARE {
        LONG_SPARE.take_back(buffer);
    } else if buffer.capacity() >= READ {
        SPARE.with(|spare| spare.take_back(buffer));
    }
}

/// Leaves a buffer to the worker's `spares`, of which each may hold `most` octets.
#[inline]
pub fn leave(mut buffer: Vec<u8>, spares: &'static LocalKey<Spares<Vec<u8>>>, most: usize) {
    if (1..=most).contains(&buffer.capacity()) {
        buffer.clear();
        // The worker may be ending, its spare buffers gone.
        let _ = spares.try_with(|spares| spares.take_back(buffer));
    }
}

/// A few octets kept for as long as an operation takes, in a buffer that then goes back to the worker.
#[derive(Default)]
pub struct Lent(Vec<u8>);

/// Buffers of a worker for [`Lent`], and octets each may take while it isn't lent. Eight sessions with 16 requests in flight
/// each need 128.
const SMALL: usize = 128;
const MOST_SMALL: usize = 512;
/// Room that what the access log tells of most requests fits in.
const USUAL_SMALL: usize = 128;

thread_local! {
    static SMALL_SPARE: Spares<Vec<u8>> = const { Spares::new(SMALL) };
}

impl Lent {
    /// What is written into it. It takes no more memory than that, or than a small one.
    #[inline]
    pub fn filled(write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut buffer = SMALL_SPARE.with(Spares::lend).unwrap_or_else(|| Vec::with_capacity(USUAL_SMALL));
        write(&mut buffer);
        if buffer.capacity() > MOST_SMALL {
            buffer.shrink_to_fit();
        }
        Self(buffer)
    }
}

/// What is in it may be a secret.
impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} octets)", self.len())
    }
}

impl std::ops::Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        leave(std::mem::take(&mut self.0), &SMALL_SPARE, MOST_SMALL);
    }
}

/// Octets to be sent that the peer hasn't taken yet.
#[derive(Debug, Default)]
pub struct Outbox {
    buffer: Vec<u8>,
    start: usize,
    taken: u64,
    unflushed: bool,
}

impl Outbox {
    /// Octets that wait.
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Octets of memory it takes.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all that was sent has left this process.
    pub fn is_flushed(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// What waits.
    pub fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Octets the transport has taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Where the next octet queued will stand in the stream.
    pub fn position(&self) -> u64 {
        self.taken + self.len() as u64
    }

    /// Queues octets.
    pub fn queue(&mut self, octets: &[u8]) {
        // What a slow peer has taken makes way for what comes, or a stream that never dries up would be kept whole.
        if self.start > 0 && self.start >= self.len() {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(octets);
    }

    /// Takes back `length` octets that wait, of which the first stands at `position` in the stream.
    pub fn take_back(&mut self, position: u64, length: usize) {
        let start = self.start + usize::try_from(position - self.taken).expect("what waits is in memory");
        self.buffer.drain(start..start + length);
    }

    /// Forgets what waits and begins a new stream with these octets.
    pub fn restart(&mut self, octets: Vec<u8>) {
        *self = Self { buffer: octets, ..Self::default() };
    }

    /// Sends octets after those that wait, and flushes; what isn't taken at once waits too. An error shows again, with its
    /// consequences, when they are flushed.
    pub fn send(&mut self, cx: &mut Context<'_>, io: &mut (impl AsyncWrite + Unpin), mut octets: &[u8]) {
        while self.is_empty() && !octets.is_empty() {
            let Poll::Ready(Ok(count @ 1..)) = Pin::new(&mut *io).poll_write(cx, octets) else { break };
            self.taken += count as u64;
            self.unflushed = true;
            octets = &octets[count..];
        }
        self.queue(octets);
        if self.is_empty() {
            self.unflushed &= !matches!(Pin::new(io).poll_flush(cx), Poll::Ready(Ok(())));
        }
    }

    /// Sends what waits; ready once all of it has left this process.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, io: &mut (impl AsyncWrite + Unpin)) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let count = ready!(Pin::new(&mut *io).poll_write(cx, &self.buffer[self.start..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += count;
            self.taken += count as u64;
            self.unflushed = true;
        }
        if self.buffer.capacity() > 0 {
            self.buffer = Vec::new();
            self.start = 0;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn an_inbox_keeps_only_what_is_unread() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut inbox = Inbox::default();
        let mut io: &[u8] = b"0123456789";
        assert!(matches!(inbox.poll_fill(&mut cx, &mut io), Poll::Ready(Ok(10))));
        inbox.consume(7);
        inbox.shrink();
        assert_eq!((inbox.unread(), inbox.start), (&b"789"[..], 0));
        assert!(inbox.buffer.capacity() < KEPT);
        let mut io: &[u8] = b"ab";
        assert!(matches!(inbox.poll_fill(&mut cx, &mut io), Poll::Ready(Ok(2))));
        assert_eq!(inbox.unread(), b"789ab");
        assert!(matches!(inbox.poll_fill(&mut cx, &mut io), Poll::Ready(Ok(0))));
        inbox.consume(5);
        inbox.shrink();
        assert_eq!(inbox.buffer.capacity(), 0);
        assert!(SPARE.with(|spare| spare.here.borrow().iter().any(|buffer| buffer.capacity() >= READ)));
    }

    #[test]
    fn what_little_is_left_and_what_is_read_fit_one_buffer() {
        let mut cx = Context::from_waker(Waker::noop());
        let octets = vec![b'x'; 10 * READ];
        for (left, read) in [(0, READ), (1, READ - 1), (KEPT, FULL_READ), (KEPT + 1, READ)] {
            give_back(Vec::with_capacity(READ));
            let (mut inbox, mut io) = (Inbox { buffer: vec![b'y'; left], start: 0 }, &octets[..]);
            let spare = SPARE.with(|spare| spare.here.borrow().last().map(|spare| spare.as_ptr()));
            assert!(matches!(inbox.poll_top_up(&mut cx, &mut io), Poll::Ready(Ok(count)) if count == read), "{left}");
            assert!(inbox.unread() == [vec![b'y'; left], vec![b'x'; read]].concat(), "{left}");
            assert!(left > KEPT || Some(inbox.unread().as_ptr()) == spare, "{left}: in a buffer of the worker's");
            let more = inbox.unread().len();
            assert!(matches!(inbox.poll_fill(&mut cx, &mut io), Poll::Ready(Ok(READ))), "{left}");
            assert_eq!(inbox.unread().len(), more + READ);
        }
    }

    #[test]
    fn a_map_keeps_no_room_for_those_who_left() {
        let mut map: HashMap<_, _> = (0..10_000).map(|key| (key, ())).collect();
        for key in 0..9_990 {
            map.remove(&key);
            shrink_after_crowd(&mut map);
        }
        assert!(map.capacity() < 200 && map.len() == 10, "{}", map.capacity());
    }

    #[test]
    fn the_buffer_of_a_long_pdu_is_used_again() {
        let spares = Shared(Mutex::new(Spares::new(2)));
        let used = Vec::with_capacity(MOST_LONG_SPARE);
        let place = used.as_ptr();
        spares.take_back(used);
        let mut inbox = Inbox { buffer: b"begun".to_vec(), start: 0 };
        inbox.lengthen(&spares);
        assert_eq!((inbox.unread(), inbox.unread().as_ptr()), (&b"begun"[..], place));
        for capacity in [1, MOST_LONG_SPARE + 1, 1, 1] {
            spares.take_back(Vec::with_capacity(capacity));
        }
        let kept: Vec<_> = std::iter::from_fn(|| spares.lend()).map(|spare| spare.capacity()).collect();
        assert_eq!(kept, [1, 1], "no more than two, and none that is too long");
    }

    #[test]
    fn a_lent_buffer_takes_no_more_than_it_holds_and_comes_back_if_it_is_small() {
        let spares = || SMALL_SPARE.with(|spare| spare.here.borrow().len());
        let before = spares();
        let cut = Lent::filled(|buffer| {
            buffer.extend_from_slice(&[b'x'; 10 * MOST_SMALL]);
            buffer.truncate(2 * MOST_SMALL);
        });
        assert_eq!((cut.len(), cut.0.capacity()), (2 * MOST_SMALL, 2 * MOST_SMALL));
        drop((cut, Lent::default()));
        assert_eq!(spares(), before.saturating_sub(1));
        let small = || Lent::filled(|buffer| buffer.push(b'x'));
        drop((small(), small()));
        assert_eq!(spares(), before.max(2));
    }

    #[test]
    fn an_inbox_takes_pdus_of_any_length_and_keeps_no_room_for_them() {
        let mut cx = Context::from_waker(Waker::noop());
        let long = vec![b'x'; MOST_LONG_SPARE / 2];
        let (mut inbox, mut io) = (Inbox::default(), &long[..]);
        while matches!(inbox.poll_fill(&mut cx, &mut io), Poll::Ready(Ok(1..))) {}
        assert!(inbox.unread() == long);
        inbox.consume(long.len());
        inbox.shrink();
        assert_eq!(inbox.capacity(), 0);
    }

    /// What is sent again elsewhere begins where the peer stopped taking.
    #[test]
    fn a_peer_that_breaks_off_has_taken_what_it_took() {
        struct TakesTwo(bool);
        impl AsyncWrite for TakesTwo {
            fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
                let broken = std::mem::replace(&mut self.0, true);
                Poll::Ready(if broken { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(2) })
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        let mut outbox = Outbox::default();
        outbox.send(&mut Context::from_waker(Waker::noop()), &mut TakesTwo(false), b"abcdef");
        assert_eq!((outbox.taken(), outbox.waiting()), (2, &b"cdef"[..]));
    }

    /// 20 octets go at a time, 32 come before the rest has gone: it is never empty.
    #[test]
    fn an_outbox_keeps_nothing_of_what_a_slow_peer_has_taken() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut near, mut far) = tokio::io::duplex(20);
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        for round in 0..1000_u32 {
            if outbox.len() < 32 {
                outbox.queue(&[round as u8; 32]);
            }
            assert!(outbox.poll_flush(&mut cx, &mut near).is_pending(), "{round}");
            assert!(matches!(inbox.poll_fill(&mut cx, &mut far), Poll::Ready(Ok(20))));
            inbox.consume(20);
        }
        assert!(outbox.capacity() < 256, "{}", outbox.capacity());
    }

    #[test]
    fn an_outbox_keeps_the_order() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut near, mut far) = tokio::io::duplex(4);
        let mut outbox = Outbox::default();
        outbox.send(&mut cx, &mut near, b"abcdef");
        outbox.send(&mut cx, &mut near, b"gh");
        assert_eq!((outbox.taken(), outbox.waiting(), outbox.position()), (4, &b"efgh"[..], 8));
        let mut received = Vec::new();
        let mut inbox = Inbox::default();
        while received.len() < 8 {
            if let Poll::Ready(Ok(count)) = inbox.poll_fill(&mut cx, &mut far) {
                received.extend_from_slice(inbox.unread());
                inbox.consume(count);
            }
            let _ = outbox.poll_flush(&mut cx, &mut near);
        }
        assert_eq!(received, b"abcdefgh");
        assert!(outbox.is_empty() && outbox.buffer.capacity() == 0);
    }
}
