//! TLS's signature schemes as PKCS#11 mechanisms, and the certificate's view of them.

use aws_lc_rs::digest::{self, SHA256, SHA384};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::KeyType;
use cryptoki::types::Ulong;
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey as Parsed;

/// The public half of a key in a token, as its certificate has it.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    kind: Kind,
    /// The contents of subjectPublicKey: RSAPublicKey in DER, or the uncompressed point.
    octets: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
}

impl PublicKey {
    /// `None` for types that no token here is asked for.
    pub(super) fn of(leaf: &X509Certificate<'_>) -> Option<Self> {
        let key = leaf.public_key();
        let kind = match key.parsed().ok()? {
            Parsed::RSA(_) => Kind::Rsa,
            Parsed::EC(point) if point.key_size() == 256 => Kind::P256,
            Parsed::EC(point) if point.key_size() == 384 => Kind::P384,
            _ => return None,
        };
        Some(Self { kind, octets: key.subject_public_key.data.to_vec() })
    }

    pub(super) fn algorithm(&self) -> SignatureAlgorithm {
        match self.kind {
            Kind::Rsa => SignatureAlgorithm::RSA,
            Kind::P256 | Kind::P384 => SignatureAlgorithm::ECDSA,
        }
    }

    pub(super) fn key_type(&self) -> KeyType {
        match self.kind {
            Kind::Rsa => KeyType::RSA,
            Kind::P256 | Kind::P384 => KeyType::EC,
        }
    }

    /// Schemes whose mechanism the token has, in the order rustls prefers them.
    pub(super) fn schemes(&self, has: impl Fn(MechanismType) -> bool) -> Vec<SignatureScheme> {
        use SignatureScheme::*;
        let all: &[SignatureScheme] = match self.kind {
            Kind::Rsa => {
                &[RSA_PSS_SHA512, RSA_PSS_SHA384, RSA_PSS_SHA256, RSA_PKCS1_SHA512, RSA_PKCS1_SHA384, RSA_PKCS1_SHA256]
            }
            Kind::P256 => &[ECDSA_NISTP256_SHA256],
            Kind::P384 => &[ECDSA_NISTP384_SHA384],
        };
        all.iter().copied().filter(|scheme| has(mechanism(*scheme).mechanism_type())).collect()
    }

    /// Whether `signature`, as TLS sends it, is this key's.
    pub(super) fn verifies(&self, scheme: SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(verification(scheme), &self.octets).verify(message, signature).is_ok()
    }
}

/// RSA mechanisms hash by themselves. For ECDSA we do: CKM_ECDSA is what every token has.
pub(super) fn mechanism(scheme: SignatureScheme) -> Mechanism<'static> {
    // RFC 8446 §4.2.3: the salt is as long as the digest.
    let pss = |hash_alg, mgf, length| PkcsPssParams { hash_alg, mgf, s_len: Ulong::new(length) };
    match scheme {
        SignatureScheme::RSA_PKCS1_SHA256 => Mechanism::Sha256RsaPkcs,
        SignatureScheme::RSA_PKCS1_SHA384 => Mechanism::Sha384RsaPkcs,
        SignatureScheme::RSA_PKCS1_SHA512 => Mechanism::Sha512RsaPkcs,
        SignatureScheme::RSA_PSS_SHA256 => {
            Mechanism::Sha256RsaPkcsPss(pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32))
        }
        SignatureScheme::RSA_PSS_SHA384 => {
            Mechanism::Sha384RsaPkcsPss(pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48))
        }
        SignatureScheme::RSA_PSS_SHA512 => {
            Mechanism::Sha512RsaPkcsPss(pss(MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64))
        }
        _ => Mechanism::Ecdsa,
    }
}

/// What the token is given to sign.
pub(super) fn input(scheme: SignatureScheme, message: &[u8]) -> Vec<u8> {
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => digest::digest(&SHA256, message).as_ref().to_vec(),
        SignatureScheme::ECDSA_NISTP384_SHA384 => digest::digest(&SHA384, message).as_ref().to_vec(),
        _ => message.to_vec(),
    }
}

/// The token's signature as TLS sends it.
pub(super) fn output(scheme: SignatureScheme, signature: Vec<u8>) -> Vec<u8> {
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 | SignatureScheme::ECDSA_NISTP384_SHA384 => ecdsa_der(&signature),
        _ => signature,
    }
}

fn verification(scheme: SignatureScheme) -> &'static dyn VerificationAlgorithm {
    match scheme {
        SignatureScheme::RSA_PKCS1_SHA256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        SignatureScheme::RSA_PKCS1_SHA384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        SignatureScheme::RSA_PKCS1_SHA512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        SignatureScheme::RSA_PSS_SHA256 => &signature::RSA_PSS_2048_8192_SHA256,
        SignatureScheme::RSA_PSS_SHA384 => &signature::RSA_PSS_2048_8192_SHA384,
        SignatureScheme::RSA_PSS_SHA512 => &signature::RSA_PSS_2048_8192_SHA512,
        SignatureScheme::ECDSA_NISTP384_SHA384 => &signature::ECDSA_P384_SHA384_ASN1,
        _ => &signature::ECDSA_P256_SHA256_ASN1,
    }
}

/// PKCS#11's r ‖ s, both of the same length, as RFC 3279's Ecdsa-Sig-Value.
fn ecdsa_der(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let integers = [integer(r), integer(s)].concat();
    // With P-384 the longest: 2 × (2 + 1 + 48) octets, below the 128 that need a longer form.
    [&[0x30, integers.len() as u8][..], &integers].concat()
}

/// The shortest DER INTEGER that isn't negative.
fn integer(big_endian: &[u8]) -> Vec<u8> {
    let zeros = big_endian.iter().take_while(|octet| **octet == 0).count();
    let digits = &big_endian[zeros.min(big_endian.len().saturating_sub(1))..];
    let sign = digits.first().is_none_or(|first| *first >= 0x80).then_some(0);
    let length = digits.len() + usize::from(sign.is_some());
    [0x02, length as u8].into_iter().chain(sign).chain(digits.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    };

    use super::*;

    #[test]
    fn integers_are_the_shortest_that_are_not_negative() {
        for (octets, der) in [
            (&[0x00, 0x00, 0x7f][..], &[0x02, 1, 0x7f][..]),
            (&[0x00, 0x80, 0x01], &[0x02, 3, 0x00, 0x80, 0x01]),
            (&[0x00, 0x00], &[0x02, 1, 0x00]),
            (&[], &[0x02, 1, 0x00]),
        ] {
            assert_eq!(integer(octets), der, "{octets:x?}");
        }
    }

    /// 600 signatures: each leading zero octet and each high bit comes up many times.
    #[test]
    fn fixed_length_signatures_verify_once_they_are_der() {
        for (algorithm, kind, scheme) in [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, Kind::P256, SignatureScheme::ECDSA_NISTP256_SHA256),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, Kind::P384, SignatureScheme::ECDSA_NISTP384_SHA384),
        ] {
            let key = EcdsaKeyPair::generate(algorithm).unwrap();
            let public_key = PublicKey { kind, octets: key.public_key().as_ref().to_vec() };
            for number in 0..300u16 {
                let message = number.to_be_bytes();
                let raw = key.sign(&SystemRandom::new(), &message).unwrap();
                let signature = output(scheme, raw.as_ref().to_vec());
                assert!(public_key.verifies(scheme, &message, &signature), "{:x?}", raw.as_ref());
                assert!(!public_key.verifies(scheme, b"another", &signature));
            }
        }
    }

    #[test]
    fn a_token_is_asked_only_for_what_it_has() {
        let key = |kind| PublicKey { kind, octets: Vec::new() };
        let some = [MechanismType::SHA256_RSA_PKCS, MechanismType::SHA384_RSA_PKCS_PSS, MechanismType::ECDSA];
        use SignatureScheme::*;
        let has = |mechanism| some.contains(&mechanism);
        assert_eq!(key(Kind::Rsa).schemes(has), [RSA_PSS_SHA384, RSA_PKCS1_SHA256]);
        assert_eq!(key(Kind::P256).schemes(has), [ECDSA_NISTP256_SHA256]);
        assert_eq!(key(Kind::P384).schemes(|_| false), []);
    }
}
