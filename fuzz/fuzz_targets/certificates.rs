//! Certificates, chains, keys, revocation lists and ticket keys as files: whatever is in them is served or refused with
//! findings, and a file that the linter finds no error in can be served.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::Duration;

use ldaps_proxy::config::{self, CertificateFiles, ClientCertificates, PrivateKeySource};
use ldaps_proxy::tls::{ServerTls, UnixTime, lint};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// What stands between the files of one input.
const NEXT_FILE: &[u8] = b"\n%%\n";

fuzz_target!(|input: &[u8]| FILES.with_borrow_mut(|files| {
    let mut parts = parts(input).into_iter();
    let mut next = || parts.next().unwrap_or_default();
    let [certificate, key, chain, passphrase, authority, revoked, tickets] = std::array::from_fn(|_| next());
    let given = |part: &[u8], file: &mut MemoryFile| (!part.is_empty()).then(|| file.hold(part));

    let names = CertificateFiles {
        certificate: files[0].hold(certificate),
        private_key: PrivateKeySource::File(if key.is_empty() { files[0].path() } else { files[1].hold(key) }),
        certificate_chain: given(chain, &mut files[2]),
        private_key_passphrase_file: given(passphrase, &mut files[3]),
    };
    // 2030-01-01: a clock that stands still.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));
    let found = lint(&names, now);
    for finding in &found {
        assert!(!finding.message.is_empty() && !finding.to_string().is_empty());
    }
    let fits = !found.iter().any(ldaps_proxy::tls::Finding::is_error);

    let plain = config::Tls::new(names);
    match ServerTls::load(&plain, now) {
        Ok(loaded) => {
            assert!(fits, "served in spite of {found:?}");
            drop(loaded);
        }
        Err(refused) => {
            assert!(!fits, "refused for {refused:?}, which the linter doesn't mind");
        }
    }
    if authority.is_empty() && tickets.is_empty() {
        return;
    }
    let ca = files[4].hold(authority);
    let all = config::Tls {
        client_certificates: ClientCertificates::Required { ca, crl: given(revoked, &mut files[5]) },
        ticket_key_file: given(tickets, &mut files[6]),
        ..plain
    };
    if let Err(refused) = ServerTls::load(&all, now) {
        assert!(!refused.is_empty(), "refused without a reason");
    }
}));

/// The input's files, seven at most.
fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = input.windows(NEXT_FILE.len()).position(|window| window == NEXT_FILE) {
        parts.push(&input[..at]);
        input = &input[at + NEXT_FILE.len()..];
    }
    parts.push(input);
    parts.truncate(7);
    parts
}

/// A file without a disk.
struct MemoryFile(File);

impl MemoryFile {
    fn new() -> Self {
        Self(File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("memory")))
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    fn hold(&mut self, contents: &[u8]) -> PathBuf {
        self.0.set_len(0).and_then(|()| self.0.rewind()).and_then(|()| self.0.write_all(contents)).expect("memory");
        self.path()
    }
}

thread_local! {
    static FILES: RefCell<[MemoryFile; 7]> = RefCell::new(std::array::from_fn(|_| MemoryFile::new()));
}
