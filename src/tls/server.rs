//! The server side: a `[tls]` table turned into what handshakes need, and swapped as a whole when its files change.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ProducesTickets};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, ServerConnection};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, LazyConfigAcceptor, StartHandshake};

use super::certificate::{CertificateInfo, names};
use super::import::Import;
use super::lint::{expiry, judge_files, loose_mode};
use super::pem::PemFile;
use super::resolver::{Certificates, Entry};
use super::tickets::TicketKeys;
use super::{Finding, client_auth, policy};
use crate::config::{CertificateFiles, ClientCertificates, SessionTickets, Tls, TlsPolicy};

/// What a listener offers its clients; certificates and settings can be swapped while it serves.
///
/// Handshakes under way, and sessions, go on with what they began with.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<State>,
    /// Tickets under keys of this process alone, kept across swaps; rotated every six hours, accepted for twelve.
    own_tickets: Arc<dyn ProducesTickets>,
}

/// A [`ServerTls`] and what is doubtful about its files.
#[derive(Debug)]
pub struct Loaded {
    /// Ready to serve.
    pub server: ServerTls,
    /// Warnings only.
    pub findings: Vec<Finding>,
}

impl ServerTls {
    /// Reads everything the table names.
    ///
    /// # Errors
    /// All findings, warnings too, if at least one is an error.
    pub fn load(settings: &Tls, now: UnixTime) -> Result<Loaded, Vec<Finding>> {
        let own_tickets = Ticketer::new().map_err(|error| {
            vec![Finding::error(
                "session_tickets",
                format!("no ticket keys could be made: {error}"),
                "check the machine's random source",
            )]
        })?;
        let (state, findings) = State::load(settings, &own_tickets, now)?;
        Ok(Loaded { server: Self { current: ArcSwap::from_pointee(state), own_tickets }, findings })
    }

    /// Reads the files of the present settings again and swaps them in together; returns the warnings.
    ///
    /// # Errors
    /// As [`Self::load`]; then nothing has changed.
    pub fn reload(&self, now: UnixTime) -> Result<Vec<Finding>, Vec<Finding>> {
        let settings = self.current.load().settings.clone();
        self.replace(&settings, now)
    }

    /// The same with new settings.
    ///
    /// # Errors
    /// As [`Self::load`]; then nothing has changed.
    pub fn replace(&self, settings: &Tls, now: UnixTime) -> Result<Vec<Finding>, Vec<Finding>> {
        let (state, findings) = State::load(settings, &self.own_tickets, now)?;
        self.current.store(Arc::new(state));
        Ok(findings)
    }

    /// Makes a handshake with what is current. Put a timeout around it: it has none.
    ///
    /// # Errors
    /// [`super::HandshakeFailure`] explains them.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> io::Result<TlsStream<IO>> {
        self.greeted(io).await?.answer(self).await
    }

    /// Waits for the client's hello, which costs next to nothing. Put a timeout around it: it has none.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn greeted<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> io::Result<Greeted<IO>> {
        LazyConfigAcceptor::new(Acceptor::default(), io).await.map(Greeted)
    }

    /// The current configuration, for those who drive rustls themselves; with `session_tickets = "all"` it sends tickets
    /// to clients that [`Self::accept`] spares.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// The certificates now served, the default one first.
    pub fn certificates(&self) -> Vec<CertificateInfo> {
        self.current.load().certificates.clone()
    }

    /// A warning for each certificate now served that has ended or soon will; for a daily look.
    pub fn expiring(&self, now: UnixTime) -> Vec<Finding> {
        let state = self.current.load();
        let about = |(index, certificate)| Some(placed(index, expiry(certificate, now)?));
        state.certificates.iter().enumerate().filter_map(about).collect()
    }

    /// Every file whose change calls for [`Self::reload`].
    pub fn files(&self) -> Vec<PathBuf> {
        files(&self.current.load().settings)
    }
}

/// A client that has said hello.
pub struct Greeted<IO>(StartHandshake<IO>);

impl<IO: AsyncRead + AsyncWrite + Unpin> Greeted<IO> {
    /// Answers with what `tls` has now. The call does nearly all of the handshake's work; the future waits for the client to
    /// end it. Put a timeout around that: it has none.
    pub fn answer(self, tls: &ServerTls) -> Accept<IO> {
        let state = tls.current.load();
        let config = match &state.without_tickets {
            Some(without_tickets) if is_gnutls(&self.0.client_hello()) => without_tickets,
            _ => &state.config,
        };
        let limit = |connection: &mut ServerConnection| connection.set_buffer_limit(Some(BUFFER_LIMIT));
        self.0.into_stream_with(Arc::clone(config), limit)
    }
}

/// One consistent reading of the settings and their files.
#[derive(Debug)]
struct State {
    settings: Tls,
    config: Arc<ServerConfig>,
    /// The same without TLS 1.3 tickets, for clients that can't take them; present if the others get some.
    without_tickets: Option<Arc<ServerConfig>>,
    certificates: Vec<CertificateInfo>,
}

impl State {
    fn load(
        settings: &Tls,
        own_tickets: &Arc<dyn ProducesTickets>,
        now: UnixTime,
    ) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        let provider = policy::provider(settings.policy);
        let mut findings = Vec::new();
        let mut certificates = Vec::new();
        let mut entries = Vec::new();
        for (index, files) in certificate_files(settings).enumerate() {
            let (loaded, found) = load_certificate(files, now);
            findings.extend(found.into_iter().map(|finding| placed(index, finding)));
            if let Some((info, entry)) = loaded {
                certificates.push(info);
                entries.push(entry);
            }
        }
        let verifier = client_auth::verifier(&settings.client_certificates, &provider, now)
            .map(|(verifier, doubts)| {
                findings.extend(doubts);
                verifier
            })
            .map_err(|error| findings.push(error));
        let tickets = tickets(settings, own_tickets, &mut findings);
        if settings.policy == TlsPolicy::Fips && !provider.fips() {
            findings.push(Finding::warning(
                "policy",
                "only approved algorithms are used, but this build's crypto module isn't the validated one",
                "where the validation itself counts, build with rustls's fips feature",
            ));
        }
        let (Ok(verifier), false) = (verifier, findings.iter().any(Finding::is_error)) else {
            return Err(findings);
        };
        let mut entries = entries.into_iter();
        let default = entries.next().expect("without an error each certificate has an entry");
        let certificates_by_name = Arc::new(Certificates::new(default, entries));
        let config = server_config(settings, provider, verifier, certificates_by_name, tickets);
        let without_tickets = (config.send_tls13_tickets > 0).then(|| {
            let mut config = config.clone();
            config.send_tls13_tickets = 0;
            Arc::new(config)
        });
        let settings = settings.clone();
        Ok((Self { settings, config: Arc::new(config), without_tickets, certificates }, findings))
    }
}

/// Whether the client is built on GnuTLS, of which Samba's client library is and hangs on a TLS 1.3 ticket; docs/tls.md
/// has the cause. Of the common libraries GnuTLS alone offers AES-CCM unasked; one that is told to loses resumption only.
fn is_gnutls(hello: &ClientHello<'_>) -> bool {
    hello.cipher_suites().contains(&CipherSuite::TLS13_AES_128_CCM_SHA256)
}

fn server_config(
    settings: &Tls,
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Arc<Certificates>,
    tickets: Option<Arc<dyn ProducesTickets>>,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(policy::versions(settings.policy, settings.min_version))
        .expect("every policy has suites for its versions, which a test checks")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates);
    config.ignore_client_order = true;
    // FIPS 140-3 IG D.Q: the TLS 1.2 key derivation is approved with the extended master secret only.
    config.require_ems = settings.policy == TlsPolicy::Fips;
    // Stateless tickets are the only resumption: they need no memory here and work across copies.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if let Some(ticketer) = tickets {
        config.ticketer = ticketer;
        // One is enough: LDAP clients open few connections at once. Two cost 4 % more CPU per connection.
        config.send_tls13_tickets = usize::from(settings.session_tickets == SessionTickets::All);
    }
    // Binds can be replayed, so early data stays off. LDAP has no ALPN name, and a mismatch would be fatal.
    debug_assert!(config.max_early_data_size == 0 && config.alpn_protocols.is_empty());
    config
}

/// A certificate ready to serve, if none of its findings is an error.
fn load_certificate(files: &CertificateFiles, now: UnixTime) -> (Option<(CertificateInfo, Entry)>, Vec<Finding>) {
    let import = match Import::read(files) {
        Ok(import) => import,
        Err(findings) => return (None, findings),
    };
    let findings = judge_files(&import, files, now);
    if findings.iter().any(Finding::is_error) {
        return (None, findings);
    }
    let leaf = import.leaf();
    let info = CertificateInfo::new(files.certificate.display().to_string(), &leaf);
    let names = names(&leaf);
    let key = any_supported_type(import.key.der()).expect("a key of an unsupported type is an error finding");
    let key = Arc::new(CertifiedKey::new(import.certificates, key));
    (Some((info, Entry { key, names })), findings)
}

/// The ticketer, if clients may resume at all.
///
/// Not with client certificates: a resumed handshake shows none, so one revoked or from a removed CA would pass.
fn tickets(
    settings: &Tls,
    own_tickets: &Arc<dyn ProducesTickets>,
    findings: &mut Vec<Finding>,
) -> Option<Arc<dyn ProducesTickets>> {
    let file = settings.ticket_key_file.as_deref();
    let off = match (&settings.client_certificates, settings.session_tickets) {
        (_, SessionTickets::Off) => Some("session_tickets is \"off\""),
        (ClientCertificates::Off, _) => None,
        _ => Some("client_certificates are asked for, which every handshake must check anew"),
    };
    if let Some(reason) = off {
        if file.is_some() {
            let message = format!("no session is resumed, since {reason}");
            findings.push(Finding::warning("ticket_key_file", message, "remove this key"));
        }
        return None;
    }
    let Some(path) = file else {
        return Some(Arc::clone(own_tickets));
    };
    findings.extend(loose_mode("ticket_key_file", path));
    match PemFile::read("ticket_key_file", path).and_then(|file| TicketKeys::parse(&file)) {
        Ok(keys) => Some(Arc::new(keys)),
        Err(error) => {
            findings.push(error);
            None
        }
    }
}

fn certificate_files(settings: &Tls) -> impl Iterator<Item = &CertificateFiles> {
    std::iter::once(&settings.default_certificate).chain(&settings.additional)
}

pub(super) fn files(settings: &Tls) -> Vec<PathBuf> {
    let (ca, crl) = match &settings.client_certificates {
        ClientCertificates::Off => (None, None),
        ClientCertificates::Optional { ca, crl } | ClientCertificates::Required { ca, crl } => (Some(ca), crl.as_ref()),
    };
    let of_certificate = |files: &CertificateFiles| {
        let CertificateFiles { certificate, private_key, certificate_chain, private_key_passphrase_file } =
            files.clone();
        [Some(certificate), Some(private_key), certificate_chain, private_key_passphrase_file]
    };
    let others = [ca, crl, settings.ticket_key_file.as_ref()].map(|path| path.cloned());
    certificate_files(settings).flat_map(of_certificate).chain(others).flatten().collect()
}

/// A finding about the certificate at `index`, the default one being 0.
fn placed(index: usize, finding: Finding) -> Finding {
    Finding { additional: index.checked_sub(1), ..finding }
}

/// Bytes of plaintext, and of records, that may wait in a connection for a slow client, each; one full record and what
/// is read from a backend at a time fit.
const BUFFER_LIMIT: usize = 36 * 1024;
