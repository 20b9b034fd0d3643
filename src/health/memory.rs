//! What a pool's watcher has found out, for the one that takes over when a reload makes the pool anew.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::judgement::Judgement;
use crate::config;
use crate::pool::{Backend, Health};

/// What is thought of a pool's backends, and why: it outlives a reload of the pool's settings.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Histories>>);

/// The backends of one watcher.
#[derive(Debug, Default)]
pub(super) struct Histories {
    /// What their probes were.
    settings: config::Health,
    by_address: HashMap<SocketAddr, History>,
}

/// One backend.
#[derive(Debug, Clone)]
pub(super) struct History {
    pub judgement: Judgement,
    /// The last verdict: it doesn't answer at all.
    pub silent: bool,
    /// It has been down and not up since.
    pub fallen: bool,
}

impl Memory {
    /// Takes everything out.
    pub(super) fn recall(&self) -> Histories {
        std::mem::take(&mut self.histories())
    }

    /// Keeps this and nothing else.
    pub(super) fn keep(&self, settings: &config::Health, histories: impl Iterator<Item = (SocketAddr, History)>) {
        let by_address = histories.collect();
        *self.histories() = Histories { settings: settings.clone(), by_address };
    }

    fn histories(&self) -> MutexGuard<'_, Histories> {
        // It is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Histories {
    /// How a backend goes on under these settings.
    pub fn continue_with(&mut self, backend: &Backend, settings: &config::Health) -> History {
        match self.by_address.remove(&backend.address()) {
            // One that is unknown begins anew: DNS had dropped it meanwhile.
            Some(History { judgement, silent, fallen }) if backend.health() != Health::Unknown => {
                History { judgement: judgement.under(&self.settings, settings), silent, fallen }
            }
            _ => History { judgement: Judgement::new(settings), silent: false, fallen: false },
        }
    }
}
