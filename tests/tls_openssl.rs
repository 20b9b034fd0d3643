//! Certificates and keys made with OpenSSL, good and bad, as operators make them; judged by `tls::lint`.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ldaps_proxy::config::{CertificateFiles, SessionTickets, Tls};
use ldaps_proxy::tls::{Finding, ServerTls, Severity, UnixTime, lint};
use tempfile::TempDir;

/// A directory of its own for commands as they stand in the documentation.
struct Shell(TempDir);

impl Shell {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs a command line of words without quotes.
    #[track_caller]
    fn run(&self, line: &str) {
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.0.path())
            .output()
            .expect("these tests need OpenSSL: apt-get install openssl");
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs lines as a shell does.
    #[track_caller]
    fn script(&self, lines: &str) {
        let status = Command::new("sh").args(["-e", "-c", lines]).current_dir(self.0.path()).output().unwrap();
        assert!(status.status.success(), "{lines}\n{}", String::from_utf8_lossy(&status.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self, certificate: &str, key: &str, passphrase: Option<&str>) -> CertificateFiles {
        CertificateFiles {
            certificate: self.path(certificate),
            private_key: self.path(key).into(),
            certificate_chain: None,
            private_key_passphrase_file: passphrase.map(|text| {
                let path = self.path("passphrase");
                std::fs::write(&path, text).unwrap();
                self.run("chmod 600 passphrase");
                path
            }),
        }
    }

    /// A self-signed certificate `c.pem` with its key `k.pem`.
    fn self_signed(&self, key: &str) {
        self.run(&format!(
            "openssl req -x509 -newkey {key} -nodes -days 365 -subj /CN=ldap.example.com \
             -addext subjectAltName=DNS:ldap.example.com -addext basicConstraints=critical,CA:FALSE \
             -keyout k.pem -out c.pem"
        ));
    }
}

/// Exactly one finding, of this severity, with these words.
#[track_caller]
fn expect(files: &CertificateFiles, severity: Severity, words: &str) -> Finding {
    let mut found = lint(files, UnixTime::now());
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = found.remove(0);
    assert!(finding.severity == severity && finding.message.contains(words), "{finding}");
    finding
}

#[track_caller]
fn expect_none(files: &CertificateFiles) {
    assert_eq!(lint(files, UnixTime::now()), []);
}

const RSA: &str = "rsa:2048";
const ECDSA: &str = "ec -pkeyopt ec_paramgen_curve:prime256v1";

#[test]
fn every_form_of_private_key_is_read() {
    let shell = Shell::new();
    for kind in [RSA, ECDSA] {
        shell.self_signed(kind);
        expect_none(&shell.files("c.pem", "k.pem", None));
        // PKCS#1 and SEC1.
        shell.run("openssl pkey -traditional -in k.pem -out old.pem");
        shell.run("chmod 600 old.pem");
        expect_none(&shell.files("c.pem", "old.pem", None));
        for encryption in [
            "-v2 aes-256-cbc",
            // What `aws acm export-certificate` gives.
            "-v2 aes-256-cbc -v2prf hmacWithSHA1",
            "-v2 aes-128-cbc -v2prf hmacWithSHA512",
            "-scrypt",
            "-v2 des3",
        ] {
            shell.run(&format!("openssl pkcs8 -topk8 {encryption} -passout pass:secret -in k.pem -out enc.pem"));
            expect_none(&shell.files("c.pem", "enc.pem", Some("secret\n")));
            let wrong = shell.files("c.pem", "enc.pem", Some("Secret\n"));
            assert_eq!(expect(&wrong, Severity::Error, "doesn't open").key, "private_key_passphrase_file");
            let missing = shell.files("c.pem", "enc.pem", None);
            let finding = expect(&missing, Severity::Error, "no passphrase is configured");
            assert!(finding.help.contains("private_key_passphrase_file"), "{finding}");
        }
    }
}

/// The help isn't only words: the command in it makes the key usable.
#[test]
fn old_encryptions_are_refused_with_the_command_that_converts_them() {
    let shell = Shell::new();
    shell.self_signed(RSA);
    for (command, words) in [
        ("openssl rsa -traditional -aes256 -passout pass:secret -in k.pem -out old.pem", "Proc-Type"),
        ("openssl rsa -traditional -des3 -passout pass:secret -in k.pem -out old.pem", "Proc-Type"),
        (
            "openssl pkcs8 -topk8 -v1 PBE-SHA1-3DES -passout pass:secret -in k.pem -out old.pem",
            "encrypted in a way that isn't supported",
        ),
    ] {
        shell.run(command);
        let finding = expect(&shell.files("c.pem", "old.pem", Some("secret")), Severity::Error, words);
        let convert = finding.help.strip_prefix("convert it: ").expect("a command");
        shell.run(&format!("{convert} -passin pass:secret -passout pass:secret"));
        expect_none(&shell.files("c.pem", "old.pem.new", Some("secret")));
    }
}

/// The certificate of the 2017 article has a common name only. Its help's command makes a good one.
#[test]
fn a_certificate_with_a_common_name_only_is_served_with_a_warning() {
    let shell = Shell::new();
    shell.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=ldap.example.com \
         -addext basicConstraints=critical,CA:FALSE -keyout k.pem -out c.pem",
    );
    let finding = expect(&shell.files("c.pem", "k.pem", None), Severity::Warning, "no subject alternative name");
    shell.run(finding.help.split_once(": ").expect("a command").1);
    expect_none(&shell.files("certificate.pem", "private_key.pem", None));
}

/// `openssl x509 -req` without extensions makes version 1, which WebPKI-minded parsers refuse to read.
#[test]
fn a_version_1_certificate_is_served_with_a_warning() {
    let shell = Shell::new();
    shell.run("openssl req -new -newkey rsa:2048 -nodes -subj /CN=ldap.example.com -keyout k.pem -out request.pem");
    shell.run("openssl x509 -req -in request.pem -signkey k.pem -days 365 -out c.pem");
    expect(&shell.files("c.pem", "k.pem", None), Severity::Warning, "no subject alternative name");
    expect(&shell.files("request.pem", "k.pem", None), Severity::Error, "holds a signing request");
}

#[test]
fn what_clients_refuse_is_told() {
    let shell = Shell::new();
    shell.self_signed("rsa:2048 -sha1");
    expect(&shell.files("c.pem", "k.pem", None), Severity::Warning, "signed with SHA-1");
    shell.self_signed("rsa:1024");
    expect(&shell.files("c.pem", "k.pem", None), Severity::Error, "RSA key has 1024 bits");
    shell.self_signed("ec -pkeyopt ec_paramgen_curve:secp256k1");
    expect(&shell.files("c.pem", "k.pem", None), Severity::Error, "can't be used");
}

#[test]
fn other_containers_are_refused_with_the_command_that_converts_them() {
    let shell = Shell::new();
    shell.self_signed(RSA);
    shell.run("openssl x509 -in c.pem -outform der -out c.der");
    shell.run("openssl pkey -in k.pem -outform der -out k.der");
    shell.run("openssl pkcs12 -export -in c.pem -inkey k.pem -passout pass: -out all.p12");
    shell.run("chmod 600 k.der all.p12");
    for (certificate, key, words, options) in [
        ("c.der", "k.pem", "is DER", ""),
        ("c.pem", "k.der", "is DER", ""),
        ("all.p12", "k.pem", "is a PKCS#12 file", " -passin pass:"),
    ] {
        let finding = expect(&shell.files(certificate, key, None), Severity::Error, words);
        let (_, convert) = finding.help.split_once(": ").expect("a command");
        shell.run(&format!("{convert}{options}"));
        let made = Path::new(convert.rsplit(' ').next().unwrap()).file_name().unwrap().to_str().unwrap();
        shell.run(&format!("chmod 600 {made}"));
        let (certificate, key) = if key == "k.der" { (certificate, made) } else { (made, key) };
        expect_none(&shell.files(certificate, key, None));
    }
}

/// Bodies and chains as they are put together by hand, of certificates as authorities make them.
#[test]
fn a_chain_is_judged_link_by_link() {
    let shell = Shell::new();
    shell.script(
        "request() { openssl req -new -newkey rsa:2048 -nodes -subj /CN=$1 -keyout $1.key -out $1.csr; }
        sign() { openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 365 -extfile $3 -out $1.pem; }
        printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign' > ca.ext
        printf 'subjectAltName=DNS:ldap.example.com\nkeyUsage=digitalSignature' > leaf.ext
        openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=root -keyout root.key -out root.pem
        request issuing; sign issuing root ca.ext
        request leaf; sign leaf issuing leaf.ext
        request by-leaf; sign by-leaf leaf leaf.ext",
    );
    let import = |body: &str, chain: &str, key: &str| {
        let join = |names: &str, to: &str| {
            let text =
                names.split(' ').map(|name| std::fs::read_to_string(shell.path(&format!("{name}.pem"))).unwrap());
            std::fs::write(shell.path(to), text.collect::<String>()).unwrap();
            shell.path(to)
        };
        let mut files = shell.files("body", &format!("{key}.key"), None);
        join(body, "body");
        files.certificate_chain = (!chain.is_empty()).then(|| join(chain, "chain"));
        files
    };
    for (body, chain) in [("leaf", "issuing"), ("leaf issuing", ""), ("root", "")] {
        let found = lint(&import(body, chain, body.split(' ').next().unwrap()), UnixTime::now());
        let about_chain: Vec<_> = found.iter().filter(|finding| finding.key == "certificate_chain").collect();
        assert!(about_chain.is_empty() && !found.iter().any(Finding::is_error), "{found:?}");
    }
    for (body, chain, key, severity, words) in [
        ("leaf", "issuing root", "leaf", Severity::Warning, "the chain holds its root"),
        ("leaf", "root", "leaf", Severity::Warning, "isn't the issuer of the one before it"),
        ("leaf", "leaf issuing", "leaf", Severity::Warning, "is there twice"),
        ("leaf", "root issuing", "leaf", Severity::Warning, "isn't the issuer of the one before it"),
        ("by-leaf", "leaf issuing", "by-leaf", Severity::Warning, "(CN=leaf) is no certificate authority"),
        ("issuing leaf", "", "leaf", Severity::Error, "belongs to certificate 2 of the chain"),
        ("leaf", "issuing", "issuing", Severity::Error, "belongs to certificate 2 of the chain"),
        ("leaf", "issuing", "root", Severity::Error, "doesn't match the certificate"),
    ] {
        let found = lint(&import(body, chain, key), UnixTime::now());
        let told = found.iter().any(|finding| finding.severity == severity && finding.message.contains(words));
        assert!(told, "{body} + {chain}: {found:?}");
    }
    let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
    let now = Duration::from_secs(UnixTime::now().as_secs());
    for (then, words) in [
        (now - days(2), "isn't valid before"),
        (now + days(330), "ends in 3"),
        (now + days(400), "CLIENTS THAT CHECK REFUSE IT"),
    ] {
        let found = lint(&import("leaf", "issuing", "leaf"), UnixTime::since_unix_epoch(then));
        assert!(found.iter().all(|finding| !finding.is_error()), "{found:?}");
        assert!(found.iter().any(|finding| finding.message.contains(words)), "{found:?}");
    }
}

/// The `sh` blocks of a document, in order.
fn shell_blocks(document: &str) -> Vec<&str> {
    document.split("```sh\n").skip(1).map(|rest| rest.split_once("```").expect("an end of the block").0).collect()
}

#[test]
fn the_readme_s_commands_make_good_certificates() {
    let shell = Shell::new();
    let blocks = shell_blocks(include_str!("../certs/README.md"));
    let [self_signed, request, issue, ..] = blocks[..] else { panic!("{blocks:?}") };
    shell.script(self_signed);
    expect_none(&shell.files("certificate.pem", "private_key.pem", None));
    shell.run("openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=ca -keyout ca.key -out ca.pem");
    shell.script(request);
    shell.script(issue);
    expect_none(&shell.files("certificate.pem", "private_key.pem", None));
}

#[test]
fn the_documented_rotation_of_ticket_keys_is_read() {
    let shell = Shell::new();
    shell.self_signed(ECDSA);
    let [_, rotation, ..] = shell_blocks(include_str!("../docs/tls.md"))[..] else { panic!("two blocks") };
    shell.script("touch tickets");
    for keys in 1..=3 {
        shell.script(rotation);
        let lines = std::fs::read_to_string(shell.path("tickets")).unwrap().lines().count();
        assert_eq!(lines, keys.min(2));
        let settings = Tls {
            session_tickets: SessionTickets::All,
            ticket_key_file: Some(shell.path("tickets")),
            ..Tls::new(shell.files("c.pem", "k.pem", None))
        };
        assert_eq!(ServerTls::load(&settings, UnixTime::now()).unwrap().findings, []);
    }
}
