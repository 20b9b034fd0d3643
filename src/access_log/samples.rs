//! Requests for tests.

use crate::ldap::{Request, envelope};

pub const SEARCH: &[u8] =
    b"\x30\x2a\x02\x01\x03\x63\x25\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\
    \xa3\x08\x04\x02cn\x04\x02jd\x30\x04\x04\x02cn";

/// With all that a search may have.
pub const FULL_SEARCH: &[u8] =
    b"\x30\x4d\x02\x01\x02\x63\x27\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x0a\x02\x01\x05\x01\x01\xff\
    \xa3\x08\x04\x02cn\x04\x02jd\x30\x06\x04\x01a\x04\x01b\xa0\x1f\x30\x1d\x04\x161.2.840.113556.1.4.319\x01\x01\xff\x04\x00";

pub const BIND: &[u8] = b"\x30\x14\x02\x01\x01\x60\x0f\x02\x01\x03\x04\x02cn\x80\x06sEcReT";
pub const EXTENDED: &[u8] = b"\x30\x0a\x02\x01\x07\x77\x05\x80\x031.2";
pub const ABANDON: &[u8] = b"\x30\x06\x02\x01\x04\x50\x01\x02";

pub fn delete(dn: &[u8]) -> Vec<u8> {
    let length = u8::try_from(dn.len()).expect("short");
    [&[0x30, length + 5, 2, 1, 1, 0x4A, length], dn].concat()
}

pub fn request(pdu: &[u8]) -> Request<'_> {
    let envelope = envelope(pdu, usize::MAX).expect("well-formed").expect("whole");
    Request::new(pdu, envelope).expect("a request")
}
