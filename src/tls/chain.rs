//! Judges whether a chain leads from a certificate to its root.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::Finding;
use super::certificate::unix_time;
use super::lint::{EXPIRY_WARNING, key_of};

/// Each doubt about body and chain, in their order. ACM: "each directly certifies the one preceding"; RFC 8446 §4.4.2 lets the root be left out.
pub(super) fn chain_order(chain: &[X509Certificate<'_>], now: UnixTime) -> Vec<Finding> {
    let leaf = &chain[0];
    let mut findings = Vec::new();
    if let ([_], Some(url)) = (chain, issuer_url(leaf)) {
        findings.push(Finding::warning(
            "certificate",
            format!("no chain is configured, though the certificate was issued by {}", leaf.issuer()),
            format!(
                "name the issuer's chain in certificate_chain, unless clients trust that issuer itself; it is at {url}"
            ),
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
        } else if !issuer.is_ca() {
            findings.push(Finding::warning(
                "certificate_chain",
                format!(
                    "certificate {place} of the chain ({}) is no certificate authority (basicConstraints): clients refuse it",
                    issuer.subject()
                ),
                "have the certificate issued by one that is",
            ));
        } else if let Some(when) = validity(issuer, now) {
            findings.push(Finding::warning(
                "certificate_chain",
                format!("certificate {place} of the chain ({}) {when}", issuer.subject()),
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

/// What an issuer's dates keep it from, now or soon.
fn validity(issuer: &X509Certificate<'_>, now: UnixTime) -> Option<String> {
    let validity = issuer.validity();
    let left = unix_time(validity.not_after).as_secs().checked_sub(now.as_secs());
    match left.map(Duration::from_secs) {
        None => Some(format!("ended on {}", validity.not_after)),
        Some(left) if left < EXPIRY_WARNING => Some(format!("ends on {}", validity.not_after)),
        _ => (now < unix_time(validity.not_before)).then(|| format!("isn't valid before {}", validity.not_before)),
    }
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

pub(super) fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, IsCa, date_time_ymd};

    use super::super::Severity;
    use super::super::testing::{Authority, NAMES, ecdsa, expect, findings};

    #[test]
    fn each_doubt_about_a_chain_is_one_warning() {
        let root = Authority::root("root");
        let intermediate = root.intermediate("intermediate");
        let namesake = root.intermediate("intermediate");
        let stranger = Authority::root("stranger").intermediate("other");
        let issued = intermediate.issue(NAMES);
        for (chain, words) in [
            (vec![&intermediate.pem, &root.pem], "the chain holds its root"),
            (vec![&namesake.pem], "didn't sign the one before it"),
            (vec![&stranger.pem], "isn't the issuer of the one before it"),
            (vec![&intermediate.pem, &intermediate.pem], "is there twice"),
        ] {
            let chain: Vec<&str> = chain.into_iter().map(String::as_str).collect();
            expect(&findings(&issued, &chain), Severity::Warning, "certificate_chain", words);
        }
        let found = findings(&issued, &[&issued.certificate, &intermediate.pem]);
        assert!(found[0].message.contains("is there twice"), "{found:?}");
    }

    /// The dates are judged on 2030-01-01.
    #[test]
    fn an_issuer_that_clients_refuse_is_one_warning() {
        let root = Authority::root("root");
        type Change = fn(&mut CertificateParams);
        let cases: [(Change, &str); 5] = [
            (|params| params.not_after = date_time_ymd(2029, 12, 29), "ended on Dec 29"),
            (|params| params.not_after = date_time_ymd(2030, 2, 10), "ends on Feb 10"),
            (|params| params.not_before = date_time_ymd(2031, 1, 1), "isn't valid before Jan  1"),
            (|params| params.is_ca = IsCa::ExplicitNoCa, "is no certificate authority"),
            (|params| params.is_ca = IsCa::NoCa, "is no certificate authority"),
        ];
        for (change, words) in cases {
            let intermediate = root.intermediate_with("intermediate", change);
            let found = findings(&intermediate.issue(NAMES), &[&intermediate.pem]);
            expect(&found, Severity::Warning, "certificate_chain", words);
        }
    }

    #[test]
    fn a_chain_that_could_be_fetched_and_isn_t_there_is_a_warning() {
        let issued = Authority::root("root").issue_with(NAMES, ecdsa(), |params| {
            params.custom_extensions = vec![authority_information("http://ca.example.com/ca.der")];
        });
        let found = findings(&issued, &[]);
        expect(&found, Severity::Warning, "certificate", "no chain is configured");
        assert!(found[0].help.contains("http://ca.example.com/ca.der"), "{found:?}");
    }

    /// An authority information access extension that says where the issuer's certificate is.
    fn authority_information(url: &str) -> rcgen::CustomExtension {
        let uri = [&[0x86, url.len() as u8], url.as_bytes()].concat();
        let method = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x02";
        let access = [&[0x30, (method.len() + uri.len()) as u8][..], method, &uri].concat();
        let all = [&[0x30, access.len() as u8][..], &access].concat();
        rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], all)
    }
}
