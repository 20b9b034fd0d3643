//! Replaying a bind on another backend, carefully: one changed password behind 300 sessions must be one bad bind at the
//! directory, not a lockout.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::sync::watch;
use tokio::time::Instant;

use super::operations::KeptBind;
use crate::ldap::{self, Request};

/// Remembers what replays have proved about each pair of name and password, for one pool.
///
/// Pairs are known by a digest under a key that lives as long as the process: nothing here can be turned back into a
/// password.
pub struct ReplayGuard {
    key: hmac::Key,
    pairs: Mutex<HashMap<Digest, Pair>>,
}

type Digest = [u8; 32];

#[derive(Debug)]
enum Pair {
    /// One session is trying; the others wait for the channel to close.
    Trying(watch::Receiver<()>),
    /// A backend accepted it at this time.
    Accepted(Instant),
    /// A backend refused it at this time.
    Refused(Instant),
}

/// A pair was refused by a backend: it is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// What a session may do with its credential now.
#[derive(Debug)]
pub enum Permit {
    /// Bind on behalf of all that wait for what comes of it.
    First(Trial),
    /// Bind: another session has just done so.
    Proven(Proven),
}

impl Permit {
    /// A backend accepted the pair.
    pub fn accepted(self) {
        if let Self::First(trial) = self {
            trial.conclude(Pair::Accepted(Instant::now()));
        }
    }

    /// A backend refused the pair: whoever else has it is stopped.
    pub fn refused(self) {
        let verdict = Pair::Refused(Instant::now());
        match self {
            Self::First(trial) => trial.conclude(verdict),
            Self::Proven(Proven { guard, digest }) => guard.judge(digest, verdict),
        }
    }
}

impl ReplayGuard {
    /// An accepted pair lets others through for this long; after it, one session at a time tries again.
    const ACCEPTED_FOR: Duration = Duration::from_secs(2);
    /// A refused pair stays refused for this long, longer than any session waits to fail over.
    const REFUSED_FOR: Duration = Duration::from_secs(15 * 60);
    /// Pairs remembered at most.
    const MOST: usize = 20_000;

    /// A guard that knows nothing yet.
    pub fn new() -> Arc<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new())
            .expect("the system's random source works, or TLS would not have started");
        Arc::new(Self { key, pairs: Mutex::default() })
    }

    /// Waits until the pair in `credential` may be tried. Sessions with the same pair go one at a time until one has
    /// been accepted.
    pub async fn permit(self: &Arc<Self>, credential: &KeptBind) -> Result<Permit, Refused> {
        let digest = self.digest(credential);
        loop {
            let mut trying = match self.ask(digest, Instant::now()) {
                Ok(answer) => return answer,
                Err(trying) => trying,
            };
            // An error is the channel closing: the trial has ended.
            let _ = trying.changed().await;
        }
    }

    /// A client has bound the pair itself: where it was refused before, it was not yet known.
    pub fn vouch(&self, credential: &KeptBind) {
        if self.pairs().is_empty() {
            return;
        }
        let digest = self.digest(credential);
        let mut pairs = self.pairs();
        if let Some(Pair::Refused(_)) = pairs.get(&digest) {
            pairs.remove(&digest);
        }
    }

    fn ask(self: &Arc<Self>, digest: Digest, now: Instant) -> Result<Result<Permit, Refused>, watch::Receiver<()>> {
        let mut pairs = self.pairs();
        match pairs.get(&digest) {
            Some(Pair::Trying(trying)) => return Err(trying.clone()),
            Some(Pair::Accepted(at)) if now < *at + Self::ACCEPTED_FOR => {
                return Ok(Ok(Permit::Proven(Proven { guard: Arc::clone(self), digest })));
            }
            Some(Pair::Refused(at)) if now < *at + Self::REFUSED_FOR => return Ok(Err(Refused)),
            _ => {}
        }
        if pairs.len() >= Self::MOST {
            pairs.retain(|_, pair| match pair {
                Pair::Trying(_) => true,
                Pair::Accepted(at) => now < *at + Self::ACCEPTED_FOR,
                Pair::Refused(at) => now < *at + Self::REFUSED_FOR,
            });
        }
        let (ended, trying) = watch::channel(());
        pairs.insert(digest, Pair::Trying(trying));
        Ok(Ok(Permit::First(Trial { guard: Arc::clone(self), digest, _ended: ended })))
    }

    /// The digest of a BindRequest's name and password, whatever its messageID and encoding.
    fn digest(&self, credential: &KeptBind) -> Digest {
        let pdu = credential.pdu();
        let mut context = hmac::Context::with_key(&self.key);
        let bind =
            ldap::envelope(pdu, pdu.len()).ok().flatten().and_then(|envelope| Request::new(pdu, envelope)?.bind());
        match bind {
            Some(bind) => {
                context.update(&(bind.name.len() as u64).to_be_bytes());
                context.update(bind.name);
                if let ldap::Authentication::Simple(password) = bind.authentication {
                    context.update(password);
                }
            }
            None => context.update(pdu),
        }
        context.sign().as_ref().try_into().expect("HMAC-SHA-256 gives 32 octets")
    }

    fn judge(&self, digest: Digest, verdict: Pair) {
        self.pairs().insert(digest, verdict);
    }

    fn pairs(&self) -> MutexGuard<'_, HashMap<Digest, Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session's attempt to bind a pair on behalf of all that wait for it. Dropped without a verdict, the next may try.
pub struct Trial {
    guard: Arc<ReplayGuard>,
    digest: Digest,
    /// Wakes those who wait, when dropped.
    _ended: watch::Sender<()>,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trial")
    }
}

/// One session's bind of a pair that was accepted a moment ago, by another backend perhaps.
pub struct Proven {
    guard: Arc<ReplayGuard>,
    digest: Digest,
}

impl std::fmt::Debug for Proven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proven")
    }
}

impl Trial {
    fn conclude(self, verdict: Pair) {
        self.guard.judge(self.digest, verdict);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut pairs = self.guard.pairs();
        if let Some(Pair::Trying(_)) = pairs.get(&self.digest) {
            pairs.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BindRequest by `cn` with this messageID and password.
    fn bind(id: u8, password: &[u8]) -> KeptBind {
        let mut content = vec![0x02, 0x01, 0x03, 0x04, 0x02, b'c', b'n', 0x80, password.len() as u8];
        content.extend(password);
        let mut pdu = vec![0x30, (5 + content.len()) as u8, 0x02, 0x01, id, 0x60, content.len() as u8];
        pdu.extend(content);
        KeptBind::new(&pdu)
    }

    #[tokio::test(start_paused = true)]
    async fn three_hundred_sessions_with_a_changed_password_are_one_bad_bind() {
        let guard = ReplayGuard::new();
        let tried = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let sessions: Vec<_> = (0..300)
            .map(|id| {
                let (guard, tried) = (Arc::clone(&guard), Arc::clone(&tried));
                tokio::spawn(async move {
                    match guard.permit(&bind(id as u8 % 100, b"old")).await {
                        Ok(permit) => {
                            tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            permit.refused();
                            true
                        }
                        Err(Refused) => false,
                    }
                })
            })
            .collect();
        for session in sessions {
            session.await.expect("no panic");
        }
        assert_eq!(tried.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(guard.permit(&bind(1, b"new")).await.is_ok(), "another password is another pair");
        tokio::time::advance(ReplayGuard::REFUSED_FOR).await;
        assert!(guard.permit(&bind(1, b"old")).await.is_ok(), "a refusal does not last for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn an_accepted_pair_lets_the_others_through_for_a_moment() {
        let guard = ReplayGuard::new();
        let first = guard.permit(&bind(1, b"p")).await.expect("the first may try");
        let waiting = tokio::spawn({
            let guard = Arc::clone(&guard);
            async move { guard.permit(&bind(2, b"p")).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.accepted();
        assert!(matches!(waiting.await.expect("no panic"), Ok(Permit::Proven(_))));
        tokio::time::advance(ReplayGuard::ACCEPTED_FOR).await;
        assert!(matches!(guard.permit(&bind(1, b"p")).await, Ok(Permit::First(_))));
    }

    /// Both backends of a pool may not know the same password: the first that refuses it stops all others.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_although_the_pair_has_just_been_accepted() {
        let guard = ReplayGuard::new();
        guard.permit(&bind(1, b"p")).await.expect("the first may try").accepted();
        let permits = [guard.permit(&bind(2, b"p")).await, guard.permit(&bind(3, b"p")).await];
        for permit in permits {
            permit.expect("it was accepted").refused();
            assert!(matches!(guard.permit(&bind(4, b"p")).await, Err(Refused)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clients_own_bind_ends_a_refusal_of_the_same_pair() {
        let guard = ReplayGuard::new();
        guard.permit(&bind(1, b"p")).await.expect("the first may try").refused();
        guard.vouch(&bind(2, b"q"));
        assert!(matches!(guard.permit(&bind(3, b"p")).await, Err(Refused)));
        guard.vouch(&bind(4, b"p"));
        let trial = guard.permit(&bind(5, b"p")).await;
        assert!(matches!(trial, Ok(Permit::First(_))), "one session at a time");
        guard.vouch(&bind(6, b"p"));
        assert!(!guard.pairs().is_empty(), "a trial under way goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_without_a_verdict_passes_to_the_next() {
        let guard = ReplayGuard::new();
        let Ok(Permit::First(trial)) = guard.permit(&bind(1, b"p")).await else { panic!("the first may try") };
        drop(trial);
        assert!(matches!(guard.permit(&bind(2, b"p")).await, Ok(Permit::First(_))));
    }
}
