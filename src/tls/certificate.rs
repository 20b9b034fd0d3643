//! What a certificate says of itself, for the metrics, the status page and the rules of [`super::lint`].

use aws_lc_rs::digest;
use rustls_pki_types::UnixTime;
use std::net::IpAddr;
use std::time::Duration;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;

/// A certificate as served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The configured path of its file: unique, and the same after a renewal.
    pub name: String,
    /// The subject's distinguished name, most specific part last, as OpenSSL prints it.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// DNS names and IP addresses it is for.
    pub sans: Vec<String>,
    /// Its last second.
    pub not_after: UnixTime,
    /// Such as "RSA 2048" or "ECDSA P-256".
    pub key_type: String,
    /// SHA-256 of the certificate, in lower-case hexadecimal digits without separators.
    pub fingerprint: String,
}

impl CertificateInfo {
    pub(super) fn new(name: String, certificate: &X509Certificate<'_>) -> Self {
        Self {
            name,
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            sans: names(certificate),
            not_after: unix_time(certificate.validity().not_after),
            key_type: key_type(certificate),
            fingerprint: hex(digest::digest(&digest::SHA256, certificate.as_raw()).as_ref()),
        }
    }
}

/// What was put in the place of certificates that go on under their names: a line each.
pub fn replacements(before: &[CertificateInfo], now: &[CertificateInfo]) -> Vec<String> {
    let is_another =
        |one: &&CertificateInfo| before.iter().any(|old| old.name == one.name && old.fingerprint != one.fingerprint);
    let mut lines: Vec<_> = (now.iter().filter(is_another))
        .map(|one| format!("certificate {:?}: replaced, now {} until {}", one.name, one.subject, date(one.not_after)))
        .collect();
    lines.dedup();
    lines
}

/// The day in UTC, such as 2027-03-31.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_or_else(|_| "the end of time".into(), |time| time.date().to_string())
}

/// The DNS names and IP addresses in the subject alternative name; nothing from the common name.
pub(super) fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(octets) => ip_address(octets).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

/// The first common name of the subject.
pub(super) fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok())
}

/// Algorithm and size of the certified key.
pub(super) fn key_type(certificate: &X509Certificate<'_>) -> String {
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        // Octets of an uncompressed point: 0x04, x, y. x509-parser rounds P-521 up to 528.
        Ok(PublicKey::EC(point)) => format!("ECDSA P-{}", if point.key_size() > 384 { 521 } else { point.key_size() }),
        _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".into(),
        _ => key.algorithm.algorithm.to_id_string(),
    }
}

/// A certificate's time; times before 1970 are 1970.
pub(super) fn unix_time(time: ASN1Time) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.timestamp().try_into().unwrap_or(0)))
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ip_address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}
