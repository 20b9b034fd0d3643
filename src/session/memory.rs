//! What all sessions' buffers hold together (`limits.buffer_memory`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::failure::Limit;
use crate::metrics::{Metrics, Share};

/// Octets that may be buffered in all.
#[derive(Debug)]
pub struct Memory {
    most: AtomicUsize,
    used: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Memory {
    /// At most `most` octets.
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.limit(Limit::BufferMemory, most);
        Arc::new(Self { most: AtomicUsize::new(most), used: AtomicUsize::new(0), metrics })
    }

    /// Takes another `limits.buffer_memory`.
    pub fn resize(&self, most: usize) {
        self.metrics.limit(Limit::BufferMemory, most);
        self.most.store(most, Ordering::Relaxed);
    }

    /// One session's part, nothing at first.
    pub fn part(self: &Arc<Self>) -> Part {
        Part { memory: Arc::clone(self), octets: 0, shown: self.metrics.limit_used(Limit::BufferMemory) }
    }
}

/// What one session's buffers hold.
#[derive(Debug)]
pub struct Part {
    memory: Arc<Memory>,
    octets: usize,
    shown: Share,
}

impl Part {
    /// A session that holds less than this is never the one to blame.
    const SMALL: usize = 64 * 1024;

    /// Says what the session holds now; false if all hold too much and this one is among those to blame.
    pub fn hold(&mut self, octets: usize) -> bool {
        if octets != self.octets {
            let used = &self.memory.used;
            if octets > self.octets {
                used.fetch_add(octets - self.octets, Ordering::Relaxed);
            } else {
                used.fetch_sub(self.octets - octets, Ordering::Relaxed);
            }
            self.octets = octets;
            self.shown.set(octets);
        }
        octets <= Self::SMALL || self.memory.used.load(Ordering::Relaxed) <= self.memory.most.load(Ordering::Relaxed)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.octets, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_much_when_all_hold_too_much_is_to_blame() {
        let memory = Memory::new(1 << 20, Metrics::new());
        let (mut small, mut large, mut other) = (memory.part(), memory.part(), memory.part());
        assert!(small.hold(1000) && large.hold(900_000));
        assert!(!other.hold(200_000), "beyond the bound");
        assert!(small.hold(Part::SMALL), "small ones go on");
        drop(large);
        assert!(other.hold(300_000), "memory came free");
        drop((small, other));
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }
}
