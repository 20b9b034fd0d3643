//! `[tls]`: certificates, keys, and what is offered to clients.

use std::path::{Path, PathBuf};

/// `[tls]` and `[listener.tls]`
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// The certificate for clients that send no server name, or an unknown one.
    pub default_certificate: CertificateFiles,
    /// `[[tls.additional]]`
    pub additional: Vec<CertificateFiles>,
    /// `min_version`
    pub min_version: TlsVersion,
    /// `policy`
    pub policy: TlsPolicy,
    /// `session_tickets`
    pub session_tickets: SessionTickets,
    /// `ticket_key_file`: keys shared by several copies.
    pub ticket_key_file: Option<PathBuf>,
    /// `client_certificates`, `client_ca`, `client_crl`
    pub client_certificates: ClientCertificates,
}

impl Tls {
    /// This certificate, and every other key at its default.
    pub fn new(default_certificate: CertificateFiles) -> Self {
        Self {
            default_certificate,
            additional: Vec::new(),
            min_version: TlsVersion::default(),
            policy: TlsPolicy::default(),
            session_tickets: SessionTickets::default(),
            ticket_key_file: None,
            client_certificates: ClientCertificates::default(),
        }
    }
}

/// One certificate and its key, in the parts ACM imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// `certificate`: the body, or a bundle of body and chain.
    pub certificate: PathBuf,
    /// `private_key`
    pub private_key: PrivateKeySource,
    /// `certificate_chain`
    pub certificate_chain: Option<PathBuf>,
    /// `private_key_passphrase_file`: what the file, or the token, opens with.
    pub private_key_passphrase_file: Option<PathBuf>,
}

/// `private_key`: where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateKeySource {
    /// PEM.
    File(PathBuf),
    /// A `pkcs11:` URI: the key stays in a token and signs there.
    Token(Box<TokenKey>),
}

impl PrivateKeySource {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Token(_) => None,
        }
    }
}

impl From<PathBuf> for PrivateKeySource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// A private key by RFC 7512; what isn't given matches every token or object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenKey {
    /// The URI as it was written.
    pub uri: String,
    /// `token`: the token's label.
    pub token: Option<String>,
    /// `manufacturer` of the token.
    pub manufacturer: Option<String>,
    /// `model` of the token.
    pub model: Option<String>,
    /// `serial` of the token.
    pub serial: Option<String>,
    /// `slot-id`
    pub slot: Option<u64>,
    /// `object`: the key's label, CKA_LABEL.
    pub object: Option<String>,
    /// `id`: the key's CKA_ID.
    pub id: Option<Vec<u8>>,
    /// `module-path`, else `pkcs11_module`: the library to ask; always there once the configuration is read.
    pub module: Option<PathBuf>,
    /// `pkcs11_sessions`: signatures at a time.
    pub sessions: usize,
    /// `pin-source`
    pub pin_file: Option<PathBuf>,
}

/// `min_version`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// "1.2"
    #[default]
    V1_2,
    /// "1.3"
    V1_3,
}

/// `policy` of `[tls]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsPolicy {
    /// TLS 1.3 only.
    Modern,
    /// TLS 1.2 with AEAD and forward secrecy, and TLS 1.3.
    #[default]
    Intermediate,
    /// Only what FIPS 140 approves.
    Fips,
}

/// `session_tickets`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionTickets {
    /// Resumption in both versions.
    All,
    /// Resumption in TLS 1.2 only: Samba's own client library hangs on TLS 1.3 tickets.
    #[default]
    Tls12,
    /// No resumption.
    Off,
}

/// `client_certificates`, with what verifying them needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// Not asked for.
    #[default]
    Off,
    /// Asked for; a client without one may enter.
    Optional {
        /// `client_ca`
        ca: PathBuf,
        /// `client_crl`
        crl: Option<PathBuf>,
    },
    /// A client without a valid one ends at the handshake.
    Required {
        /// `client_ca`
        ca: PathBuf,
        /// `client_crl`
        crl: Option<PathBuf>,
    },
}
