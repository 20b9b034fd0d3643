//! The loop that moves PDUs both ways: one future a session, polled when either side has something.
//!
//! Each direction advances as far as it can without waiting for the other, so that a client that sends without reading
//! and a backend that does the same cannot block each other. What a peer doesn't take is bounded: while octets wait for
//! one peer, the other is not read.

mod account;
mod ending;
mod requests;
mod responses;

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncWrite;
use tokio::task::coop;
use tokio::time::{Instant, Sleep};

use super::Settings;
use super::establish::EstablishError;
use super::memory::Part;
use super::registry::Entry;
use super::state::State;
use crate::buffer::{FULL_READ, Inbox, Outbox, Source};
use crate::failure::{EndReason, FailoverKind};
use crate::metrics::Share;
use crate::pool::Left;
use crate::throttle::Attempt;
use crate::upstream::Upstream;
pub(super) use account::log_session;

/// Turns of the loop before other sessions get theirs.
const TURNS: usize = 8;
/// Requests dealt with before other sessions get their turn: one read may bring 800. What has arrived from the backend is
/// dealt with all the same, and the other way round.
const REQUESTS: usize = 64;
/// Octets of responses dealt with before other sessions get their turn: two full reads. Eight had twenty sessions with long
/// results keep an answer for 6 ms.
const RESPONSES: usize = 2 * FULL_READ;
/// What a request that the proxy answers itself counts for: it costs as much as so many that are forwarded, and whoever
/// floods us sends those.
const OWN_ANSWER: usize = 8;

/// What a session came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is over.
    Ended(EndReason),
    /// The client wants TLS on this connection; the success response has left. See [`Run::into_parts`].
    StartTls,
}

/// A session taken off its transport.
pub(super) struct Parts<T> {
    pub client: T,
    pub state: State,
    pub entry: Entry,
    /// When it began.
    pub began: Instant,
    /// Times it went on with another backend.
    pub failovers: u64,
    /// What it may go on with behind another transport.
    pub upstream: Carried,
}

/// An upstream that stands, and what is on its way there.
#[derive(Default)]
pub(super) struct Carried(Option<(Box<Up>, Outbox)>);

impl<T> Parts<T> {
    /// The same behind another transport, and the one that was there.
    pub(super) fn behind<U>(self, client: U) -> (T, Parts<U>) {
        let Self { client: before, state, entry, began, failovers, upstream } = self;
        (before, Parts { client, state, entry, began, failovers, upstream })
    }
}

/// A session at work.
pub(super) struct Run<T> {
    settings: Arc<Settings>,
    entry: Entry,
    state: State,
    client: T,
    from_client: Inbox,
    to_client: Outbox,
    /// Octets of our own answers among those that wait for the client.
    own_words: usize,
    /// Our own answers that wait for the end of the response that is passing: inside it they would be taken for it.
    held_words: Vec<u8>,
    link: Link,
    to_upstream: Outbox,
    /// The backend it comes from, if another is to be preferred.
    left: Option<Left>,
    /// What failover is about to have done, counted when the next upstream stands.
    moving: Option<FailoverKind>,
    /// The login that awaits its result.
    attempt: Option<Attempt>,
    /// The login that waits for the results of others.
    queued_login: Option<Box<QueuedLogin>>,
    /// Times it went on with another backend.
    failovers: u64,
    began: Instant,
    memory: Part,
    phase: Phase,
    client_ended: bool,
    /// Requests, and octets of responses, that may still be dealt with before others get their turn.
    requests_left: usize,
    responses_left: usize,
    dry: Dry,
    clock: Clock,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer will wake this task.
    timer_set: bool,
}

/// A login that the throttle may let pass once it knows what came of others.
struct QueuedLogin {
    since: Instant,
    asked: Instant,
}

impl QueuedLogin {
    /// How often it asks again: results come at any time, and a listener in all sessions would cost more than it is worth.
    const INTERVAL: Duration = Duration::from_millis(50);
    /// How long it waits before its client is told to try again.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// When it asks again.
    fn due(&self) -> Instant {
        self.asked + Self::INTERVAL
    }
}

/// The way to a backend.
enum Link {
    /// None: the next request opens one.
    Down,
    /// It is being opened, since when.
    Opening(Pin<Box<dyn Future<Output = Result<Upstream, EstablishError>> + Send>>, Instant),
    /// It stands.
    Up(Box<Up>),
}

struct Up {
    upstream: Upstream,
    inbox: Inbox,
    passing: Passing,
    in_flight: Share,
    opened: Instant,
    /// Since when octets wait for it without one being taken.
    stuck: Option<Instant>,
    /// Since when words of ours wait for the end of what is passing without an octet of it having come.
    awaited: Option<Instant>,
}

impl Up {
    /// Whether the client has part of a response and not all of it.
    fn is_inside_a_response(&self) -> bool {
        matches!(self.passing, Passing::ToClient(_))
    }
}

/// A response too long to be held, on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passing {
    Nothing,
    ToClient(usize),
    ToNobody(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The client has unbound or gone; what it sent before is still on its way to the backend.
    Leaving(EndReason),
    /// StartTLS was answered; the response is leaving.
    StartingTls,
    /// The last words are leaving.
    Flushing(EndReason),
    /// TLS and the sending side are closing.
    ShuttingDown(EndReason),
    /// The client may still be reading; resetting now could destroy what it hasn't read.
    Lingering(EndReason, usize),
    /// Nothing more can be done for the client.
    Over(EndReason),
}

impl Phase {
    fn reason(self) -> EndReason {
        match self {
            Self::Serving | Self::StartingTls => EndReason::WriteTimeout,
            Self::Leaving(reason)
            | Self::Flushing(reason)
            | Self::ShuttingDown(reason)
            | Self::Lingering(reason, _)
            | Self::Over(reason) => reason,
        }
    }
}

/// When things last happened.
struct Clock {
    /// Since when requests can be read.
    began: Instant,
    first_request: bool,
    /// The client's last octet, or the last operation's end.
    active: Instant,
    /// The first octet of a request that is not whole.
    partial: Option<Instant>,
    /// Since when octets wait for the client without one being taken.
    client_stuck: Option<Instant>,
    closing: Option<Instant>,
    /// The time of day, once a record of this turn has asked for it: the others share it.
    wall: Cell<Option<SystemTime>>,
}

/// The sides that have nothing to read and wake the session once they have: they aren't asked before.
#[derive(Default)]
struct Dry {
    client: bool,
    upstream: bool,
}

/// Whether a step changed anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Yes,
    No,
}

impl<T: Source + AsyncWrite + Unpin> Run<T> {
    pub(super) fn new(settings: Arc<Settings>, parts: Parts<T>) -> Self {
        let now = Instant::now();
        let memory = settings.memory.part();
        let (link, to_upstream) = match parts.upstream.0 {
            Some((up, to_upstream)) => (Link::Up(up), to_upstream),
            None => (Link::Down, Outbox::default()),
        };
        let timer = Box::pin(tokio::time::sleep_until(now + settings.limits.first_request_timeout));
        Self {
            settings,
            entry: parts.entry,
            state: parts.state,
            client: parts.client,
            from_client: Inbox::default(),
            to_client: Outbox::default(),
            own_words: 0,
            held_words: Vec::new(),
            link,
            to_upstream,
            left: None,
            moving: None,
            attempt: None,
            queued_login: None,
            failovers: parts.failovers,
            began: parts.began,
            memory,
            phase: Phase::Serving,
            client_ended: false,
            requests_left: REQUESTS,
            responses_left: RESPONSES,
            dry: Dry::default(),
            clock: Clock {
                began: now,
                first_request: false,
                active: now,
                partial: None,
                client_stuck: None,
                closing: None,
                wall: Cell::new(None),
            },
            timer,
            timer_set: false,
        }
    }

    /// Takes the session off its transport.
    pub(super) fn into_parts(self) -> (Arc<Settings>, Parts<T>) {
        let Self { settings, client, state, entry, began, failovers, link, to_upstream, .. } = self;
        let upstream = match link {
            Link::Up(up) => Carried(Some((up, to_upstream))),
            Link::Down | Link::Opening(..) => Carried::default(),
        };
        (settings, Parts { client, state, entry, began, failovers, upstream })
    }

    fn turn(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Outcome> {
        for _ in 0..TURNS {
            if let Poll::Ready(outcome) = self.close(cx, now) {
                return Poll::Ready(outcome);
            }
            if self.phase != Phase::Serving {
                return Poll::Pending;
            }
            if self.obey_at_once(now) == Moved::Yes {
                continue;
            }
            let steps = [Self::flush_client, Self::open, Self::flush_upstream, Self::read_client, Self::read_upstream];
            let mut moved = false;
            for step in steps {
                moved |= step(self, cx, now) == Moved::Yes;
                // Nothing is done for a session that has ended: no answer may follow its notice of disconnection.
                if self.phase != Phase::Serving {
                    break;
                }
            }
            // Other commands come last, so that what the client has already sent is served before a drain ends the session.
            let done = !moved || self.is_done();
            if self.phase == Phase::Serving && done && self.obey(now) == Moved::No {
                if self.requests_left == 0 || self.responses_left == 0 {
                    break;
                }
                return Poll::Pending;
            }
        }
        give_way(cx);
        Poll::Pending
    }

    /// Whether another turn would find nothing to do: all that has come was dealt with, and both sides are waited for.
    fn is_done(&self) -> bool {
        let Link::Up(up) = &self.link else { return false };
        let waited_for = self.dry.client && self.dry.upstream;
        let moved_on = self.from_client.is_empty() && self.to_upstream.is_flushed() && self.to_client.is_flushed();
        // Whether a peer still takes nothing is for the flushes to say.
        let unstuck = self.clock.client_stuck.is_none() && up.stuck.is_none();
        waited_for && moved_on && unstuck && self.requests_left > 0 && self.responses_left > 0
    }
}

/// Has this task woken once `source` has something to read, if it has nothing now. Returns whether it waits so.
fn wait_for(source: &mut impl Source, cx: &mut Context<'_>) -> bool {
    // Without budget a source that is pending waits for nothing but another poll.
    source.is_dry() && source.poll_readable(cx).is_pending() && coop::has_budget_remaining()
}

/// Has this task polled again once all others that are ready had their turn, those included whose sockets have become
/// ready meanwhile. Waking it at once would not: a worker with tasks to run looks at sockets only every 61 of them.
fn give_way(cx: &mut Context<'_>) {
    let yielded = std::pin::pin!(tokio::task::yield_now());
    let _ = yielded.poll(cx);
}

impl<T: Source + AsyncWrite + Unpin> Future for Run<T> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.get_mut();
        let is_another_task = this.entry.wake_by(cx.waker());
        this.timer_set &= !is_another_task;
        this.dry.client &= !is_another_task && this.client.is_dry();
        this.dry.upstream &= !is_another_task && matches!(&this.link, Link::Up(up) if up.upstream.stream.is_dry());
        (this.requests_left, this.responses_left) = (REQUESTS, RESPONSES);
        loop {
            let now = Instant::now();
            this.clock.wall.take();
            if let Poll::Ready(outcome) = this.turn(cx, now) {
                return Poll::Ready(outcome);
            }
            let was_serving = this.phase == Phase::Serving;
            this.keep_to_memory();
            let (moved, next) = this.keep_time(cx, now);
            // What was ended, answered or lost is carried out now: nothing else may wake this session for long.
            if moved == Moved::Yes || was_serving && this.phase != Phase::Serving {
                continue;
            }
            // Deadlines mostly move away: the timer is set anew only when it has fired or would fire too late.
            if next < this.timer.deadline() || this.timer.is_elapsed() {
                this.timer.as_mut().reset(next);
                this.timer_set = false;
            }
            if !this.timer_set && this.timer.as_mut().poll(cx).is_ready() {
                continue;
            }
            this.timer_set = coop::has_budget_remaining();
            return Poll::Pending;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A session that took a side for waited for, and isn't woken by it, would never go on.
    #[tokio::test]
    async fn a_side_is_waited_for_only_if_it_wakes_the_task() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let waited_for = poll_fn(|cx| {
            while coop::poll_proceed(cx).map(|progress| progress.made_progress()).is_ready() {}
            Poll::Ready(wait_for(&mut near, cx))
        });
        assert!(!waited_for.await, "without budget nothing is");
        tokio::task::yield_now().await;
        assert!(poll_fn(|cx| Poll::Ready(wait_for(&mut near, cx))).await);
        far.write_all(b"x").await.unwrap();
        // Nothing but what was waited for wakes it.
        let woken = poll_fn(|_| if near.is_dry() { Poll::Pending } else { Poll::Ready(()) });
        tokio::time::timeout(Duration::from_secs(60), woken).await.expect("it is woken");
        assert!(!poll_fn(|cx| Poll::Ready(wait_for(&mut near, cx))).await, "it has something");
    }
}
