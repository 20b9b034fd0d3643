//! PDUs made from a few octets of the fuzzer's.

use ldaps_proxy::ldap::{OperationKind, oid};

/// A request: `kind` says which, `flavour` which variety of it.
pub fn request(kind: u8, id: u8, flavour: u8) -> Vec<u8> {
    let bind = |name: &[u8], authentication: Vec<u8>| {
        element(0x60, &[&[0x02, 1, 3][..], &element(0x04, name), &authentication].concat())
    };
    let sasl = |mechanism: &[u8]| element(0xA3, &[element(0x04, mechanism), element(0x04, &[flavour])].concat());
    let plain = || search(b"cn", &[]);
    let (operation, controls) = match kind % 16 {
        0 => (bind(b"cn=ann,dc=x", element(0x80, &[b'p', flavour % 2])), vec![]),
        1 => (bind(b"", element(0x80, b"")), vec![]),
        2 => (bind(b"cn=ann,dc=x", element(0x80, b"")), vec![]),
        3 => (bind(b"", sasl([&b"GSS-SPNEGO"[..], b"GSSAPI", b"EXTERNAL"][usize::from(flavour) % 3])), vec![]),
        4 => (bind(b"ann", element(0x80 | (0x0A + flavour % 2), b"NTLM")), vec![]),
        5 => (plain(), vec![]),
        6 => (plain(), control(oid::PAGED_RESULTS, &page(flavour))),
        7 => match flavour % 6 {
            0 => (search(b"uSNChanged", &[]), vec![]),
            1 => (plain(), control(oid::VIRTUAL_LIST_VIEW, b"")),
            2 => (plain(), control(oid::DIR_SYNC, b"")),
            3 => (plain(), control(oid::NOTIFICATION, b"")),
            4 => (plain(), control("1.2.3.4", b"")),
            _ => (search(b"cn", &[0xA2; 8]), vec![]),
        },
        8 => (element(0x6E, &[element(0x04, b"dc=x"), element(0x30, b"\x04\x02cn\x04\x01v")].concat()), vec![]),
        9 => (element(0x66, &[element(0x04, b"dc=x"), element(0x30, b"")].concat()), vec![]),
        10 => (element(0x68, &[element(0x04, b"cn=n,dc=x"), element(0x30, b"")].concat()), vec![]),
        11 => (element(0x4A, b"cn=n,dc=x"), vec![]),
        12 => (element(0x6C, b"\x04\x04dc=x\x04\x04dc=y\x01\x01\xFF"), vec![]),
        13 => (element(0x50, &[flavour]), vec![]),
        14 => {
            let named = |oid: &str| element(0x80, oid.as_bytes());
            let name = match flavour % 7 {
                0 => named(oid::WHO_AM_I),
                1 => named(oid::PASSWORD_MODIFY),
                2 => named("1.2.3"),
                3 => named(oid::START_TLS),
                // The same to Samba, which reads up to a NUL and takes 0x80 for one length octet.
                4 => named(&format!("{}\0", oid::START_TLS)),
                5 => [&[0x80, 0x80][..], &named(oid::START_TLS)[1..]].concat(),
                _ => vec![],
            };
            (element(0x77, &name), vec![])
        }
        _ => (element(0x42, b""), vec![]),
    };
    message(id.into(), &operation, &controls)
}

/// A final response to an operation of this kind.
pub fn done(id: u32, kind: OperationKind, code: u8, referral: bool) -> Vec<u8> {
    message(id, &element(final_tag(kind), &result(code, referral)), &[])
}

/// A search's final response with a cookie for the next page.
pub fn page_done(id: u32, cookie: u8) -> Vec<u8> {
    message(id, &element(0x65, &result(0, false)), &control(oid::PAGED_RESULTS, &page(cookie)))
}

/// An ExtendedResponse, with this name if there is one.
pub fn extended(id: u32, code: u8, name: &str) -> Vec<u8> {
    let name = if name.is_empty() { vec![] } else { element(0x8A, name.as_bytes()) };
    message(id, &element(0x78, &[result(code, false), name].concat()), &[])
}

/// An entry with a value of this size.
pub fn entry(id: u32, size: usize) -> Vec<u8> {
    let value = element(0x31, &element(0x04, &vec![b'v'; size]));
    let attribute = element(0x30, &[element(0x04, b"cn"), value].concat());
    message(id, &element(0x64, &[element(0x04, b"dc=x"), element(0x30, &attribute)].concat()), &[])
}

/// A reference to the backend's own host.
pub fn reference(id: u32) -> Vec<u8> {
    message(id, &element(0x73, &element(0x04, b"ldap://127.0.0.1/dc=y")), &[])
}

/// An intermediate response.
pub fn intermediate(id: u32) -> Vec<u8> {
    message(id, &element(0x79, b"\x80\x031.2"), &[])
}

fn search(attribute: &[u8], nesting: &[u8]) -> Vec<u8> {
    let filter = nesting.iter().fold(element(0x87, attribute), |inner, tag| element(*tag, &inner));
    let head = b"\x04\x04dc=x\x0A\x01\x02\x0A\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00";
    element(0x63, &[&head[..], &filter, b"\x30\x00"].concat())
}

fn page(cookie: u8) -> Vec<u8> {
    // An even octet is the empty cookie: the first page, or the last.
    let cookie = if cookie % 2 == 0 { vec![] } else { vec![cookie] };
    element(0x30, &[&b"\x02\x01\x0A"[..], &element(0x04, &cookie)].concat())
}

fn control(oid: &str, value: &[u8]) -> Vec<u8> {
    let fields = [element(0x04, oid.as_bytes()), element(0x01, &[0xFF]), element(0x04, value)].concat();
    element(0xA0, &element(0x30, &fields))
}

fn result(code: u8, referral: bool) -> Vec<u8> {
    let referral = if referral { element(0xA3, &element(0x04, b"ldap://corp.example.com/dc=y")) } else { vec![] };
    [&[0x0A, 1, code & 0x7F][..], b"\x04\x00\x04\x00", &referral].concat()
}

fn final_tag(kind: OperationKind) -> u8 {
    match kind {
        OperationKind::Bind => 0x61,
        OperationKind::Search => 0x65,
        OperationKind::Modify => 0x67,
        OperationKind::Add => 0x69,
        OperationKind::Delete => 0x6B,
        OperationKind::ModifyDn => 0x6D,
        OperationKind::Compare => 0x6F,
        OperationKind::Extended | OperationKind::Abandon | OperationKind::Unbind => 0x78,
    }
}

fn message(id: u32, operation: &[u8], controls: &[u8]) -> Vec<u8> {
    element(0x30, &[&element(0x02, &id.to_be_bytes()), operation, controls].concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut element = vec![tag];
    match content.len() {
        length @ ..0x80 => element.push(length as u8),
        length => {
            element.push(0x84);
            element.extend((length as u32).to_be_bytes());
        }
    }
    element.extend(content);
    element
}
