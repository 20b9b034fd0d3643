//! `[tls]` and `[listener.tls]`.

use crate::config::kind::{Choice, File, KeySource, number};
use crate::config::settings::{
    CertificateFiles, ClientCertificates, PrivateKeySource, SessionTickets, Tls, TlsPolicy, TlsVersion,
};
use crate::config::table::Table;

pub(super) fn tls(t: &mut Table<'_, '_, '_>) -> Option<Tls> {
    let default_certificate = certificate(t);
    let additional = t.tables("additional", "More certificates, chosen by the name the client asks for.", certificate);
    let min_version = t.key("min_version", "The oldest TLS version.").default(Choice(VERSIONS), TlsVersion::default());
    let policy = t
        .key("policy", "modern: TLS 1.3; intermediate: also 1.2 with forward secrecy; fips: FIPS 140's algorithms.")
        .default(Choice(POLICIES), TlsPolicy::default());
    let session_tickets = t
        .key("session_tickets", "Resumption; Samba's own client hangs on TLS 1.3 tickets, hence not \"all\".")
        .default(Choice(SESSION_TICKETS), SessionTickets::default());
    let ticket_key_file = t.key("ticket_key_file", "Ticket keys shared by several copies.").optional(File);
    let client_certificates = client_certificates(t);

    if policy == TlsPolicy::Modern && t.has("min_version") && min_version < TlsVersion::V1_3 {
        t.warn("min_version", "policy \"modern\" is TLS 1.3 only", "leave `min_version` out, or choose another policy");
    }
    fits_build(t, policy);
    if session_tickets == SessionTickets::Off {
        t.no_effect("ticket_key_file", "`session_tickets`");
    }
    Some(Tls {
        default_certificate: default_certificate?,
        additional: additional.into_iter().collect::<Option<_>>()?,
        min_version: if policy == TlsPolicy::Modern { TlsVersion::V1_3 } else { min_version },
        policy,
        session_tickets,
        ticket_key_file,
        client_certificates: client_certificates?,
    })
}

/// FIPS 140 is about the module as much as about the algorithms.
fn fits_build(t: &mut Table<'_, '_, '_>, policy: TlsPolicy) {
    match (policy, cfg!(feature = "fips")) {
        (TlsPolicy::Fips, false) => {
            let help = "make one with packaging/fips (docs/fips.md), or leave `policy` out";
            t.error("policy", "this build's crypto module is not AWS-LC FIPS", help);
        }
        (TlsPolicy::Modern | TlsPolicy::Intermediate, true) => {
            let message = "this is a FIPS build, but algorithms that FIPS 140 doesn't approve are offered too";
            t.warn("policy", message, "policy = \"fips\"");
        }
        _ => {}
    }
}

fn certificate(t: &mut Table<'_, '_, '_>) -> Option<CertificateFiles> {
    let certificate = t.key("certificate", "PEM: the certificate, or it and its chain.").required(File);
    let private_key = t.key("private_key", "PEM: its private key; or a pkcs11: URI, docs/hsm.md.").required(KeySource);
    let certificate_chain = t.key("certificate_chain", "PEM: the chain, where it is a file of its own.").optional(File);
    let private_key_passphrase_file = t
        .key("private_key_passphrase_file", "What an encrypted private key opens with, or the PIN of its token.")
        .optional(File);
    let private_key = token(t, private_key);
    if certificate_chain.is_some() && certificate_chain.as_deref() == private_key.as_ref().and_then(|key| key.file()) {
        t.error("certificate_chain", "the same file as `private_key`", "");
    }
    let (certificate, private_key) = (certificate?, private_key?);
    let private_key_passphrase_file = match &private_key {
        PrivateKeySource::Token(key) => key.pin_file.clone().or(private_key_passphrase_file),
        PrivateKeySource::File(_) => private_key_passphrase_file,
    };
    Some(CertificateFiles { certificate, private_key, certificate_chain, private_key_passphrase_file })
}

/// Adds what a key in a token needs beside its URI.
fn token(t: &mut Table<'_, '_, '_>, key: Option<PrivateKeySource>) -> Option<PrivateKeySource> {
    let module = t.key("pkcs11_module", "The PKCS#11 library that knows the token.").optional(File);
    let sessions = t.key("pkcs11_sessions", "Signatures the token makes at a time.").default(number(1..=256), 8);
    let Some(PrivateKeySource::Token(mut key)) = key else {
        t.no_effect("pkcs11_module", "a pkcs11: URI in `private_key`");
        t.no_effect("pkcs11_sessions", "a pkcs11: URI in `private_key`");
        return key;
    };
    if !cfg!(feature = "pkcs11") {
        let help = "build it with: cargo build --release --features pkcs11";
        t.error("private_key", "this build of ldaps-proxy can't use keys in tokens", help);
    } else if key.module.is_none() && module.is_none() {
        t.missing("pkcs11_module", "the library that knows the token of `private_key`");
        return None;
    }
    key.module = key.module.or(module);
    key.sessions = sessions;
    Some(PrivateKeySource::Token(key))
}

fn client_certificates(t: &mut Table<'_, '_, '_>) -> Option<ClientCertificates> {
    /// The words of the key, before the files that go with them are known.
    #[derive(Clone, Copy, PartialEq)]
    enum Mode {
        Off,
        Optional,
        Required,
    }
    const MODES: &[(&str, Mode)] = &[("off", Mode::Off), ("optional", Mode::Optional), ("required", Mode::Required)];

    let mode = t.key("client_certificates", "Whether clients show a certificate.").default(Choice(MODES), Mode::Off);
    let ca = t.key("client_ca", "PEM: who signs client certificates.").optional(File);
    let crl = t.key("client_crl", "PEM: client certificates that are revoked.").optional(File);
    if mode == Mode::Off {
        t.no_effect("client_ca", "`client_certificates`");
        t.no_effect("client_crl", "`client_certificates`");
        return Some(ClientCertificates::Off);
    }
    if !t.has("client_ca") {
        t.missing("client_ca", "`client_certificates` needs the authority that signs them");
    }
    Some(match mode {
        Mode::Required => ClientCertificates::Required { ca: ca?, crl },
        _ => ClientCertificates::Optional { ca: ca?, crl },
    })
}

const VERSIONS: &[(&str, TlsVersion)] = &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

const POLICIES: &[(&str, TlsPolicy)] =
    &[("modern", TlsPolicy::Modern), ("intermediate", TlsPolicy::Intermediate), ("fips", TlsPolicy::Fips)];

const SESSION_TICKETS: &[(&str, SessionTickets)] =
    &[("all", SessionTickets::All), ("tls12", SessionTickets::Tls12), ("off", SessionTickets::Off)];
