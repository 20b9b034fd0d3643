//! Chooses the certificate for a client, by the name it asks for and the keys it can verify.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

/// All certificates of a `[tls]` table, never empty.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The default one first, then `[[tls.additional]]` in order.
    entries: Vec<Entry>,
}

/// One certificate with its key and the names it is for.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names, of which the first label may be `*`, and IP addresses.
    pub(super) names: Vec<String>,
}

impl Certificates {
    pub(super) fn new(default: Entry, additional: impl IntoIterator<Item = Entry>) -> Self {
        Self { entries: std::iter::once(default).chain(additional).collect() }
    }

    /// The certificates that name the server best: by exact name, else by wildcard, else (no name, or one nobody has)
    /// the default with all that are for the same names. Of those the first that the client can verify, ECDSA before
    /// RSA, since its signature is four times cheaper; the first of all if it can verify none.
    fn choose(&self, server_name: Option<&str>, schemes: &[SignatureScheme]) -> &Arc<CertifiedKey> {
        let default = &self.entries[0];
        let named = |wanted: Match| {
            let matches = |entry: &&Entry| server_name.and_then(|name| entry.matches(name)) == Some(wanted);
            self.entries.iter().filter(matches).collect::<Vec<_>>()
        };
        let mut candidates = named(Match::Exact);
        if candidates.is_empty() {
            candidates = named(Match::Wildcard);
        }
        if candidates.is_empty() {
            candidates = self.entries.iter().filter(|entry| entry.serves_all_of(default)).collect();
        }
        let usable = |entry: &&&Entry| entry.key.key.choose_scheme(schemes).is_some();
        let is_rsa = |entry: &&&Entry| entry.key.key.algorithm() == SignatureAlgorithm::RSA;
        let chosen = candidates.iter().filter(usable).min_by_key(is_rsa);
        chosen.or(candidates.first()).map_or(&default.key, |entry| &entry.key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.choose(hello.server_name(), hello.signature_schemes())))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Exact,
    Wildcard,
}

impl Entry {
    fn matches(&self, server_name: &str) -> Option<Match> {
        let has = |name: &str| self.names.iter().any(|ours| ours.eq_ignore_ascii_case(name));
        if has(server_name) {
            return Some(Match::Exact);
        }
        // RFC 9525 §6.3: a wildcard stands for exactly one label.
        let (_, parent) = server_name.split_once('.')?;
        let covers = |ours: &String| ours.strip_prefix("*.").is_some_and(|ours| ours.eq_ignore_ascii_case(parent));
        self.names.iter().any(covers).then_some(Match::Wildcard)
    }

    fn serves_all_of(&self, other: &Entry) -> bool {
        std::ptr::eq(self, other) || (!other.names.is_empty() && other.names.iter().all(|name| self.names.contains(name)))
    }
}
