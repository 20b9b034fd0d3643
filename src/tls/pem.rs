//! Reads PEM files, and the passphrases, PINs and ticket keys beside them; says what stands in one that doesn't hold what it
//! should.

use std::fmt;
use std::io::Read;
use std::path::Path;

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::{Zeroize, Zeroizing};

use super::Finding;

/// The contents of one configured file.
pub(super) struct PemFile<'a> {
    /// The configuration key that names the file.
    pub(super) key: &'static str,
    pub(super) path: &'a Path,
    bytes: Zeroizing<Vec<u8>>,
}

/// A private key in DER, wiped from memory when dropped.
pub(super) struct PrivateKey(PrivateKeyDer<'static>);

impl<'a> PemFile<'a> {
    /// Reads a file of at most [`MAX_SIZE`] bytes that isn't empty.
    pub(super) fn read(key: &'static str, path: &'a Path) -> Result<Self, Finding> {
        let shown = path.display();
        let mut bytes = Zeroizing::new(Vec::new());
        std::fs::File::open(path)
            .and_then(|file| {
                // Reserved at once, so that a growing buffer leaves no copies of a key behind.
                bytes.reserve_exact(file.metadata()?.len().min(MAX_SIZE) as usize + 1);
                file.take(MAX_SIZE + 1).read_to_end(&mut bytes)
            })
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Finding::error(
                    key,
                    format!("{shown} doesn't exist"),
                    "relative paths are relative to the configuration file",
                ),
                std::io::ErrorKind::PermissionDenied => Finding::error(
                    key,
                    format!("{shown} may not be read by this user"),
                    format!("let the service's group read it: chgrp ldaps-proxy {shown} && chmod 640 {shown}"),
                ),
                _ => Finding::error(key, format!("{shown} can't be read: {error}"), "check the path"),
            })?;
        if bytes.len() as u64 > MAX_SIZE {
            let help = format!("such files are at most {} MiB here", MAX_SIZE >> 20);
            return Err(Finding::error(key, format!("{shown} is too large"), help));
        }
        Self::new(key, path, bytes)
    }

    /// The same from bytes at hand.
    pub(super) fn new(key: &'static str, path: &'a Path, mut bytes: Zeroizing<Vec<u8>>) -> Result<Self, Finding> {
        // Notepad's byte order mark would hide the first section from the PEM reader.
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            let message = format!("{} is empty", path.display());
            return Err(Finding::error(key, message, "write it whole, in one rename"));
        }
        Ok(Self { key, path, bytes })
    }

    /// All certificates of the file in its order, at least one, each readable as X.509.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Finding> {
        let certificates = self.sections::<CertificateDer<'static>>("a certificate")?;
        for (index, certificate) in certificates.iter().enumerate() {
            match X509Certificate::from_der(certificate) {
                Ok(([], _)) => {}
                Ok(_) => return Err(self.error(format!("certificate {} has bytes after its end", index + 1), AGAIN)),
                Err(error) => {
                    return Err(self.error(format!("certificate {} isn't X.509: {error}", index + 1), AGAIN));
                }
            }
        }
        Ok(certificates)
    }

    /// All revocation lists of the file, at least one.
    pub(super) fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, Finding> {
        self.sections("a certificate revocation list")
    }

    /// The first private key of the file, decrypted with `passphrase` where it is encrypted.
    pub(super) fn private_key(&self, passphrase: Option<&[u8]>) -> Result<PrivateKey, Finding> {
        if self.labels().iter().any(|label| label == "ENCRYPTED PRIVATE KEY") {
            let Some(passphrase) = passphrase else {
                return Err(self.error(
                    "the private key is encrypted and no passphrase is configured",
                    "name a file that holds the passphrase in private_key_passphrase_file",
                ));
            };
            return self.decrypt(passphrase);
        }
        if self.bytes.windows(PROC_TYPE.len()).any(|window| window == PROC_TYPE) {
            return Err(self.unsupported_encryption(&"OpenSSL's old format (Proc-Type), which is weak"));
        }
        self.sections::<PrivateKeyDer<'static>>("a private key").map(|mut keys| PrivateKey(keys.swap_remove(0)))
    }

    /// The text without line ends at its end, as a passphrase is meant.
    pub(super) fn passphrase(&self) -> &[u8] {
        let end = self.bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        &self.bytes[..end]
    }

    /// The file as text, which `help` says how to write.
    pub(super) fn text(&self, help: &str) -> Result<&str, Finding> {
        std::str::from_utf8(&self.bytes).map_err(|_| self.error("the file isn't text", help))
    }

    /// An error about this file, which its message names.
    pub(super) fn error(&self, message: impl fmt::Display, help: impl Into<String>) -> Finding {
        Finding::error(self.key, format!("{}: {message}", self.path.display()), help)
    }

    fn sections<T: PemObject>(&self, wanted: &str) -> Result<Vec<T>, Finding> {
        let found = T::pem_slice_iter(&self.bytes)
            .collect::<Result<Vec<T>, _>>()
            .map_err(|error| self.error(format!("the PEM text is damaged: {error}"), AGAIN))?;
        if found.is_empty() { Err(self.wrong_contents(wanted)) } else { Ok(found) }
    }

    fn decrypt(&self, passphrase: &[u8]) -> Result<PrivateKey, Finding> {
        let damaged = || self.error("the encrypted private key is damaged", AGAIN);
        let section = self.encrypted_section().ok_or_else(damaged)?;
        let encrypted = EncryptedPrivateKeyInfoRef::try_from(section.secret_pkcs8_der())
            .map_err(|error| self.unsupported_encryption(&error))?;
        if !is_affordable(&encrypted.encryption_algorithm) {
            return Err(self.unsupported_encryption(&"no passphrase can be tried at that cost"));
        }
        match encrypted.decrypt(passphrase) {
            Ok(key) => Ok(PrivateKey(PrivateKeyDer::Pkcs8(key.as_bytes().to_vec().into()))),
            // A wrong passphrase leaves wrong padding, or by chance right padding and no key.
            Err(pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed) | pkcs8::Error::Asn1(_)) => {
                Err(Finding::error(
                    "private_key_passphrase_file",
                    format!("the passphrase doesn't open {}", self.path.display()),
                    "the whole file is the passphrase; only line ends at its end are left out",
                ))
            }
            Err(error) => Err(self.unsupported_encryption(&error)),
        }
    }

    /// What stands in the encrypted key's section. The reader of all other sections leaves out labels that it doesn't know, so
    /// it is given this one under another.
    fn encrypted_section(&self) -> Option<PrivatePkcs8KeyDer<'static>> {
        let find = |octets: &[u8], wanted: &[u8]| octets.windows(wanted.len()).position(|window| window == wanted);
        let begun = &self.bytes[find(&self.bytes, ENCRYPTED_BEGIN)? + ENCRYPTED_BEGIN.len()..];
        let content = &begun[..find(begun, ENCRYPTED_END)?];
        let section = [b"-----BEGIN PRIVATE KEY", content, b"-----END PRIVATE KEY-----\n"].concat();
        PrivatePkcs8KeyDer::from_pem_slice(&section).ok()
    }

    fn unsupported_encryption(&self, found: &dyn fmt::Display) -> Finding {
        let path = self.path.display();
        self.error(
            format!("the private key is encrypted in a way that isn't supported: {found}"),
            format!("convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in {path} -out {path}.new"),
        )
    }

    /// The error for a file without the `wanted` section, by what it holds instead.
    fn wrong_contents(&self, wanted: &str) -> Finding {
        let path = self.path.display();
        let labels = self.labels();
        let holds = |part: &str| labels.iter().find(|label| label.contains(part));
        if let Some(label) = holds("CERTIFICATE REQUEST") {
            self.error(
                format!("holds a signing request ({label}), not {wanted}"),
                "send it to your certificate authority and configure what it returns",
            )
        } else if let Some(label) = holds("TRUSTED CERTIFICATE").or(holds("X509 CERTIFICATE")) {
            let help = format!("convert it: openssl x509 -in {path} -out {path}.new");
            self.error(format!("holds {label}, not {wanted} as ACM and others know it"), help)
        } else if let Some(label) = holds("DSA PRIVATE KEY").or(holds("OPENSSH PRIVATE KEY")) {
            self.error(format!("holds {label}, which TLS can't use"), "make an RSA or an ECDSA key")
        } else if let Some(label) = holds("PRIVATE KEY").or(holds("CERTIFICATE")).or(labels.first()) {
            let help = "are private_key and certificate swapped, or is the wrong file named?";
            self.error(format!("holds {label}, not {wanted}"), help)
        } else if self.bytes.starts_with(b"\xff\xfe") || self.bytes.starts_with(b"\xfe\xff") {
            self.error("is UTF-16 text", format!("convert it: iconv -f UTF-16 -t UTF-8 {path} > {path}.new"))
        } else if self.bytes.starts_with(b"\x30\x82") && self.bytes.get(4..7) == Some(b"\x02\x01\x03") {
            self.error(
                "is a PKCS#12 file, not PEM",
                format!("take it apart: openssl pkcs12 -in {path} -nodes -out {path}.pem"),
            )
        } else if self.bytes[0] == 0x30 {
            let command = match wanted {
                "a private key" => "openssl pkey -inform der",
                "a certificate revocation list" => "openssl crl -inform der",
                _ => "openssl x509 -inform der",
            };
            self.error("is DER, not PEM", format!("convert it: {command} -in {path} -out {path}.pem"))
        } else {
            self.error(format!("holds no PEM text, so not {wanted} either"), AGAIN)
        }
    }

    /// What follows `-----BEGIN ` in the file's lines.
    fn labels(&self) -> Vec<String> {
        self.bytes
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .filter_map(|line| line.strip_prefix(b"-----BEGIN "))
            .map(|label| String::from_utf8_lossy(label).trim_end_matches([' ', '-']).to_owned())
            .collect()
    }
}

impl PrivateKey {
    pub(super) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// Whether trying a passphrase takes seconds at most, and little memory: the file says how much of both it wants, and it is
/// read again whenever it changes.
fn is_affordable(scheme: &EncryptionScheme) -> bool {
    /// Three times what OWASP advises (2023), for HMAC-SHA1.
    const MOST_ROUNDS: u32 = 4_000_000;
    /// Octets, and rounds over them. OpenSSL opens nothing that takes more than 32 MiB.
    const MOST_SCRYPT: u64 = 64 << 20;
    match scheme {
        EncryptionScheme::Pbes2(scheme) => match &scheme.kdf {
            Kdf::Pbkdf2(kdf) => kdf.iteration_count <= MOST_ROUNDS,
            Kdf::Scrypt(kdf) => {
                let block = 128 * u64::from(kdf.block_size) * u64::from(kdf.parallelization);
                // The decoder takes a cost of 0, and pkcs5 panics over it.
                kdf.cost_parameter > 0 && kdf.cost_parameter.checked_mul(block).is_some_and(|cost| cost <= MOST_SCRYPT)
            }
            _ => true,
        },
        _ => true,
    }
}

/// Bytes; revocation lists are the largest files met.
const MAX_SIZE: u64 = 16 << 20;
const PROC_TYPE: &[u8] = b"Proc-Type:";
const ENCRYPTED_BEGIN: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY";
const ENCRYPTED_END: &[u8] = b"-----END ENCRYPTED PRIVATE KEY";
const AGAIN: &str = "export it again as PEM: lines from -----BEGIN …----- to -----END …-----";

#[cfg(test)]
mod tests {
    use pkcs8::LineEnding;
    use pkcs8::der::pem::encode_string;
    use proptest::prelude::*;

    use super::super::testing::{Authority, NAMES, ecdsa};
    use super::*;

    fn file(text: impl AsRef<[u8]>) -> Result<PemFile<'static>, Finding> {
        PemFile::new("certificate", Path::new("dir/file.pem"), Zeroizing::new(text.as_ref().to_vec()))
    }

    fn try_all(file: &PemFile<'_>) {
        let _ = file.certificates();
        let _ = file.private_key(None);
        let _ = file.private_key(Some(b"secret"));
        let _ = file.revocation_lists();
        let _ = file.passphrase();
        let _ = file.text("");
    }

    #[test]
    fn a_file_in_the_wrong_place_is_named_for_what_it_is() {
        let issued = Authority::root("root").issue(&["ldap.example.com"]);
        let request = rcgen::CertificateParams::default().serialize_request(&ecdsa()).unwrap().pem().unwrap();
        let certificate = issued.certificate.as_str();
        let relabelled = |label: &str| certificate.replace("CERTIFICATE", label);
        for (contents, expected) in [
            (issued.key.clone().into_bytes(), "holds PRIVATE KEY, not a certificate"),
            (request.into_bytes(), "holds a signing request (CERTIFICATE REQUEST), not a certificate"),
            (relabelled("TRUSTED CERTIFICATE").into(), "holds TRUSTED CERTIFICATE"),
            (relabelled("X509 CRL").into(), "holds X509 CRL, not a certificate"),
            (certificate.encode_utf16().flat_map(u16::to_le_bytes).collect(), "no PEM text"),
            (
                [b"\xff\xfe".to_vec(), certificate.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat(),
                "UTF-16",
            ),
            (b"\x30\x82\x0a\x00\x02\x01\x03\x30".to_vec(), "PKCS#12"),
            (b"\x30\x82\x0a\x00\x30\x82".to_vec(), "is DER, not PEM"),
            (b"hello".to_vec(), "holds no PEM text"),
            (certificate.replace("-----END", "").into(), "the PEM text is damaged"),
            (certificate.replace("MII", "!!!").into(), "the PEM text is damaged"),
            (
                encode_string("CERTIFICATE", LineEnding::LF, b"\x30\x03\x02\x01\x01").unwrap().into(),
                "certificate 1 isn't X.509",
            ),
        ] {
            let error = file(contents).unwrap().certificates().unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            assert!(error.message.contains("dir/file.pem"), "{error}");
        }
        let error = file(certificate).unwrap().private_key(None).unwrap_err();
        assert!(error.message.contains("holds CERTIFICATE, not a private key"), "{error}");
        assert!(error.help.contains("swapped"), "{error}");
        let error = file(relabelled("OPENSSH PRIVATE KEY")).unwrap().private_key(None).unwrap_err();
        assert!(error.message.contains("which TLS can't use"), "{error}");
    }

    /// A file could stop a reload for an hour, or have it take more memory than there is.
    #[test]
    fn a_key_that_would_take_too_long_to_open_is_refused() {
        use pkcs8::der::Encode as _;
        use pkcs8::pkcs5::pbes2::{Parameters, Pbkdf2Params, ScryptParams};
        let pbkdf2 = |rounds| {
            let mut parameters = Parameters::generate_pbkdf2_sha256_aes256cbc(1, b"12345678", [0; 16]).unwrap();
            let Kdf::Pbkdf2(kdf) = &mut parameters.kdf else { unreachable!() };
            *kdf = Pbkdf2Params { iteration_count: rounds, ..*kdf };
            parameters
        };
        let scrypt = |cost, blocks| {
            let cheap = pkcs8::pkcs5::scrypt::Params::new(1, 8, 1).unwrap();
            let mut parameters = Parameters::generate_scrypt_aes256cbc(cheap, b"12345678", [0; 16]).unwrap();
            let Kdf::Scrypt(kdf) = &mut parameters.kdf else { unreachable!() };
            *kdf = ScryptParams { cost_parameter: cost, block_size: blocks, ..*kdf };
            parameters
        };
        for (parameters, words) in [
            (pbkdf2(1000), "doesn't open"),
            (pbkdf2(4_000_001), "at that cost"),
            (pbkdf2(u32::MAX), "at that cost"),
            (scrypt(2, 8), "doesn't open"),
            (scrypt(0, 8), "at that cost"),
            (scrypt(1 << 40, 8), "at that cost"),
            (scrypt(1 << 63, u16::MAX), "at that cost"),
        ] {
            let key = EncryptedPrivateKeyInfoRef {
                encryption_algorithm: EncryptionScheme::Pbes2(parameters),
                encrypted_data: pkcs8::der::asn1::OctetStringRef::new(&[0; 32]).unwrap(),
            };
            let text = encode_string("ENCRYPTED PRIVATE KEY", LineEnding::LF, &key.to_der().unwrap()).unwrap();
            let error = file(text).unwrap().private_key(Some(b"secret")).unwrap_err();
            assert!(error.message.contains(words), "{error}");
        }
    }

    #[test]
    fn an_encrypted_key_is_read_as_leniently_as_a_plain_one() {
        use pkcs8::der::Encode as _;
        let plain = file(Authority::root("root").issue(NAMES).key).unwrap().private_key(None).unwrap();
        let parameters =
            pkcs8::pkcs5::pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(1, b"12345678", [0; 16]).unwrap();
        let encrypted_data = parameters.encrypt(b"secret", plain.der().secret_der()).unwrap();
        let key = EncryptedPrivateKeyInfoRef {
            encryption_algorithm: EncryptionScheme::Pbes2(parameters),
            encrypted_data: pkcs8::der::asn1::OctetStringRef::new(&encrypted_data).unwrap(),
        };
        let text = encode_string("ENCRYPTED PRIVATE KEY", LineEnding::LF, &key.to_der().unwrap()).unwrap();
        let [begin, content @ .., end] = &text.lines().collect::<Vec<_>>()[..] else { unreachable!() };
        let content = content.concat();
        for text in [
            text.clone().into_bytes(),
            [b"Bag Attributes\n    friendlyName: Schl\xfcssel\n", text.as_bytes()].concat(),
            format!("{begin}\n{content}\n{end}").into(),
            format!("{begin}  \r\n{}\r\n{}\r\n{end}\r\n", &content[..76], &content[76..]).into(),
            text.replace('\n', "\r").into(),
        ] {
            let key = file(&text).unwrap().private_key(Some(b"secret"));
            assert_eq!(key.unwrap().der(), plain.der(), "{}", String::from_utf8_lossy(&text));
        }
        for (whole, damaged) in [(end.to_owned(), ""), (&content[..4], "!!!!")] {
            let error = file(text.replace(whole, damaged)).unwrap().private_key(Some(b"secret")).unwrap_err();
            assert!(error.message.contains("the encrypted private key is damaged"), "{error}");
        }
    }

    #[test]
    fn other_systems_text_is_read() {
        let certificate = Authority::root("root").issue(&["ldap.example.com"]).certificate;
        for text in [
            certificate.replace('\n', "\r\n"),
            certificate.replace('\n', "\r"),
            format!("\u{feff}{certificate}"),
            format!("Bag Attributes\n    friendlyName: x\n{certificate}\ntrailing words"),
        ] {
            assert_eq!(file(text).unwrap().certificates().unwrap().len(), 1);
        }
    }

    #[test]
    fn an_empty_or_missing_file_is_an_error() {
        assert!(file(" \n").map(|_| ()).unwrap_err().message.contains("is empty"));
        let missing = PemFile::read("client_ca", Path::new("/nonexistent/ca.pem")).map(|_| ()).unwrap_err();
        assert_eq!((missing.key, missing.message.as_str()), ("client_ca", "/nonexistent/ca.pem doesn't exist"));
        let endless = PemFile::read("client_ca", Path::new("/dev/zero")).map(|_| ()).unwrap_err();
        assert!(endless.message.contains("too large"), "{endless}");
        for found in [file("").map(|_| ()).unwrap_err(), endless] {
            assert!(!found.help.contains("PEM"), "it may be a passphrase: {found}");
        }
    }

    #[test]
    fn a_passphrase_ends_before_its_line_end() {
        for (text, passphrase) in
            [("secret", "secret"), ("secret\r\n", "secret"), (" a b \n\n", " a b "), ("a\nb\n", "a\nb")]
        {
            assert_eq!(file(text).unwrap().passphrase(), passphrase.as_bytes());
        }
    }

    #[test]
    fn keys_don_t_print() {
        let issued = Authority::root("root").issue(&["ldap.example.com"]);
        let key = file(&issued.key).unwrap().private_key(None).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(file) = file(bytes) {
                try_all(&file);
            }
        }

        #[test]
        fn any_der_is_survived(
            label in prop::sample::select(vec!["CERTIFICATE", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "X509 CRL"]),
            der in proptest::collection::vec(any::<u8>(), 0..500),
        ) {
            try_all(&file(encode_string(label, LineEnding::LF, &der).unwrap()).unwrap());
        }

        /// Closer to the real thing than random bytes: one octet of a certificate is another.
        #[test]
        fn any_damage_is_survived(position in 0usize..10_000, octet in any::<u8>()) {
            static CERTIFICATE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
                let issued = Authority::root("root").issue(&["ldap.example.com", "10.0.0.1"]);
                file(issued.certificate).unwrap().certificates().unwrap()[0].to_vec()
            });
            let mut der = CERTIFICATE.clone();
            let position = position % der.len();
            der[position] = octet;
            let file = file(encode_string("CERTIFICATE", LineEnding::LF, &der).unwrap()).unwrap();
            if let Ok(certificates) = file.certificates() {
                let x509 = super::super::import::parsed(&certificates[0]);
                super::super::CertificateInfo::new(String::new(), &x509);
            }
        }
    }
}
