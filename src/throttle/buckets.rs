//! Token buckets by key, in bounded memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Many small shards, since a full one is searched for the key to drop.
const SHARDS: usize = 256;
/// 65,536 keys in all, about 4 MiB.
const KEYS_PER_SHARD: usize = 256;

/// How tokens come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refill {
    /// Steadily, a whole bucket in a window.
    Steady,
    /// All at once, after a window without a failure.
    WhenQuiet,
}

/// A bucket of failures for each key.
///
/// Keys are kept as keyed hashes: names may be long, and are personal. Of two keys with one hash, both get one bucket; by
/// chance that takes billions of keys, and nobody can aim for it.
#[derive(Debug)]
pub(super) struct Buckets {
    budget: f64,
    window: Duration,
    refill: Refill,
    hasher: RandomState,
    keys_per_shard: usize,
    shards: [Mutex<HashMap<u64, Bucket>>; SHARDS],
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    failures: f64,
    /// How many of them were taken in advance, and may be none yet.
    pending: u32,
    /// When `failures` last changed.
    at: Instant,
    /// How often it has been forgiven.
    epoch: u32,
}

/// Why no failure can be taken from a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Empty {
    /// Its failures: how long until one is forgotten.
    Failed(Duration),
    /// What is pending: a result may come at any time.
    Pending,
}

/// A failure taken from a bucket in advance.
#[derive(Debug)]
pub(super) struct Charge {
    key: u64,
    epoch: u32,
    /// When it was taken, and when the bucket had changed before.
    at: Instant,
    before: Instant,
}

impl Buckets {
    /// Buckets of `budget` failures.
    pub(super) fn new(budget: u32, window: Duration, refill: Refill) -> Self {
        Self {
            budget: f64::from(budget),
            window,
            refill,
            hasher: RandomState::new(),
            keys_per_shard: KEYS_PER_SHARD,
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Takes one failure from the key's bucket.
    ///
    /// # Errors
    /// The bucket is [`Empty`].
    pub(super) fn charge(&self, key: &impl Hash, now: Instant) -> Result<Charge, Empty> {
        let key = self.hasher.hash_one(key);
        let mut shard = self.shard(key);
        if !shard.contains_key(&key) && shard.len() == self.keys_per_shard {
            self.evict(&mut shard, now);
        }
        let bucket = shard.entry(key).or_insert(Bucket { failures: 0.0, pending: 0, at: now, epoch: 0 });
        let failures = self.failures(bucket, now);
        if failures == 0.0 {
            bucket.pending = 0;
        }
        if failures + 1.0 > self.budget {
            let failed = failures - f64::from(bucket.pending);
            return Err(match failed + 1.0 > self.budget {
                true => Empty::Failed(self.until_one_is_free(bucket, failures, now)),
                false => Empty::Pending,
            });
        }
        let charge = Charge { key, epoch: bucket.epoch, at: now, before: bucket.at };
        bucket.failures = failures + 1.0;
        bucket.pending += 1;
        bucket.at = now;
        Ok(charge)
    }

    /// Confirms a charge: the failure happened.
    pub(super) fn keep(&self, charge: &Charge, now: Instant) {
        self.change(charge, |bucket| {
            // A success in the meantime has forgiven this charge as well, before it was known to be a failure.
            let forgotten = if bucket.epoch == charge.epoch { 0.0 } else { 1.0 };
            bucket.failures = self.failures(bucket, now) + forgotten;
            bucket.at = now;
        });
    }

    /// Gives a charge back: no failure happened.
    pub(super) fn give_back(&self, charge: &Charge, now: Instant) {
        self.change(charge, |bucket| {
            if bucket.epoch == charge.epoch {
                bucket.failures = (self.failures(bucket, now) - 1.0).max(0.0);
                bucket.at = match self.refill {
                    Refill::Steady => now,
                    // No failure has broken the quiet.
                    Refill::WhenQuiet if bucket.at == charge.at => charge.before,
                    Refill::WhenQuiet => bucket.at,
                };
            }
        });
    }

    /// Leaves a charge as it is, since nobody will know its result: it counts as a failure, and there is none to wait for.
    pub(super) fn leave(&self, charge: &Charge) {
        self.change(charge, |_| {});
    }

    /// Forgives all failures of the charge's key.
    pub(super) fn forgive(&self, charge: &Charge, now: Instant) {
        self.change(charge, |bucket| {
            *bucket = Bucket { failures: 0.0, pending: 0, at: now, epoch: bucket.epoch.wrapping_add(1) };
        });
    }

    /// Ends a charge, and with it that it is pending, by a change of its bucket.
    fn change(&self, charge: &Charge, change: impl FnOnce(&mut Bucket)) {
        // A bucket evicted in the meantime stays so: it held next to nothing.
        if let Some(bucket) = self.shard(charge.key).get_mut(&charge.key) {
            // What was pending before a success was forgotten with it.
            if bucket.epoch == charge.epoch {
                bucket.pending = bucket.pending.saturating_sub(1);
            }
            change(bucket);
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Bucket>> {
        let index = usize::try_from(key % SHARDS as u64).expect("less than SHARDS");
        // A panic while the lock is held leaves counters, never a broken invariant.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failures that count at `now`.
    fn failures(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at);
        match self.refill {
            _ if passed >= self.window => 0.0,
            Refill::WhenQuiet => bucket.failures,
            Refill::Steady => (bucket.failures - self.budget * passed.div_duration_f64(self.window)).max(0.0),
        }
    }

    fn until_one_is_free(&self, bucket: &Bucket, failures: f64, now: Instant) -> Duration {
        match self.refill {
            Refill::WhenQuiet => self.window.saturating_sub(now.saturating_duration_since(bucket.at)),
            Refill::Steady => self.window.mul_f64((failures + 1.0 - self.budget) / self.budget),
        }
    }

    /// Makes room for a key: what has been refilled goes, else the bucket with the fewest failures, of those the one
    /// touched longest ago. So names and addresses under attack stay counted while somebody sprays others to drive them out.
    fn evict(&self, shard: &mut HashMap<u64, Bucket>, now: Instant) {
        shard.retain(|_, bucket| self.failures(bucket, now) > 0.0);
        if shard.len() < self.keys_per_shard {
            return;
        }
        let harmless = shard.iter().min_by(|(_, one), (_, other)| {
            let failures = |bucket| self.failures(bucket, now);
            failures(one).total_cmp(&failures(other)).then(one.at.cmp(&other.at))
        });
        if let Some((&key, _)) = harmless {
            shard.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn fail(buckets: &Buckets, key: &str, now: Instant) -> bool {
        buckets.charge(&key, now).map(|charge| buckets.keep(&charge, now)).is_ok()
    }

    #[test]
    fn memory_is_bounded_and_the_worst_stay() {
        let mut buckets = Buckets::new(3, 10 * MINUTE, Refill::WhenQuiet);
        buckets.keys_per_shard = 8;
        let start = Instant::now();
        for _ in 0..3 {
            assert!(fail(&buckets, "under attack", start));
        }
        for name in 0..4 * SHARDS * 8 {
            fail(&buckets, &name.to_string(), start + MINUTE);
        }
        assert!(buckets.shards.iter().all(|shard| shard.lock().unwrap().len() <= 8));
        assert!(!fail(&buckets, "under attack", start + MINUTE));

        // What has been refilled makes room first.
        fail(&buckets, "one more", start + 20 * MINUTE);
        let shard = buckets.shard(buckets.hasher.hash_one("one more"));
        assert_eq!(shard.len(), 1);
    }

    #[test]
    fn a_steady_bucket_refills_steadily() {
        let buckets = Buckets::new(10, 10 * MINUTE, Refill::Steady);
        let start = Instant::now();
        assert!((0..10).all(|_| fail(&buckets, "key", start)));
        assert_eq!(buckets.charge(&"key", start).unwrap_err(), Empty::Failed(MINUTE));
        assert!(!fail(&buckets, "key", start + MINUTE / 2));
        assert!(fail(&buckets, "key", start + MINUTE));
        assert!(!fail(&buckets, "key", start + MINUTE));
        assert!((0..10).all(|_| fail(&buckets, "key", start + 12 * MINUTE)));
    }

    #[test]
    fn a_failure_that_was_under_way_when_another_login_succeeded_still_counts() {
        let buckets = Buckets::new(2, 10 * MINUTE, Refill::WhenQuiet);
        let now = Instant::now();
        let (slow, good) = (buckets.charge(&"ann", now).unwrap(), buckets.charge(&"ann", now).unwrap());
        buckets.forgive(&good, now);
        buckets.keep(&slow, now);
        assert!(fail(&buckets, "ann", now));
        assert!(!fail(&buckets, "ann", now));

        // Given back, it takes nothing from what came after the success.
        let buckets = Buckets::new(2, 10 * MINUTE, Refill::WhenQuiet);
        let (slow, good) = (buckets.charge(&"ann", now).unwrap(), buckets.charge(&"ann", now).unwrap());
        buckets.forgive(&good, now);
        assert!(fail(&buckets, "ann", now) && fail(&buckets, "ann", now));
        buckets.give_back(&slow, now);
        assert!(!fail(&buckets, "ann", now));
    }
}
