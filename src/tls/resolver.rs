//! Chooses the certificate for a client, by the name it asks for and the keys it can verify.

use std::cell::Cell;
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
        ASKED.set(Some(hello.server_name().map(str::to_owned)));
        Some(Arc::clone(self.choose(hello.server_name(), hello.signature_schemes())))
    }
}

thread_local! {
    static ASKED: Cell<Option<Option<String>>> = const { Cell::new(None) };
}

/// The host name that a client asked for, if this thread has chosen a certificate for one since the last call. rustls's
/// unbuffered connections don't tell it.
pub(super) fn take_asked() -> Option<Option<String>> {
    ASKED.take()
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
        std::ptr::eq(self, other)
            || (!other.names.is_empty() && other.names.iter().all(|name| self.names.contains(name)))
    }
}

#[cfg(test)]
mod tests {
    use rustls::SignatureScheme::{ECDSA_NISTP256_SHA256, RSA_PSS_SHA256};
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

    use super::super::testing::{ecdsa, rsa};
    use super::*;

    /// The certificate's place stands in for it.
    fn entry(place: u8, key: &rcgen::KeyPair, names: &[&str]) -> Entry {
        let der = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let key = CertifiedKey::new(vec![vec![place].into()], any_supported_type(&der).unwrap());
        Entry { key: Arc::new(key), names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn the_best_name_and_the_cheapest_usable_key_win() {
        let (ecdsa, rsa) = (ecdsa(), rsa());
        let certificates = Certificates::new(
            entry(0, &rsa, &["ldap.example.com", "10.0.0.1"]),
            [
                entry(1, &ecdsa, &["LDAP.example.com", "ldap.example.com", "10.0.0.1"]),
                entry(2, &ecdsa, &["*.example.com"]),
                entry(3, &rsa, &["other.example.net"]),
            ],
        );
        let both = &[ECDSA_NISTP256_SHA256, RSA_PSS_SHA256][..];
        let only_rsa = &[RSA_PSS_SHA256][..];
        for (name, schemes, place) in [
            (Some("ldap.example.com"), both, 1),
            (Some("Ldap.Example.com"), both, 1),
            (Some("ldap.example.com"), only_rsa, 0),
            (Some("dc1.example.com"), both, 2),
            (Some("dc1.example.com"), only_rsa, 2),
            (Some("a.dc1.example.com"), both, 1),
            (Some("example.com"), both, 1),
            (Some("other.example.net"), both, 3),
            (Some("unknown"), both, 1),
            (Some("unknown"), only_rsa, 0),
            (None, both, 1),
            (None, only_rsa, 0),
            (None, &[], 1),
        ] {
            let chosen = certificates.choose(name, schemes).cert[0].as_ref()[0];
            if schemes.is_empty() {
                assert!(chosen <= 1, "any of the default's name, so that the handshake fails with a reason");
            } else {
                assert_eq!(chosen, place, "{name:?} {schemes:?}");
            }
        }
    }

    #[test]
    fn a_default_without_names_stands_alone() {
        let certificates = Certificates::new(entry(0, &ecdsa(), &[]), [entry(1, &ecdsa(), &["ldap.example.com"])]);
        assert_eq!(certificates.choose(None, &[ECDSA_NISTP256_SHA256]).cert[0].as_ref(), [0]);
    }
}
