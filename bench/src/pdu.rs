//! The few LDAP PDUs a bench needs (RFC 4511): built once, stamped with a messageID per use, framed by their length.

use std::io;

/// Protocol operation tags (RFC 4511 §4.2–4.12).
pub mod tag {
    pub const BIND_REQUEST: u8 = 0x60;
    pub const BIND_RESPONSE: u8 = 0x61;
    pub const UNBIND_REQUEST: u8 = 0x42;
    pub const SEARCH_REQUEST: u8 = 0x63;
    pub const SEARCH_ENTRY: u8 = 0x64;
    pub const SEARCH_DONE: u8 = 0x65;
    pub const MODIFY_REQUEST: u8 = 0x66;
    pub const MODIFY_RESPONSE: u8 = 0x67;
    pub const ADD_REQUEST: u8 = 0x68;
    pub const ADD_RESPONSE: u8 = 0x69;
    pub const DELETE_REQUEST: u8 = 0x4a;
    pub const DELETE_RESPONSE: u8 = 0x6b;
    pub const MODIFY_DN_REQUEST: u8 = 0x6c;
    pub const MODIFY_DN_RESPONSE: u8 = 0x6d;
    pub const COMPARE_REQUEST: u8 = 0x6e;
    pub const COMPARE_RESPONSE: u8 = 0x6f;
    pub const ABANDON_REQUEST: u8 = 0x50;
    pub const EXTENDED_REQUEST: u8 = 0x77;
    pub const EXTENDED_RESPONSE: u8 = 0x78;
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// Distinct messageIDs one session cycles through: two octets each, 0x4000 to 0x7fff, far more than it has in flight.
pub const MESSAGE_IDS: u16 = 0x4000;

/// The `n`th messageID of a session.
pub fn message_id(n: u64) -> [u8; 2] {
    (MESSAGE_IDS | (n % u64::from(MESSAGE_IDS)) as u16).to_be_bytes()
}

/// One whole message at the start of a buffer.
#[derive(Debug, PartialEq)]
pub struct Frame<'a> {
    /// Octets of the whole message.
    pub len: usize,
    /// Content octets of the messageID.
    pub id: &'a [u8],
    /// Tag of the protocol operation.
    pub tag: u8,
    /// Content of the protocol operation.
    pub body: &'a [u8],
}

/// The first message in `input`, or `None` until all of it is there.
pub fn frame(input: &[u8]) -> io::Result<Option<Frame<'_>>> {
    let Some((message, rest)) = element(input)? else { return Ok(None) };
    let (id, after_id) = element(message.content)?.ok_or_else(|| malformed("messageID"))?;
    let (operation, _) = element(after_id)?.ok_or_else(|| malformed("operation"))?;
    if message.tag != SEQUENCE || id.tag != INTEGER {
        return Err(malformed("envelope"));
    }
    Ok(Some(Frame { len: input.len() - rest.len(), id: id.content, tag: operation.tag, body: operation.content }))
}

/// The result code of a final response's body (RFC 4511 §4.1.9).
pub fn result_code(body: &[u8]) -> io::Result<u8> {
    match body {
        [ENUMERATED, 1, code, ..] => Ok(*code),
        _ => Err(malformed("result")),
    }
}

/// The base object of a search request's body (RFC 4511 §4.5.1).
pub fn search_base(body: &[u8]) -> io::Result<&[u8]> {
    match element(body)? {
        Some((base, _)) if base.tag == OCTET_STRING => Ok(base.content),
        _ => Err(malformed("search base")),
    }
}

/// Messages built once for one messageID length, stamped with a messageID before each use.
pub struct Template {
    bytes: Vec<u8>,
    id_len: usize,
    ids_at: Vec<usize>,
}

impl Template {
    /// The messages that carry `operations` (whole elements), for messageIDs of `id_len` octets.
    pub fn new(operations: &[Vec<u8>], id_len: usize) -> Self {
        let mut template = Self { bytes: Vec::new(), id_len, ids_at: Vec::new() };
        for operation in operations {
            let id = tlv(INTEGER, &vec![0; id_len]);
            let message = tlv(SEQUENCE, &[id.as_slice(), operation].concat());
            template.ids_at.push(template.bytes.len() + message.len() - operation.len() - id_len);
            template.bytes.extend(message);
        }
        template
    }

    /// The messages, all with this messageID, which must have the length given to [`Template::new`].
    pub fn stamp(&mut self, id: &[u8]) -> &[u8] {
        for &at in &self.ids_at {
            self.bytes[at..at + self.id_len].copy_from_slice(id);
        }
        &self.bytes
    }
}

/// A simple bind (RFC 4511 §4.2).
pub fn bind_request() -> Vec<u8> {
    let version = tlv(INTEGER, &[3]);
    let name = octets("cn=bench,dc=bench");
    let password = tlv(0x80, b"bench-password");
    tlv(tag::BIND_REQUEST, &[version, name, password].concat())
}

/// A subtree search below `base` for one account, as applications ask Active Directory (RFC 4511 §4.5.1).
pub fn search_request(base: &str) -> Vec<u8> {
    let scope_and_aliases = [ENUMERATED, 1, 2, ENUMERATED, 1, 0];
    let limits_and_types_only = [INTEGER, 1, 0, INTEGER, 1, 0, 0x01, 1, 0];
    let filter = tlv(0xa3, &[octets("sAMAccountName"), octets("administrator")].concat());
    let attributes = tlv(SEQUENCE, &[octets("cn"), octets("description")].concat());
    let base = octets(base);
    tlv(tag::SEARCH_REQUEST, &[&base, &scope_and_aliases[..], &limits_and_types_only, &filter, &attributes].concat())
}

/// An add with one value of `size` octets (RFC 4511 §4.7).
pub fn add_request(size: usize) -> Vec<u8> {
    let attributes = tlv(SEQUENCE, &attribute("jpegPhoto", &vec![b'x'; size]));
    tlv(tag::ADD_REQUEST, &[octets("cn=new,dc=bench"), attributes].concat())
}

/// A modify that replaces one value by `size` octets (RFC 4511 §4.6).
pub fn modify_request(size: usize) -> Vec<u8> {
    let replace = tlv(ENUMERATED, &[2]);
    let change = tlv(SEQUENCE, &[replace, attribute("jpegPhoto", &vec![b'x'; size])].concat());
    tlv(tag::MODIFY_REQUEST, &[octets("cn=old,dc=bench"), tlv(SEQUENCE, &change)].concat())
}

/// An unbind (RFC 4511 §4.3).
pub fn unbind_request() -> Vec<u8> {
    vec![tag::UNBIND_REQUEST, 0]
}

/// A search result entry (RFC 4511 §4.5.2).
pub fn entry(dn: &str, attributes: &[(&str, &[u8])]) -> Vec<u8> {
    let attributes: Vec<u8> = attributes.iter().flat_map(|(name, value)| attribute(name, value)).collect();
    tlv(tag::SEARCH_ENTRY, &[octets(dn), tlv(SEQUENCE, &attributes)].concat())
}

/// A response that is only a result (RFC 4511 §4.1.9).
pub fn result(tag: u8, code: u8) -> Vec<u8> {
    tlv(tag, &[&[ENUMERATED, 1, code][..], &octets(""), &octets("")].concat())
}

fn attribute(name: &str, value: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[octets(name), tlv(SET, &tlv(OCTET_STRING, value))].concat())
}

fn octets(text: &str) -> Vec<u8> {
    tlv(OCTET_STRING, text.as_bytes())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    if content.len() < 0x80 {
        out.push(content.len() as u8);
    } else {
        let length = content.len().to_be_bytes();
        let significant = &length[length.iter().take_while(|&&octet| octet == 0).count()..];
        out.push(0x80 | significant.len() as u8);
        out.extend(significant);
    }
    out.extend(content);
    out
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
}

fn element(input: &[u8]) -> io::Result<Option<(Element<'_>, &[u8])>> {
    let [tag, first, rest @ ..] = input else { return Ok(None) };
    let (len, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let octets = usize::from(first & 0x7f);
        if !(1..=4).contains(&octets) {
            return Err(malformed("length"));
        }
        let Some((length, rest)) = rest.split_at_checked(octets) else { return Ok(None) };
        (length.iter().fold(0, |len, &octet| len << 8 | usize::from(octet)), rest)
    };
    Ok(rest.split_at_checked(len).map(|(content, rest)| (Element { tag: *tag, content }, rest)))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed LDAP message: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_what_templates_build() {
        for size in [0, 1, 100, 127, 128, 255, 256, 70_000] {
            let mut template = Template::new(&[add_request(size), result(tag::ADD_RESPONSE, 68)], 2);
            let bytes = template.stamp(&message_id(5)).to_vec();
            let first = frame(&bytes).expect("well formed").expect("whole");
            assert_eq!((first.id, first.tag), (&[0x40, 5][..], tag::ADD_REQUEST));
            assert!(first.body.len() > size);
            let second = frame(&bytes[first.len..]).expect("well formed").expect("whole");
            assert_eq!((second.id, second.tag), (&[0x40, 5][..], tag::ADD_RESPONSE));
            assert_eq!(result_code(second.body).expect("a result"), 68);
            assert_eq!(first.len + second.len, bytes.len());
        }
    }

    #[test]
    fn waits_for_the_last_octet() {
        let bytes = Template::new(&[search_request("ou=1x500,dc=bench")], 1).stamp(&[7]).to_vec();
        for cut in 0..bytes.len() {
            assert_eq!(frame(&bytes[..cut]).expect("well formed so far"), None, "cut at {cut}");
        }
        let whole = frame(&bytes).expect("well formed").expect("whole");
        assert_eq!(search_base(whole.body).expect("a base"), b"ou=1x500,dc=bench");
    }

    #[test]
    fn refuses_what_is_not_ldap() {
        assert!(frame(b"0\x05\x02\x01\x01B\x80").is_err(), "indefinite length");
        assert!(frame(b"0\x02\x02\x01").is_err(), "a messageID longer than its message");
        assert!(frame(b"\x15\x05\x02\x01\x01B\x00").is_err(), "not a SEQUENCE");
    }

    #[test]
    fn message_ids_stay_two_minimal_octets() {
        assert_eq!(message_id(0), [0x40, 0]);
        assert_eq!(message_id(u64::from(MESSAGE_IDS) - 1), [0x7f, 0xff]);
        assert_eq!(message_id(u64::from(MESSAGE_IDS)), message_id(0));
    }
}
