//! Session tickets under keys that several copies of the proxy share, so that any copy resumes any client.
//!
//! A ticket is `name (16) ‖ nonce (12) ‖ AES-256-GCM(time issued (8) ‖ session) ‖ tag (16)`, the name being the
//! associated data. Forward secrecy ends where the key file does: whoever has a key can open every session resumed, or
//! to be resumed, from its tickets. Hence the age limit here, and the rotation that docs/tls.md describes.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use rustls::server::ProducesTickets;
use rustls_pki_types::UnixTime;
use zeroize::Zeroizing;

use super::Finding;
use super::pem::PemFile;

/// The keys of a `ticket_key_file`.
pub(super) struct TicketKeys {
    /// The first one encrypts, all decrypt.
    keys: Vec<TicketKey>,
}

struct TicketKey {
    name: [u8; NAME],
    aead: RandomizedNonceKey,
}

impl TicketKeys {
    /// Parses a key a line, 96 hexadecimal digits (`openssl rand -hex 48`): 16 octets of name, 32 of key. Empty lines
    /// and those that begin with `#` don't count.
    pub(super) fn parse(file: &PemFile<'_>) -> Result<Self, Finding> {
        let help = "each line is one key, made by: openssl rand -hex 48; the first encrypts, all decrypt";
        let mut keys: Vec<TicketKey> = Vec::new();
        for (index, line) in file.text(help)?.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |what: &str| file.error(format!("line {}: {what}", index + 1), help);
            let bytes = unhex(line).ok_or_else(|| error("a ticket key is 96 hexadecimal digits"))?;
            let (name, secret) = bytes.split_first_chunk().expect("48 octets hold a name of 16");
            if keys.iter().any(|key| key.name == *name) {
                return Err(error("this key's name, its first 32 digits, is taken by an earlier line"));
            }
            let aead = RandomizedNonceKey::new(&AES_256_GCM, secret).expect("AES-256 keys are 32 octets");
            keys.push(TicketKey { name: *name, aead });
        }
        match keys.len() {
            0 => Err(file.error("holds no ticket key", help)),
            1..=MAX_KEYS => Ok(Self { keys }),
            more => {
                Err(file.error(format!("holds {more} ticket keys, of {MAX_KEYS} allowed"), "remove the oldest ones"))
            }
        }
    }

    fn seal(&self, session: &[u8], now: UnixTime) -> Option<Vec<u8>> {
        let key = &self.keys[0];
        let mut sealed = Vec::with_capacity(session.len() + OVERHEAD);
        sealed.extend(now.as_secs().to_be_bytes());
        sealed.extend(session);
        let nonce = key.aead.seal_in_place_append_tag(Aad::from(key.name), &mut sealed).ok()?;
        let head = [&key.name[..], nonce.as_ref()].concat();
        sealed.splice(..0, head);
        Some(sealed)
    }

    fn open(&self, ticket: &[u8], now: UnixTime) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let key = self.keys.iter().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let opened = key.aead.open_in_place(Nonce::from(nonce), Aad::from(name), &mut sealed).ok()?;
        let (issued, session) = opened.split_first_chunk()?;
        // Copies' clocks differ, so a ticket from the near future is as good as one from the near past.
        (now.as_secs().abs_diff(u64::from_be_bytes(*issued)) <= u64::from(LIFETIME)).then(|| session.to_vec())
    }
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, UnixTime::now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, UnixTime::now())
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKeys({} keys)", self.keys.len())
    }
}

/// 48 octets from 96 digits.
fn unhex(digits: &str) -> Option<Zeroizing<Vec<u8>>> {
    if digits.len() != 2 * KEY_LINE || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LINE));
    for pair in 0..KEY_LINE {
        bytes.push(u8::from_str_radix(&digits[2 * pair..2 * pair + 2], 16).ok()?);
    }
    Some(bytes)
}

/// Seconds a ticket is good for, whatever the age of its key.
const LIFETIME: u32 = 12 * 60 * 60;
const NAME: usize = 16;
const NONCE: usize = 12;
const KEY_LINE: usize = NAME + 32;
const OVERHEAD: usize = NAME + NONCE + 8 + 16;
const MAX_KEYS: usize = 16;
/// Octets. Without client certificates, which forbid tickets, a session is a few hundred.
const MAX_TICKET: usize = 2048;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> Result<TicketKeys, Finding> {
        TicketKeys::parse(&PemFile::new("ticket_key_file", Path::new("t"), Zeroizing::new(text.into()))?)
    }

    fn line(octet: u8) -> String {
        format!("{octet:02x}").repeat(KEY_LINE)
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_copy_with_the_same_file_opens_the_ticket() {
        let ours = keys(&line(1)).unwrap();
        let theirs = keys(&format!("# rotated daily\n\n{}\n{}\n", line(2), line(1))).unwrap();
        let ticket = ours.seal(b"session", at(1000)).unwrap();
        assert_eq!(theirs.open(&ticket, at(1000)).unwrap(), b"session");
        let ticket = theirs.seal(b"session", at(1000)).unwrap();
        assert_eq!(ours.open(&ticket, at(1000)), None, "sealed with the first key, which we don't have");
    }

    #[test]
    fn a_ticket_ends_though_its_key_stays() {
        let keys = keys(&line(1)).unwrap();
        let ticket = keys.seal(b"session", at(100_000)).unwrap();
        assert!(keys.open(&ticket, at(100_000 + u64::from(LIFETIME))).is_some());
        assert!(keys.open(&ticket, at(100_001 + u64::from(LIFETIME))).is_none());
        assert!(keys.open(&ticket, at(100_000 - 5)).is_some(), "another copy's clock");
    }

    #[test]
    fn no_two_tickets_are_alike() {
        let keys = keys(&line(1)).unwrap();
        assert_ne!(keys.seal(b"session", at(1)), keys.seal(b"session", at(1)));
    }

    #[test]
    fn bad_files_name_the_line() {
        let too_many: String = (0..=MAX_KEYS as u8).map(|octet| line(octet) + "\n").collect();
        for (text, expected) in [
            ("# nothing\n".to_owned(), "holds no ticket key"),
            (format!("{}\nabc", line(1)), "line 2: a ticket key is 96"),
            ("zz".repeat(KEY_LINE), "line 1: a ticket key is 96"),
            (format!("{}\n{}", line(1), line(1)), "line 2: this key's name"),
            (too_many, "holds 17 ticket keys, of 16"),
        ] {
            let finding = keys(&text).map(|_| ()).unwrap_err();
            assert!(finding.message.contains(expected), "{finding}");
        }
    }

    #[test]
    fn a_file_of_octets_leads_to_the_one_of_digits() {
        let file = PemFile::new("ticket_key_file", Path::new("t"), Zeroizing::new(vec![0xff; 48])).unwrap();
        let finding = TicketKeys::parse(&file).map(|_| ()).unwrap_err();
        assert!(finding.help.contains("openssl rand -hex 48"), "{finding}");
    }

    proptest! {
        #[test]
        fn any_change_is_refused(position in 0usize..OVERHEAD + 7, bit in 0u8..8) {
            let keys = keys(&line(1)).unwrap();
            let mut ticket = keys.seal(b"session", at(1)).unwrap();
            ticket[position] ^= 1 << bit;
            prop_assert_eq!(keys.open(&ticket, at(1)), None);
        }

        #[test]
        fn any_bytes_are_survived(ticket in proptest::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert_eq!(keys(&line(1)).unwrap().open(&ticket, at(1)), None);
        }
    }
}
