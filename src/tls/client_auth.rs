//! Verifies client certificates against `client_ca` and `client_crl`.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::UnixTime;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::Finding;
use super::certificate::unix_time;
use super::pem::PemFile;
use crate::config::ClientCertificates;

/// The verifier, with what is doubtful about its files.
///
/// With a revocation list, a client certificate whose issuer has no list there is refused; certificates between it and
/// the root aren't looked up. A list past its next update is still used: an old list beats a locked door.
pub(super) fn verifier(
    settings: &ClientCertificates,
    provider: &Arc<CryptoProvider>,
    now: UnixTime,
) -> Result<(Arc<dyn ClientCertVerifier>, Vec<Finding>), Finding> {
    let (ca, crl, optional) = match settings {
        ClientCertificates::Off => return Ok((WebPkiClientVerifier::no_client_auth(), Vec::new())),
        ClientCertificates::Optional { ca, crl } => (ca, crl, true),
        ClientCertificates::Required { ca, crl } => (ca, crl, false),
    };
    let roots = roots(&PemFile::read("client_ca", ca)?)?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let mut findings = Vec::new();
    if let Some(crl) = crl {
        let file = PemFile::read("client_crl", crl)?;
        let lists = file.revocation_lists()?;
        for list in &lists {
            let outdated = CertificateRevocationList::from_der(list)
                .ok()
                .and_then(|(_, list)| list.next_update().map(|next| (next, list.issuer().to_string())))
                .filter(|(next, _)| now > unix_time(*next));
            if let Some((next, issuer)) = outdated {
                findings.push(Finding::warning(
                    "client_crl",
                    format!("the revocation list of {issuer} was to be replaced on {next}; it is used as it is"),
                    "fetch the current list and replace the file: it is picked up without a restart",
                ));
            }
        }
        builder = builder.with_crls(lists).only_check_end_entity_revocation();
    }
    if optional {
        builder = builder.allow_unauthenticated();
    }
    let verifier = builder.build().map_err(|error| {
        Finding::error("client_crl", format!("the revocation list can't be used: {error}"), "fetch it again, as PEM")
    })?;
    Ok((verifier, findings))
}

/// Trust anchors from a file, each of which must be usable.
pub(super) fn roots(file: &PemFile<'_>) -> Result<RootCertStore, Finding> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in file.certificates()?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            file.error(
                format!("certificate {} can't be a trust anchor: {error}", index + 1),
                "use X.509 version 3 certificates of certificate authorities",
            )
        })?;
    }
    Ok(roots)
}
