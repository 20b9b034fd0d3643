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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use pkcs8::LineEnding;
    use pkcs8::der::pem::encode_string;
    use proptest::prelude::*;
    use rustls_pki_types::pem::PemObject;

    use super::super::lint::judge_files;
    use super::super::testing::*;
    use super::super::{ServerTls, UnixTime};
    use super::*;
    use crate::config::Tls;

    /// A good certificate with its chain and key, each in DER with its label.
    static GOOD: LazyLock<[(&str, Vec<u8>); 3]> = LazyLock::new(|| {
        let intermediate = Authority::root("root").intermediate("intermediate");
        let issued = intermediate.issue(NAMES);
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap().secret_der().to_vec();
        [("CERTIFICATE", der(&issued.certificate)), ("CERTIFICATE", der(&intermediate.pem)), ("PRIVATE KEY", key)]
    });

    fn section(label: &str, der: &[u8]) -> String {
        encode_string(label, LineEnding::LF, der).unwrap()
    }

    /// What stands around sections in files of other tools.
    fn noise() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "",
            "\n",
            "Bag Attributes\n    localKeyID: 01\n",
            "subject=CN = x\n\n",
            "# comment\r\n",
        ])
        .prop_map(str::to_owned)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However the three parts are spread over files, with whatever stands around them and whatever line ends: the same
        /// certificate comes out, and it has no fault.
        #[test]
        fn any_way_to_write_a_good_import_is_read(
            bundled in any::<bool>(),
            key_first in any::<bool>(),
            key_beside in any::<bool>(),
            noise in prop::array::uniform4(noise()),
            crlf in any::<bool>(),
        ) {
            let [body, chain, key] = GOOD.each_ref().map(|(label, der)| section(label, der));
            let [before, between, after, end] = noise;
            let mut certificate = format!("{before}{body}{between}");
            if bundled {
                certificate += &chain;
            }
            if key_beside && key_first {
                certificate = format!("{key}{certificate}");
            } else if key_beside {
                certificate = format!("{certificate}{after}{key}{end}");
            }
            let lines = |text: String| if crlf { text.replace("\r\n", "\n").replace('\n', "\r\n") } else { text };
            let dir = tempfile::tempdir().unwrap();
            let certificate = write(dir.path(), "certificate.pem", &lines(certificate));
            let files = CertificateFiles {
                private_key: if key_beside { certificate.clone() } else { write(dir.path(), "key.pem", &lines(key)) }.into(),
                certificate_chain: (!bundled).then(|| write(dir.path(), "chain.pem", &lines(chain))),
                certificate,
                private_key_passphrase_file: None,
            };
            let import = Import::read(&files).unwrap();
            prop_assert_eq!(import.certificates.iter().map(|der| der.to_vec()).collect::<Vec<_>>(), [&GOOD[0].1[..], &GOOD[1].1[..]]);
            prop_assert_eq!(judge_files(&import, &files, now()), []);
        }

        /// One octet of one of the three is another: it is refused or judged, and what is accepted can be served.
        #[test]
        fn any_damage_is_refused_or_served(part in 0_usize..3, position in any::<prop::sample::Index>(), octet in any::<u8>()) {
            let mut parts = GOOD.clone();
            let der = &mut parts[part].1;
            *position.get_mut(der) = octet;
            let [body, chain, key] = parts.map(|(label, der)| section(label, &der));
            let dir = tempfile::tempdir().unwrap();
            let mut files = Issued { certificate: body, key }.write(dir.path(), "server");
            files.certificate_chain = Some(write(dir.path(), "chain.pem", &chain));
            match ServerTls::load(&Tls::new(files), UnixTime::now()) {
                Ok(loaded) => prop_assert_eq!(loaded.server.certificates().len(), 1),
                Err(findings) => prop_assert!(findings.iter().any(|finding| finding.is_error() && !finding.help.is_empty())),
            }
        }
    }
}
