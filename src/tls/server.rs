//! The server side: a `[tls]` table turned into what handshakes need, and swapped as a whole when its files change.

use std::future::{poll_fn, ready};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, NoServerSessionStorage, ProducesTickets};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig};
use rustls_pki_types::UnixTime;
use tokio::io::AsyncWrite;
use zeroize::Zeroizing;

use super::certificate::{CertificateInfo, names};
use super::handshake::Handshake;
use super::hello::Hello;
use super::import::{Import, Key, parsed};
use super::lint::{expiry, judge_files, loose_mode};
use super::pem::PemFile;
use super::resolver::{self, Certificates, Entry};
use super::stream::ServerStream;
use super::tickets::TicketKeys;
use super::{Finding, client_auth, pkcs11, policy};
use crate::buffer::{Inbox, Source};
use crate::config::{CertificateFiles, ClientCertificates, PrivateKeySource, SessionTickets, Tls, TlsPolicy};
use crate::metrics::Metrics;

/// What a listener offers its clients; certificates can be swapped while it serves.
///
/// Handshakes under way, and sessions, go on with what they began with.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<State>,
    /// Tickets under keys of this process alone, kept across swaps; rotated every six hours, accepted for twelve.
    own_tickets: Arc<dyn ProducesTickets>,
    measured: pkcs11::Measured,
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
        Self::with(settings, own_tickets, now)
    }

    /// One with the same settings, from their files as they are now; it resumes the sessions that this one began.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn renewed(&self, now: UnixTime) -> Result<Loaded, Vec<Finding>> {
        Self::with(&self.current.load().settings, Arc::clone(&self.own_tickets), now)
    }

    fn with(settings: &Tls, own_tickets: Arc<dyn ProducesTickets>, now: UnixTime) -> Result<Loaded, Vec<Finding>> {
        let measured = pkcs11::Measured::default();
        let (state, findings) = State::load(settings, &own_tickets, &measured, now)?;
        Ok(Loaded { server: Self { current: ArcSwap::from_pointee(state), own_tickets, measured }, findings })
    }

    /// Reads the files of the present settings again and swaps them in together; returns the warnings.
    ///
    /// # Errors
    /// As [`Self::load`]; then nothing has changed.
    pub fn reload(&self, now: UnixTime) -> Result<Vec<Finding>, Vec<Finding>> {
        let (state, findings) = State::load(&self.current.load().settings, &self.own_tickets, &self.measured, now)?;
        state.prove_tokens()?;
        self.current.store(Arc::new(state));
        Ok(findings)
    }

    /// Makes a handshake with what is current. Put a timeout around it: it has none.
    ///
    /// # Errors
    /// [`super::HandshakeFailure`] explains them.
    pub async fn accept<IO>(&self, io: IO) -> io::Result<(ServerStream<IO>, Handshake)>
    where
        IO: Source + AsyncWrite + Unpin + Send + 'static,
    {
        let made = Self::greeted(io).await?.answer(self, || ready(Some(()))).await?;
        Ok(made.expect("there is always a turn"))
    }

    /// Waits for the client's hello, which costs next to nothing. Put a timeout around it: it has none.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn greeted<IO: Source + AsyncWrite + Unpin>(mut io: IO) -> io::Result<Greeted<IO>> {
        let (mut received, mut hello) = (Inbox::default(), Hello::default());
        poll_fn(|cx| hello.poll_receive(cx, &mut received, &mut io)).await?;
        Ok(Greeted { io, received })
    }

    /// Lets each key that is in a token sign once for its certificate; waits for the tokens. Nothing was asked of them before.
    ///
    /// # Errors
    /// Why one doesn't sign, or not for this certificate.
    pub fn prove_tokens(&self) -> Result<(), Vec<Finding>> {
        self.current.load().prove_tokens()
    }

    /// Has the signatures of tokens counted in `metrics` from now on.
    pub fn measure(&self, metrics: &Arc<Metrics>) {
        #[cfg(feature = "pkcs11")]
        let _ = self.measured.set(Arc::clone(metrics));
        #[cfg(not(feature = "pkcs11"))]
        let _ = metrics;
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
}

/// A client that has said hello.
pub struct Greeted<IO> {
    io: IO,
    received: Inbox,
}

impl<IO: Source + AsyncWrite + Unpin + Send + 'static> Greeted<IO> {
    /// Makes the handshake with what `tls` has when it gets its turn. Nearly all of the work is done while it holds one, and
    /// then it waits for the client; after a HelloRetryRequest it takes another. `None` where it got no turn. Put a timeout
    /// around it: it has none.
    ///
    /// # Errors
    /// As [`ServerTls::accept`].
    pub async fn answer<Turn, Wait: Future<Output = Option<Turn>>>(
        self,
        tls: &ServerTls,
        turn: impl Fn() -> Wait,
    ) -> io::Result<Option<(ServerStream<IO>, Handshake)>> {
        let Some(mut held) = turn().await else { return Ok(None) };
        let state = tls.current.load_full();
        let config = match &state.without_tickets {
            Some(without_tickets) if is_gnutls(self.received.unread()) => without_tickets,
            _ => &state.config,
        };
        let mut stream = ServerStream::new(Arc::clone(config), self.io, self.received)?;
        let mut server_name = None;
        loop {
            let asked = match &state.threads {
                None => {
                    let asked = answer_hello(&mut stream)?;
                    drop(held);
                    asked
                }
                Some(threads) => {
                    // A slow token holds up handshakes that tokens sign, and no others: each waits for one of their threads.
                    drop(held);
                    let asked;
                    (asked, stream) = threads.run(move || Ok((answer_hello(&mut stream)?, stream))).await?;
                    asked
                }
            };
            server_name = asked.or(server_name);
            if !stream.awaits_hello() {
                break;
            }
            stream.next_hello().await?;
            let Some(another) = turn().await else { return Ok(None) };
            held = another;
        }
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        let handshake = Handshake::new(stream.connection(), server_name.flatten());
        Ok(Some((stream, handshake)))
    }
}

/// Computes the answer to a hello, in which a token may sign; and the host name it asked for.
fn answer_hello<IO: Source + AsyncWrite + Unpin>(stream: &mut ServerStream<IO>) -> io::Result<Option<Option<String>>> {
    stream.answer_hello()?;
    Ok(resolver::take_asked())
}

/// One consistent reading of the settings and their files.
#[derive(Debug)]
struct State {
    settings: Tls,
    config: Arc<ServerConfig>,
    /// The same without TLS 1.3 tickets, for clients that can't take them; present if the others get some.
    without_tickets: Option<Arc<ServerConfig>>,
    certificates: Vec<CertificateInfo>,
    /// Keys in tokens, each with its certificate's index.
    tokens: Vec<(usize, Arc<pkcs11::KeyInToken>)>,
    /// Where hellos are answered, if a token signs some of the answers.
    threads: Option<pkcs11::Threads>,
}

impl State {
    fn load(
        settings: &Tls,
        own_tickets: &Arc<dyn ProducesTickets>,
        measured: &pkcs11::Measured,
        now: UnixTime,
    ) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        let provider = policy::provider(settings.policy);
        let mut findings = Vec::new();
        let mut certificates = Vec::new();
        let mut entries = Vec::new();
        let mut tokens = Vec::new();
        for (index, files) in certificate_files(settings).enumerate() {
            let (loaded, found) = load_certificate(files, measured, now);
            findings.extend(found.into_iter().map(|finding| placed(index, finding)));
            if let Some((info, entry, token)) = loaded {
                tokens.extend(token.map(|token| (index, token)));
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
            findings.push(Finding::error(
                "policy",
                "policy \"fips\" needs a build on AWS-LC FIPS, and this one isn't",
                "make one with packaging/fips (docs/fips.md)",
            ));
        }
        let threads = threads(settings).map_err(|error| {
            findings.push(Finding::error(
                "pkcs11_sessions",
                format!("no threads for the token: {error}"),
                "ask for fewer",
            ));
        });
        let (Ok(verifier), Ok(threads), false) = (verifier, threads, findings.iter().any(Finding::is_error)) else {
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
        Ok((Self { settings, config: Arc::new(config), without_tickets, certificates, tokens, threads }, findings))
    }

    fn prove_tokens(&self) -> Result<(), Vec<Finding>> {
        let prove = |(index, token): &(usize, Arc<pkcs11::KeyInToken>)| Some(placed(*index, token.prove().err()?));
        let failed: Vec<_> = self.tokens.iter().filter_map(prove).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }
}

/// Whether the client is built on GnuTLS, of which Samba's client library is and hangs on a TLS 1.3 ticket; docs/tls.md
/// has the cause. Of the common libraries GnuTLS alone offers AES-CCM unasked; one that is told to loses resumption only.
fn is_gnutls(mut hello: &[u8]) -> bool {
    let mut acceptor = Acceptor::default();
    while !hello.is_empty() && acceptor.read_tls(&mut hello).is_ok() {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return accepted.client_hello().cipher_suites().contains(&CipherSuite::TLS13_AES_128_CCM_SHA256);
            }
            Ok(None) => {}
            // What can't be read is the handshake's to refuse.
            Err(_) => return false,
        }
    }
    false
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

/// A certificate ready to serve, and its key if that is in a token.
type Ready = (CertificateInfo, Entry, Option<Arc<pkcs11::KeyInToken>>);

/// A certificate, if none of its findings is an error.
fn load_certificate(
    files: &CertificateFiles,
    measured: &pkcs11::Measured,
    now: UnixTime,
) -> (Option<Ready>, Vec<Finding>) {
    let import = match Import::read(files) {
        Ok(import) => import,
        Err(findings) => return (None, findings),
    };
    let mut findings = judge_files(&import, files, now);
    if findings.iter().any(Finding::is_error) {
        return (None, findings);
    }
    let leaf = import.leaf();
    let info = CertificateInfo::new(files.certificate.display().to_string(), &leaf);
    let names = names(&leaf);
    let mut token = None;
    let key = match &import.key {
        Key::Local(key) => any_supported_type(key.der()).expect("a key of an unsupported type is an error finding"),
        Key::Token(key, pin) => match pkcs11::KeyInToken::new(key, pin_of(pin), &leaf, &info.name, measured) {
            Ok(key) => token.insert(key).clone(),
            Err(error) => {
                findings.push(error);
                return (None, findings);
            }
        },
    };
    let key = Arc::new(CertifiedKey::new(import.certificates, key));
    (Some((info, Entry { key, names }, token)), findings)
}

/// Lets the token of a certificate, if its key is in one, sign once for it. What is wrong with the files isn't told here.
///
/// # Errors
/// Why it doesn't sign, or not for this certificate.
pub fn try_token(files: &CertificateFiles) -> Result<(), Finding> {
    match Import::read(files) {
        Ok(Import { key: Key::Token(key, pin), certificates }) => {
            let leaf = parsed(&certificates[0]);
            pkcs11::KeyInToken::new(&key, pin_of(&pin), &leaf, "", &pkcs11::Measured::default())?.prove()
        }
        _ => Ok(()),
    }
}

fn pin_of(pin: &Option<Zeroizing<Vec<u8>>>) -> Option<&[u8]> {
    pin.as_ref().map(|pin| pin.as_slice())
}

/// As many threads as the token that signs most at a time can use.
fn threads(settings: &Tls) -> io::Result<Option<pkcs11::Threads>> {
    let sessions = certificate_files(settings).filter_map(|files| match &files.private_key {
        PrivateKeySource::File(_) => None,
        PrivateKeySource::Token(key) => Some(key.sessions),
    });
    sessions.max().map(pkcs11::Threads::start).transpose()
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
    if settings.session_tickets == SessionTickets::Off {
        return None;
    }
    if settings.client_certificates != ClientCertificates::Off {
        if file.is_some() {
            let message =
                "no session is resumed, since client_certificates are asked for, which every handshake must check anew";
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

/// Every file whose change calls for [`ServerTls::reload`].
pub(super) fn files(settings: &Tls) -> Vec<PathBuf> {
    let (ca, crl) = match &settings.client_certificates {
        ClientCertificates::Off => (None, None),
        ClientCertificates::Optional { ca, crl } | ClientCertificates::Required { ca, crl } => (Some(ca), crl.as_ref()),
    };
    let of_certificate = |files: &CertificateFiles| {
        let CertificateFiles { certificate, private_key, certificate_chain, private_key_passphrase_file } =
            files.clone();
        let private_key = private_key.file().map(PathBuf::from);
        [Some(certificate), private_key, certificate_chain, private_key_passphrase_file]
    };
    let others = [ca, crl, settings.ticket_key_file.as_ref()].map(|path| path.cloned());
    certificate_files(settings).flat_map(of_certificate).chain(others).flatten().collect()
}

/// A finding about the certificate at `index`, the default one being 0.
fn placed(index: usize, finding: Finding) -> Finding {
    Finding { additional: index.checked_sub(1), ..finding }
}
