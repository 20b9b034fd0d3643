//! Finding backends by name: host names and SRV records, asked for again as their TTL says.
//!
//! [`Answers`] keeps what DNS has said and decides when to ask again; `endpoints` makes backends of it, by RFC 2782; both
//! are pure. A pool of plain addresses needs none of this.

mod answers;
mod endpoints;
mod resolver;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use answers::{Answer, Answers, Question, Service};

use crate::config;
use crate::pool::{Endpoint, Pool};
use resolver::NameServers;

/// A name could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupFailure {
    /// The name, as configured or as the target of a service.
    pub name: String,
    /// What went wrong, in words.
    pub reason: String,
    /// How many times in a row it has.
    pub times: u32,
}

/// What a pool's names resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// In the order of the configuration.
    pub endpoints: Vec<Endpoint>,
    /// Names that are missing in it.
    pub failures: Vec<LookupFailure>,
}

/// Resolves all names of a pool, once.
pub async fn resolve_once(pool: &config::Pool) -> Found {
    let mut discovery = Discovery::new(pool);
    let failures = discovery.refresh().await;
    Found { endpoints: discovery.endpoints(), failures }
}

/// What DNS has said to a pool's names: it outlives a reload of the pool's settings.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Mutex<Answers>>);

/// A pool's names and what is known of them.
pub struct Discovery {
    sources: Vec<config::BackendSource>,
    memory: Memory,
    name_servers: NameServers,
}

impl Discovery {
    /// Nothing is known yet: [`Discovery::refresh`] asks.
    pub fn new(pool: &config::Pool) -> Self {
        let sources = pool.backends.clone();
        let name_servers = NameServers::new(&pool.discovery.name_servers);
        Self { sources, memory: Memory(Arc::new(Mutex::new(Answers::new(&pool.discovery)))), name_servers }
    }

    /// What it knows, now and later.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Takes over the last good answers of the same pool under older settings, so that a reload while DNS fails costs no
    /// backend. They are asked for again all the same.
    pub fn succeed(&mut self, before: &Memory) {
        self.answers().succeed(&before.answers(), Instant::now());
    }

    /// The backends known now.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.answers().endpoints(&self.sources)
    }

    /// Asks what is due: names first, then the targets they lead to. Takes some seconds where name servers are silent.
    pub async fn refresh(&mut self) -> Vec<LookupFailure> {
        let mut failures = Vec::new();
        for _ in ["names", "targets"] {
            let due = self.answers().due(&self.sources, Instant::now());
            failures.extend(self.ask(due).await);
        }
        self.answers().prune(&self.sources);
        failures
    }

    /// Keeps the pool's backends as DNS says, for as long as it runs; returns at once where the pool has no names. A
    /// backend that DNS no longer names takes no new session; a new one is used once it has passed a probe.
    pub async fn run(mut self, pool: Arc<Pool>) {
        while let Some(due) = self.next_due() {
            sleep_until(due).await;
            for failure in self.refresh().await {
                pool.metrics().discovery_failed(format_args!("{}: {}", failure.name, failure.reason));
                failure.log(&pool.settings().name);
            }
            let admission = pool.admit(&self.endpoints());
            if !admission.added.is_empty() || !admission.removed.is_empty() {
                let (added, removed) = (&admission.added, &admission.removed);
                tracing::info!(pool = pool.settings().name, ?added, ?removed, "DNS has changed the pool's backends");
                if pool.backends().is_empty() {
                    tracing::error!(pool = pool.settings().name, "DNS leaves the pool without a backend");
                }
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.answers().next_due(&self.sources, Instant::now())
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.memory.answers()
    }

    async fn ask(&mut self, questions: Vec<Question>) -> Vec<LookupFailure> {
        if questions.is_empty() {
            return Vec::new();
        }
        let mut lookups = JoinSet::new();
        let mut results = Vec::with_capacity(questions.len());
        match self.name_servers.resolver() {
            Ok(resolver) => {
                for question in questions {
                    let resolver = Arc::clone(&resolver);
                    let known = self.answers().get(&question).cloned();
                    lookups.spawn(async move { (resolver.ask(&question, known.as_ref()).await, question) });
                }
            }
            Err(why) => results.extend(questions.into_iter().map(|question| (Err(why.clone()), question))),
        }
        while let Some(lookup) = lookups.join_next().await {
            results.extend(lookup);
        }
        let now = Instant::now();
        let mut failures = Vec::new();
        for (result, question) in results {
            match result {
                Ok((answer, ttl)) => self.answers().learn(question, answer, ttl, now),
                Err(reason) => {
                    let (Question::Service(name) | Question::Host(name)) = &question;
                    let name = name.clone();
                    failures.push(LookupFailure { name, reason, times: self.answers().fail(question, now) });
                }
            }
        }
        failures
    }
}

impl Memory {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        // Every change is whole before the guard goes, so a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LookupFailure {
    /// Says so where it is news.
    fn log(&self, pool: &str) {
        let Self { name, reason, times } = self;
        if *times == 1 {
            tracing::warn!(pool, name, reason, "name lookup failed; the last good answer stays in force");
        } else {
            tracing::debug!(pool, name, reason, times, "name lookup failed again");
        }
    }
}
