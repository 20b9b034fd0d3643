//! Imports a certificate as ACM does: body, private key and chain, in three files or fewer.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::Finding;
use super::pem::{PemFile, PrivateKey};
use crate::config::{CertificateFiles, PrivateKeySource, TokenKey};

/// A certificate, its chain and its key, each readable by itself; [`super::lint`] judges whether they fit.
#[derive(Debug)]
pub(super) struct Import {
    /// The certificate body first, then the chain; never empty, each one parses.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) key: Key,
}

/// The private key.
pub(super) enum Key {
    /// Here.
    Local(PrivateKey),
    /// In a token, which hasn't been asked yet, and opens with this PIN.
    Token(Box<TokenKey>, Option<Zeroizing<Vec<u8>>>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(_) => f.write_str("Local"),
            Self::Token(key, _) => write!(f, "Token({})", key.uri),
        }
    }
}

impl Import {
    /// Reads the files; all that can't be read or parsed is reported, each file once.
    pub(super) fn read(files: &CertificateFiles) -> Result<Self, Vec<Finding>> {
        let certificate = PemFile::read("certificate", &files.certificate).and_then(|file| file.certificates());
        let chain = files.certificate_chain.as_deref().map_or(Ok(Vec::new()), |path| {
            PemFile::read("certificate_chain", path).and_then(|file| file.certificates())
        });
        let passphrase = files
            .private_key_passphrase_file
            .as_deref()
            .map(|path| PemFile::read("private_key_passphrase_file", path))
            .transpose();
        let key = passphrase.and_then(|passphrase| {
            let passphrase = passphrase.as_ref().map(PemFile::passphrase);
            match &files.private_key {
                PrivateKeySource::File(path) => {
                    PemFile::read("private_key", path)?.private_key(passphrase).map(Key::Local)
                }
                PrivateKeySource::Token(key) => {
                    Ok(Key::Token(key.clone(), passphrase.map(|pin| Zeroizing::new(pin.to_vec()))))
                }
            }
        });
        match (certificate, chain, key) {
            (Ok(mut certificates), Ok(chain), Ok(key)) => {
                certificates.extend(chain);
                Ok(Self { certificates, key })
            }
            (certificate, chain, key) => {
                Err([certificate.err(), chain.err(), key.err()].into_iter().flatten().collect())
            }
        }
    }

    /// The certificate body.
    pub(super) fn leaf(&self) -> X509Certificate<'_> {
        parsed(&self.certificates[0])
    }

    /// Body and chain, parsed, in their order.
    pub(super) fn parsed(&self) -> Vec<X509Certificate<'_>> {
        self.certificates.iter().map(parsed).collect()
    }
}

/// An imported certificate's contents.
pub(super) fn parsed<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(der).expect("every imported certificate was parsed once already").1
}
