//! Judges certificates by ACM's import rules and by what LDAP clients refuse.
//!
//! An error is what no handshake could succeed with. All else is a warning: an expired certificate is served, since
//! whoever restarts the proxy at night needs those clients that don't check more than none at all.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::public_key::PublicKey;

use super::certificate::{CertificateInfo, common_name, names, unix_time};
use super::import::Import;
use super::{Finding, Severity};
use crate::config::CertificateFiles;

/// A warning is given from this long before a certificate's end.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(45 * DAY);

/// Reads the files of one certificate and reports everything that is wrong or soon will be, errors first.
pub fn lint(files: &CertificateFiles, now: UnixTime) -> Vec<Finding> {
    match Import::read(files) {
        Ok(import) => judge_files(&import, files, now),
        Err(findings) => findings,
    }
}

/// The findings about an import and about the files it came from, errors first.
pub(super) fn judge_files(import: &Import, files: &CertificateFiles, now: UnixTime) -> Vec<Finding> {
    let mut findings = judge(import, now);
    findings.extend(loose_mode("private_key", &files.private_key));
    findings.extend(
        files.private_key_passphrase_file.as_deref().and_then(|path| loose_mode("private_key_passphrase_file", path)),
    );
    findings.sort_by_key(|finding| finding.severity == Severity::Warning);
    findings
}

/// The findings about an import, from its bytes alone.
pub(super) fn judge(import: &Import, now: UnixTime) -> Vec<Finding> {
    let leaf = import.leaf();
    let chain = import.parsed();
    let mut findings = Vec::new();
    findings.extend(key_fits(import, &leaf));
    findings.extend(validity(&leaf, now));
    findings.extend(has_names(&leaf));
    findings.extend(purpose(&leaf));
    findings.extend(chain.iter().enumerate().filter_map(weak_signature));
    findings.extend(chain_order(&chain, now));
    findings
}

/// A warning when a served certificate has ended, or ends within [`EXPIRY_WARNING`].
pub(super) fn expiry(certificate: &CertificateInfo, now: UnixTime) -> Option<Finding> {
    ends(&certificate.subject, certificate.not_after, now)
}

/// A warning when someone outside the file's owner and group may read it, or someone but its owner may change it.
pub(super) fn loose_mode(key: &'static str, path: &Path) -> Option<Finding> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
        (mode & 0o027 != 0).then(|| {
            let shown = path.display();
            Finding::warning(
                key,
                format!("{shown} is a secret open to others (mode {mode:04o})"),
                format!("chmod 640 {shown} (Kubernetes: defaultMode: 0440)"),
            )
        })
    }
    #[cfg(not(unix))]
    {
        let _ = (key, path);
        None
    }
}

fn key_fits(import: &Import, leaf: &X509Certificate<'_>) -> Option<Finding> {
    if let Ok(PublicKey::RSA(rsa)) = leaf.public_key().parsed() {
        // The modulus may have a few leading zero bits; x509-parser counts octets.
        let bits = rsa.key_size();
        if bits < 2048 {
            let message = format!("the certificate's RSA key has {bits} bits, and TLS needs 2048");
            return Some(Finding::error("certificate", message, "make a new key, best of type ECDSA P-256, and have it certified"));
        }
    }
    let key = match any_supported_type(import.key.der()) {
        Ok(key) => key,
        Err(error) => {
            let help = "use RSA of 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519";
            return Some(Finding::error("private_key", format!("the private key can't be used: {error}"), help));
        }
    };
    let public = key.public_key()?;
    let certifies = |certificate: &X509Certificate<'_>| certificate.public_key().raw == public.as_ref();
    if certifies(leaf) {
        return None;
    }
    let position = import.parsed().iter().position(certifies);
    Some(match position {
        Some(index) => Finding::error(
            "certificate",
            format!("the private key belongs to certificate {} of the chain, not to the first", index + 1),
            "put the server's own certificate first, then each one's issuer",
        ),
        None => Finding::error(
            "private_key",
            format!("the private key doesn't match the certificate ({})", leaf.subject()),
            "these two must print the same: openssl x509 -noout -pubkey -in CERTIFICATE and openssl pkey -pubout -in KEY",
        ),
    })
}

fn validity(leaf: &X509Certificate<'_>, now: UnixTime) -> Option<Finding> {
    let validity = leaf.validity();
    let not_before = unix_time(validity.not_before);
    if now < not_before {
        return Some(Finding::warning(
            "certificate",
            format!("the certificate isn't valid before {}: clients refuse it until then", validity.not_before),
            "check this machine's clock; else wait, or have it issued again",
        ));
    }
    ends(&leaf.subject().to_string(), unix_time(validity.not_after), now)
}

fn ends(subject: &str, not_after: UnixTime, now: UnixTime) -> Option<Finding> {
    let help = "renew it and replace the files: they are picked up without a restart";
    let left = not_after.as_secs().saturating_sub(now.as_secs());
    if now > not_after {
        let days = (now.as_secs() - not_after.as_secs()) / DAY;
        let message = format!("the certificate ({subject}) ended {days} days ago: CLIENTS THAT CHECK REFUSE IT");
        Some(Finding::warning("certificate", message, help))
    } else if left < EXPIRY_WARNING.as_secs() {
        let message = format!("the certificate ({subject}) ends in {} days", left / DAY);
        Some(Finding::warning("certificate", message, help))
    } else {
        None
    }
}

/// RFC 9525 §6.3: clients look for names in the subject alternative name only.
fn has_names(leaf: &X509Certificate<'_>) -> Option<Finding> {
    if !names(leaf).is_empty() {
        return None;
    }
    let name = common_name(leaf).unwrap_or("ldap.example.com");
    Some(Finding::warning(
        "certificate",
        "the certificate has no subject alternative name, and most clients ignore the common name",
        format!(
            "have it issued with one, for a self-signed one: openssl req -x509 -newkey rsa:2048 -nodes -days 365 \
             -subj /CN={name} -addext subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE \
             -keyout private_key.pem -out certificate.pem"
        ),
    ))
}

fn purpose(leaf: &X509Certificate<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for extension in leaf.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(usage) if !usage.server_auth && !usage.any => {
                findings.push(Finding::warning(
                    "certificate",
                    "the certificate's extended key usage leaves out serverAuth: most clients refuse it",
                    "have it issued for TLS servers",
                ));
            }
            ParsedExtension::KeyUsage(usage) if !usage.digital_signature() => {
                findings.push(Finding::warning(
                    "certificate",
                    "the certificate's key usage leaves out digitalSignature: strict clients refuse it",
                    "have it issued with keyUsage = digitalSignature",
                ));
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                findings.push(Finding::warning(
                    "certificate",
                    "the certificate is marked as a certificate authority: strict clients refuse it for a server",
                    "have it issued with basicConstraints = CA:FALSE (openssl req -x509 … -addext basicConstraints=critical,CA:FALSE)",
                ));
            }
            _ => {}
        }
    }
    findings
}

/// Roots are trusted by themselves: their own signature doesn't count.
fn weak_signature((index, certificate): (usize, &X509Certificate<'_>)) -> Option<Finding> {
    const WEAK: [(&str, &str); 4] = [
        ("1.2.840.113549.1.1.4", "MD5"),
        ("1.2.840.113549.1.1.5", "SHA-1"),
        ("1.3.14.3.2.29", "SHA-1"),
        ("1.2.840.10045.4.1", "SHA-1"),
    ];
    let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
    let (_, hash) = WEAK.iter().find(|(oid, _)| *oid == algorithm)?;
    (index == 0 || !is_self_issued(certificate)).then(|| {
        Finding::warning(
            key_of(index),
            format!("{} is signed with {hash}: clients refuse it", certificate.subject()),
            "have it issued with SHA-256",
        )
    })
}

/// ACM: "each directly certifies the one preceding"; RFC 8446 §4.4.2 lets the root be left out.
fn chain_order(chain: &[X509Certificate<'_>], now: UnixTime) -> Vec<Finding> {
    let leaf = &chain[0];
    let mut findings = Vec::new();
    if let ([_], Some(url)) = (chain, issuer_url(leaf)) {
        findings.push(Finding::warning(
            "certificate",
            format!("no chain is configured, though the certificate was issued by {}", leaf.issuer()),
            format!("name the issuer's chain in certificate_chain, unless clients trust that issuer itself; it is at {url}"),
        ));
    }
    for (index, pair) in chain.windows(2).enumerate() {
        let (certified, issuer) = (&pair[0], &pair[1]);
        let place = index + 2;
        if chain[..=index].iter().any(|earlier| earlier.as_raw() == issuer.as_raw()) {
            findings.push(Finding::warning(
                "certificate_chain",
                format!("certificate {place} of the chain ({}) is there twice", issuer.subject()),
                "the chain begins with the issuer: leave out the certificate itself",
            ));
        } else if certified.issuer().as_raw() != issuer.subject().as_raw() {
            findings.push(Finding::warning(
                "certificate_chain",
                format!(
                    "certificate {place} of the chain ({}) isn't the issuer of the one before it, which is {}",
                    issuer.subject(),
                    certified.issuer()
                ),
                "put them in order, each one certifying the one before",
            ));
        } else if certified.verify_signature(Some(issuer.public_key())) == Err(X509Error::SignatureVerificationError) {
            findings.push(Finding::warning(
                "certificate_chain",
                format!("certificate {place} of the chain ({}) didn't sign the one before it", issuer.subject()),
                "the issuer has another key of the same name: ask it for the chain that belongs to this certificate",
            ));
        } else if now > unix_time(issuer.validity().not_after) {
            findings.push(Finding::warning(
                "certificate_chain",
                format!("certificate {place} of the chain ({}) ended on {}", issuer.subject(), issuer.validity().not_after),
                "get the issuer's current chain",
            ));
        }
    }
    if let [_, .., last] = chain
        && is_self_issued(last)
        && last.as_raw() != leaf.as_raw()
    {
        findings.push(Finding::warning(
            key_of(chain.len() - 1),
            format!("the chain holds its root ({}), which clients must have already", last.subject()),
            "leave it out: it only makes handshakes larger",
        ));
    }
    findings
}

/// Where the issuer's certificate can be had, if the issuer is no root known to everyone.
fn issuer_url(certificate: &X509Certificate<'_>) -> Option<String> {
    const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => access.accessdescs.iter().find_map(|description| {
            match (&description.access_location, description.access_method.to_id_string() == CA_ISSUERS) {
                (GeneralName::URI(url), true) => Some((*url).to_owned()),
                _ => None,
            }
        }),
        _ => None,
    })
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// The key a certificate of the chain most likely came from.
fn key_of(index: usize) -> &'static str {
    if index == 0 { "certificate" } else { "certificate_chain" }
}

const DAY: u64 = 24 * 60 * 60;
