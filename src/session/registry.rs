//! The sessions that are alive, for those who count, show or end them.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::SystemTime;

use crate::access_log::TlsFacts;
use crate::buffer::shrink_after_crowd;
use crate::pool::Backend;
use crate::tls::Handshake;

/// All live sessions of the process.
#[derive(Default)]
pub struct Registry {
    next: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<Handle>>>; SHARDS],
}

const SHARDS: usize = 16;

/// What a session can be told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Finish what is in flight, tell the client, end.
    Drain = 1,
    /// End now: an operator wants it.
    Kill = 2,
    /// End now: the client's network is no longer trusted.
    Distrust = 4,
    /// Leave the backend as soon as nothing is in flight, if another can take over.
    Move = 8,
    /// Answer what is in flight and end now: the time to drain is over.
    Stop = 16,
    /// The backend has stopped answering: take the upstream for lost.
    Leave = 32,
    /// As [`Command::Move`], because another backend has come back.
    Rebalance = 64,
}

/// One live session, seen from outside.
pub struct Handle {
    /// Unique within the process.
    pub id: u64,
    /// The client: the real one where a PROXY header names it.
    pub client: SocketAddr,
    /// The listener's name.
    pub listener: Arc<str>,
    /// When it began.
    pub started: SystemTime,
    /// Operations it has finished.
    pub operations: AtomicU64,
    /// Operations it waits for.
    pub in_flight: AtomicUsize,
    /// Octets from the client.
    pub received: AtomicU64,
    /// Octets to the client.
    pub sent: AtomicU64,
    commands: AtomicU8,
    waker: Mutex<Option<Waker>>,
    facts: Mutex<Facts>,
}

/// What changes in a session's life.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The name of its last successful bind.
    pub bind_name: Option<Box<str>>,
    /// The backend it is connected to.
    pub backend: Option<Arc<Backend>>,
    /// The backend it was connected to last.
    pub last_backend: Option<Arc<Backend>>,
    /// Whether it has become an opaque tunnel.
    pub tunnel: bool,
    /// What the handshake settled; `None` in cleartext.
    pub tls: Option<TlsFacts>,
    /// The VPC endpoint it came through.
    pub vpc_endpoint: Option<Box<str>>,
    /// Who it is, as its log writes that.
    pub(super) written: OnceCell<Box<[u8]>>,
}

impl Handle {
    /// Tells the session something.
    pub fn command(&self, command: Command) {
        self.commands.fetch_or(command as u8, Ordering::Release);
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake_by_ref();
        }
    }

    /// What changes in its life, as it is now.
    pub fn facts(&self) -> Facts {
        lock(&self.facts).clone()
    }

    /// The same, read in place by the session itself: nobody waits long for a record to be made.
    pub(super) fn read_facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// Notes what the handshake and the PROXY header said.
    pub fn describe(&self, handshake: Option<&Handshake>, vpc_endpoint: Option<&str>) {
        self.set_facts(|facts| {
            if let Some(handshake) = handshake {
                facts.tls = Some(TlsFacts {
                    version: handshake.version,
                    suite: handshake.suite,
                    server_name: handshake.sni.as_deref().map(Into::into),
                    client_certificate: handshake.client_subject.as_deref().map(Into::into),
                });
            }
            if let Some(endpoint) = vpc_endpoint {
                facts.vpc_endpoint = Some(endpoint.into());
            }
        });
    }

    pub(super) fn set_facts(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = lock(&self.facts);
        change(&mut facts);
        facts.written.take();
    }

    /// Whether the session has been told this.
    pub(super) fn is_told(&self, command: Command) -> bool {
        self.commands.load(Ordering::Acquire) & command as u8 != 0
    }

    pub(super) fn has_commands(&self) -> bool {
        self.commands.load(Ordering::Acquire) != 0
    }

    pub(super) fn fulfil(&self, command: Command) {
        self.commands.fetch_and(!(command as u8), Ordering::Release);
    }

    /// Makes commands wake the task that is being polled. Returns whether it is another than the last time.
    pub(super) fn wake_by(&self, waker: &Waker) -> bool {
        let mut slot = lock(&self.waker);
        let is_another = !slot.as_ref().is_some_and(|known| known.will_wake(waker));
        if is_another {
            *slot = Some(waker.clone());
        }
        is_another
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}, {})", self.id, self.client)
    }
}

impl Registry {
    /// Enters a session that begins now.
    pub fn enter(self: &Arc<Self>, client: SocketAddr, listener: Arc<str>) -> Entry {
        let handle = Arc::new(Handle {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            client,
            listener,
            started: SystemTime::now(),
            operations: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            commands: AtomicU8::new(0),
            waker: Mutex::default(),
            facts: Mutex::default(),
        });
        lock(self.shard(handle.id)).insert(handle.id, Arc::clone(&handle));
        Entry { registry: Arc::clone(self), handle }
    }

    /// Every live session, in no order.
    pub fn sessions(&self) -> Vec<Arc<Handle>> {
        self.shards.iter().flat_map(|shard| lock(shard).values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Tells every live session something.
    pub fn command_all(&self, command: Command) {
        for session in self.sessions() {
            session.command(command);
        }
    }

    /// Tells every session on this backend something.
    pub fn command_on(&self, backend: &Arc<Backend>, command: Command) {
        self.command_some(backend, usize::MAX, command);
    }

    /// Tells at most this many sessions on this backend something.
    pub fn command_some(&self, backend: &Arc<Backend>, most: usize, command: Command) {
        let is_on = |session: &Arc<Handle>| session.facts().backend.is_some_and(|its| its.is(backend));
        self.sessions().into_iter().filter(is_on).take(most).for_each(|session| session.command(command));
    }

    /// The session of this number.
    pub fn find(&self, id: u64) -> Option<Arc<Handle>> {
        lock(self.shard(id)).get(&id).cloned()
    }

    /// How many sessions are alive.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether no session is alive.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Handle>>> {
        &self.shards[id as usize % SHARDS]
    }
}

/// A session's place in the registry; leaving is dropping it.
pub struct Entry {
    registry: Arc<Registry>,
    handle: Arc<Handle>,
}

impl std::ops::Deref for Entry {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut shard = lock(self.registry.shard(self.handle.id));
        shard.remove(&self.handle.id);
        shrink_after_crowd(&mut shard);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here can be left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
