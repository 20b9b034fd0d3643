//! Where PDUs end: the proxy's reader against a second one, and against itself on every prefix.

#![no_main]

use ldap3_proto::LdapCodec;
use ldaps_proxy::ldap::{Envelope, envelope};
use ldaps_proxy_fuzz::reference::{self, Found};
use libfuzzer_sys::fuzz_target;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder as _;

/// The envelope is read from the first octets of a PDU; prefixes beyond them show nothing new.
const HEAD: usize = 32;
const LIMITS: [usize; 3] = [usize::MAX, 250 * 1024, 40];

fuzz_target!(|octets: &[u8]| {
    for limit in LIMITS {
        let mut rest = octets;
        while let Some(length) = one(rest, limit) {
            rest = &rest[length..];
        }
    }
});

/// Reads one PDU; returns its length if it is whole.
fn one(octets: &[u8], limit: usize) -> Option<usize> {
    let read = envelope(octets, limit);
    match (&read, reference::message(octets, limit as u64)) {
        (Ok(Some(read)), Found::Message(expected)) => {
            let same = reference::Message {
                length: read.length as u64,
                id: read.message_id,
                tag: read.tag,
                content: (read.content_start as u64, read.content_end as u64),
            };
            assert_eq!(same, expected);
        }
        (Ok(None), Found::Incomplete) | (Err(_), Found::Malformed) => {}
        (read, expected) => panic!("{read:?} where a second reader finds {expected:?}"),
    }

    // What has been decided stays decided, whatever arrives.
    let mut decided = None;
    for end in 0..=octets.len().min(HEAD) {
        let prefix = envelope(&octets[..end], limit);
        if let Some(decided) = &decided {
            assert_eq!(&prefix, decided, "after {end} octets");
        } else if prefix != Ok(None) {
            decided = Some(prefix);
        }
    }
    if let Some(decided) = decided {
        assert_eq!(read, decided);
    }

    let read = read.ok()??;
    let pdu = octets.get(..read.length)?;
    agrees(octets, &read);
    Some(pdu.len())
}

/// Whoever reads a message here at all must see it end where we do, or requests could be smuggled.
fn agrees(octets: &[u8], read: &Envelope) {
    let mut buffer = BytesMut::from(octets);
    if let Ok(Some(message)) = LdapCodec::new(Some(1 << 20), None).decode(&mut buffer) {
        assert_eq!(octets.len() - buffer.len(), read.length);
        assert_eq!(message.msgid, i32::try_from(read.message_id).expect("below 2^31"));
    }
}
