//! What sessions know of a pool.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Pool;

/// A pool as it is now, for those that outlive its reloads: whoever looks for a backend meets the newest settings and the
/// backends that are watched.
#[derive(Clone)]
pub struct CurrentPool(Arc<ArcSwap<Pool>>);

impl CurrentPool {
    /// It begins with this one.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self(Arc::new(ArcSwap::new(pool)))
    }

    /// The pool as it is now. Keep it no longer than a question takes.
    pub fn now(&self) -> Arc<Pool> {
        self.0.load_full()
    }

    /// From now on it is this one.
    pub fn replace(&self, pool: Arc<Pool>) {
        self.0.store(pool);
    }
}
