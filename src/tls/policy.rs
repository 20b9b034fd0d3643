//! The protocol versions, cipher suites and key exchange groups of each `policy`.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite::*;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::version::{TLS12, TLS13};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

use crate::config::{TlsPolicy, TlsVersion};

/// The server's suites and groups in its order of preference; the server's order decides.
pub(super) fn provider(policy: TlsPolicy) -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    provider.cipher_suites = SUITES.to_vec();
    if policy == TlsPolicy::Fips {
        provider.cipher_suites.retain(|suite| !CHACHA20.contains(suite));
        // SP 800-186 doesn't have X25519 by itself; SP 800-56C allows it beside ML-KEM.
        provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::SECP256R1, kx_group::SECP384R1];
    }
    Arc::new(provider)
}

/// The versions that `policy` and `min_version` both allow.
pub(super) fn versions(policy: TlsPolicy, min_version: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match (policy, min_version) {
        (TlsPolicy::Modern, _) | (_, TlsVersion::V1_3) => &BOTH[..1],
        (TlsPolicy::Intermediate | TlsPolicy::Fips, TlsVersion::V1_2) => &BOTH,
    }
}

static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// Mozilla's "intermediate" list without finite-field DHE. AES-128 stands before AES-256 because both are out of
/// reach, and SHA-256's key schedule is the smaller part of a resumed handshake.
const SUITES: [SupportedCipherSuite; 9] = [
    TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

const CHACHA20: [SupportedCipherSuite; 3] = [
    TLS13_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_suites_for_its_versions() {
        for policy in [TlsPolicy::Modern, TlsPolicy::Intermediate, TlsPolicy::Fips] {
            for min_version in [TlsVersion::V1_2, TlsVersion::V1_3] {
                let provider = provider(policy);
                for version in versions(policy, min_version) {
                    assert!(
                        provider.cipher_suites.iter().any(|suite| suite.version() == *version),
                        "{policy:?} {min_version:?}: no suite for {version:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn fips_leaves_out_what_is_not_approved() {
        let provider = provider(TlsPolicy::Fips);
        assert!(provider.cipher_suites.iter().all(|suite| !CHACHA20.contains(suite)));
        assert!(provider.kx_groups.iter().all(|group| group.name() != rustls::NamedGroup::X25519));
        assert_eq!(provider.fips(), cfg!(feature = "fips"));
    }

    #[test]
    fn no_policy_lacks_forward_secrecy_or_the_post_quantum_group() {
        for policy in [TlsPolicy::Modern, TlsPolicy::Intermediate, TlsPolicy::Fips] {
            let provider = provider(policy);
            assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
            for suite in &provider.cipher_suites {
                let name = format!("{:?}", suite.suite());
                assert!(name.contains("ECDHE") || name.starts_with("TLS13"), "{name}");
            }
        }
    }
}
