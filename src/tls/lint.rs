//! Judges certificates by ACM's import rules and by what LDAP clients refuse.
//!
//! An error is what no handshake could succeed with. All else is a warning: an expired certificate is served, since
//! whoever restarts the proxy at night needs those clients that don't check more than none at all.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::public_key::PublicKey;

use super::certificate::{CertificateInfo, common_name, names, unix_time};
use super::chain::{chain_order, is_self_issued};
use super::import::{Import, Key};
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
    findings.extend(files.private_key.file().and_then(|path| loose_mode("private_key", path)));
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
            return Some(Finding::error(
                "certificate",
                message,
                "make a new key, best of type ECDSA P-256, and have it certified",
            ));
        }
    }
    // A token isn't asked here: it proves that its key fits when it is opened, by a signature.
    let Key::Local(key) = &import.key else { return None };
    let key = match any_supported_type(key.der()) {
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
    let kind = if name.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
    Some(Finding::warning(
        "certificate",
        "the certificate has no subject alternative name, and most clients ignore the common name",
        format!(
            "have it issued with one, for a self-signed one: openssl req -x509 -newkey rsa:2048 -nodes -days 365 \
             -subj /CN={name} -addext subjectAltName={kind}:{name} -addext basicConstraints=critical,CA:FALSE \
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

/// The key a certificate of the chain most likely came from.
pub(super) fn key_of(index: usize) -> &'static str {
    if index == 0 { "certificate" } else { "certificate_chain" }
}

const DAY: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, PKCS_RSA_SHA256,
        RsaKeySize, date_time_ymd,
    };

    use super::super::testing::{Authority, Issued, NAMES, ecdsa, expect, findings, now, rsa, server_params};
    use super::*;

    #[test]
    fn good_imports_have_no_findings() {
        let root = Authority::root("root");
        let intermediate = root.intermediate("intermediate");
        for key in [ecdsa(), rsa(), KeyPair::generate_for(&PKCS_ED25519).unwrap()] {
            let issued = intermediate.issue_with(NAMES, key, |_| {});
            assert_eq!(findings(&issued, &[&intermediate.pem]), []);
            let bundle = Issued { certificate: format!("{}{}", issued.certificate, intermediate.pem), key: issued.key };
            assert_eq!(findings(&bundle, &[]), []);
            let all = Issued { certificate: format!("{}{}", bundle.key, bundle.certificate), key: bundle.key };
            assert_eq!(findings(&all, &[]), []);
        }
        let key = ecdsa();
        let certificate = server_params(NAMES).self_signed(&key).unwrap().pem();
        assert_eq!(findings(&Issued { certificate, key: key.serialize_pem() }, &[]), []);
    }

    #[test]
    fn each_doubt_about_a_certificate_is_one_warning() {
        let root = Authority::root("root");
        type Change = fn(&mut CertificateParams);
        let cases: [(Change, &str); 8] = [
            (|params| params.not_after = date_time_ymd(2029, 12, 29), "ended 3 days ago"),
            (|params| params.not_after = date_time_ymd(2030, 2, 10), "ends in 40 days"),
            (|params| params.not_before = date_time_ymd(2031, 1, 1), "isn't valid before"),
            (|params| params.subject_alt_names.clear(), "no subject alternative name"),
            (|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], "leaves out serverAuth"),
            (|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment], "leaves out digitalSignature"),
            (
                |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
                "marked as a certificate authority",
            ),
            (|params| params.not_before = date_time_ymd(2030, 1, 2), "isn't valid before"),
        ];
        for (change, words) in cases {
            let issued = root.issue_with(NAMES, ecdsa(), change);
            expect(&findings(&issued, &[]), Severity::Warning, "certificate", words);
        }
        let fine: [Change; 2] = [
            |params| params.not_after = date_time_ymd(2030, 2, 16),
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
        ];
        for change in fine {
            assert_eq!(findings(&root.issue_with(NAMES, ecdsa(), change), &[]), []);
        }
    }

    #[test]
    fn the_fix_for_a_certificate_without_names_names_it() {
        let root = Authority::root("root");
        for (name, alternative) in [
            ("ldap.example.com", "DNS:ldap.example.com"),
            ("10.0.0.1", "IP:10.0.0.1"),
            ("2001:db8::1", "IP:2001:db8::1"),
        ] {
            let issued = root.issue_with(&[name], ecdsa(), |params| params.subject_alt_names.clear());
            let help = &findings(&issued, &[])[0].help;
            assert!(help.contains(&format!("-addext subjectAltName={alternative} ")), "{help}");
        }
    }

    #[test]
    fn a_key_that_doesn_t_fit_is_an_error() {
        let root = Authority::root("root");
        let (one, other) = (root.issue(NAMES), root.issue(NAMES));
        let mixed = Issued { certificate: one.certificate.clone(), key: other.key };
        expect(&findings(&mixed, &[]), Severity::Error, "private_key", "doesn't match the certificate");
        let intermediate = root.intermediate("intermediate");
        let issued = intermediate.issue(NAMES);
        let reversed = Issued { certificate: format!("{}{}", intermediate.pem, issued.certificate), key: issued.key };
        let found = findings(&reversed, &[]);
        assert!(found[0].is_error() && found[0].message.contains("belongs to certificate 2"), "{found:?}");
    }

    #[test]
    fn unreadable_files_are_each_reported() {
        let dir = tempfile::tempdir().unwrap();
        let missing = |name: &str| dir.path().join(name);
        let files = CertificateFiles {
            certificate: missing("a"),
            private_key: missing("b").into(),
            certificate_chain: Some(missing("c")),
            private_key_passphrase_file: None,
        };
        let keys: Vec<_> = lint(&files, now()).into_iter().map(|finding| finding.key).collect();
        assert_eq!(keys, ["certificate", "certificate_chain", "private_key"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_open_to_others_is_a_warning() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let files = Authority::root("root").issue(NAMES).write(dir.path(), "server");
        for (mode, loose) in [(0o400, false), (0o640, false), (0o644, true), (0o660, true), (0o604, true)] {
            std::fs::set_permissions(files.private_key.file().unwrap(), std::fs::Permissions::from_mode(mode)).unwrap();
            let found = lint(&files, now());
            assert_eq!(!found.is_empty(), loose, "{mode:o} {found:?}");
        }
    }

    #[test]
    fn errors_come_first() {
        let root = Authority::root("root");
        let (one, other) =
            (root.issue_with(NAMES, ecdsa(), |params| params.subject_alt_names.clear()), root.issue(NAMES));
        let found = findings(&Issued { certificate: one.certificate, key: other.key }, &[]);
        assert_eq!(found.iter().map(Finding::is_error).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn key_types_are_told() {
        use super::super::certificate::{key_type, names};
        use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512};
        let root = Authority::root("root");
        for (key, expected) in [
            (ecdsa(), "ECDSA P-256"),
            (KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), "ECDSA P-384"),
            (KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap(), "ECDSA P-521"),
            (KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072).unwrap(), "RSA 3072"),
            (KeyPair::generate_for(&PKCS_ED25519).unwrap(), "Ed25519"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let import = Import::read(&root.issue_with(NAMES, key, |_| {}).write(dir.path(), "server")).unwrap();
            assert_eq!(key_type(&import.leaf()), expected);
            assert_eq!(names(&import.leaf()), NAMES);
        }
    }
}
