//! `[tls]` and `[listener.tls]`.

use crate::config::kind::{Choice, File};
use crate::config::settings::{CertificateFiles, ClientCertificates, SessionTickets, Tls, TlsPolicy, TlsVersion};
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

fn certificate(t: &mut Table<'_, '_, '_>) -> Option<CertificateFiles> {
    let certificate = t.key("certificate", "PEM: the certificate, or it and its chain.").required(File);
    let private_key = t.key("private_key", "PEM: its private key.").required(File);
    let certificate_chain = t.key("certificate_chain", "PEM: the chain, where it is a file of its own.").optional(File);
    let private_key_passphrase_file =
        t.key("private_key_passphrase_file", "What an encrypted private key opens with.").optional(File);
    if certificate_chain.is_some() && certificate_chain == private_key {
        t.error("certificate_chain", "the same file as `private_key`", "");
    }
    let (certificate, private_key) = (certificate?, private_key?);
    Some(CertificateFiles { certificate, private_key, certificate_chain, private_key_passphrase_file })
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
