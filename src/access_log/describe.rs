//! What a request asks for, in words: what an operator needs, no secret, bounded. Pure.

use std::borrow::Cow;

use super::filter::filter_text;
use super::record::Described;
use crate::ldap::{Authentication, OperationKind, Request};

const MAX_NAME_BYTES: usize = 1024;
const MAX_LIST: usize = 50;

/// Describes a request. Passwords, credentials and the values of updates are never part of it; `redact` leaves the
/// values of filters out as well.
pub(super) fn describe<'a>(request: &Request<'a>, redact: bool) -> Described<'a> {
    let mut described = Described {
        dn: request.entry().map(text),
        oid: request.extended_name().map(text),
        abandons: request.abandoned_id(),
        controls: request
            .controls()
            .take(MAX_LIST)
            .map(|control| if control.critical { format!("!{}", text(control.oid)).into() } else { text(control.oid) })
            .collect(),
        ..Described::default()
    };
    match request.kind() {
        OperationKind::Search => {
            if let Some(search) = request.search() {
                described.dn = Some(text(search.base));
                described.scope = ["base", "one", "sub"].get(search.scope as usize).copied();
                described.filter = Some(filter_text(search.filter, redact));
                described.attributes = search.attributes().take(MAX_LIST).map(text).collect();
                described.size_limit = search.size_limit;
                described.time_limit = search.time_limit;
            }
        }
        OperationKind::Bind => {
            if let Some(bind) = request.bind() {
                described.dn = Some(text(bind.name));
                described.mechanism = Some(match bind.authentication {
                    Authentication::Simple(_) => "simple".into(),
                    Authentication::Sasl { mechanism, .. } => text(mechanism),
                    Authentication::Other(_) => "other".into(),
                });
            }
        }
        _ => {}
    }
    described
}

fn text(octets: &[u8]) -> Cow<'_, str> {
    let mut text = String::from_utf8_lossy(&octets[..octets.len().min(MAX_NAME_BYTES)]);
    if octets.len() > MAX_NAME_BYTES {
        text.to_mut().push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ldap::envelope;

    fn described(pdu: &[u8]) -> Option<Described<'_>> {
        let envelope = envelope(pdu, usize::MAX).ok()?.filter(|envelope| envelope.length == pdu.len())?;
        Some(describe(&Request::new(pdu, envelope)?, true))
    }

    #[test]
    fn a_search_is_described_without_its_values() {
        let search = b"\x30\x4d\x02\x01\x02\x63\x27\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x0a\x02\x01\x05\x01\x01\xff\
            \xa3\x08\x04\x02cn\x04\x02jd\x30\x06\x04\x01a\x04\x01b\xa0\x1f\x30\x1d\x04\x161.2.840.113556.1.4.319\x01\x01\xff\x04\x00";
        let described = described(search).expect("a search");
        let expected = Described {
            dn: Some("dc=x".into()),
            scope: Some("sub"),
            filter: Some("(cn=?)".into()),
            attributes: vec!["a".into(), "b".into()],
            size_limit: 10,
            time_limit: 5,
            controls: vec!["!1.2.840.113556.1.4.319".into()],
            ..Described::default()
        };
        assert_eq!(described, expected);
    }

    #[test]
    fn a_bind_is_described_without_its_password() {
        let bind = b"\x30\x14\x02\x01\x01\x60\x0f\x02\x01\x03\x04\x02cn\x80\x06sEcReT";
        let described = described(bind).expect("a bind");
        assert_eq!((described.dn.as_deref(), described.mechanism.as_deref()), (Some("cn"), Some("simple")));
        assert!(!format!("{described:?}").contains("sEcReT"));
    }

    #[test]
    fn updates_name_their_entry_and_abandons_their_operation() {
        assert_eq!(described(b"\x30\x09\x02\x01\x03\x4a\x04dc=x").and_then(|delete| delete.dn), Some("dc=x".into()));
        assert_eq!(described(b"\x30\x06\x02\x01\x04\x50\x01\x03").and_then(|abandon| abandon.abandons), Some(3));
    }

    proptest! {
        #[test]
        fn any_request_can_be_described(tag in prop::sample::select(vec![0x60_u8, 0x63, 0x66, 0x68, 0x4A, 0x6C, 0x6E, 0x50, 0x77]), content in prop::collection::vec(any::<u8>(), 0..100)) {
            let length = u8::try_from(content.len()).expect("at most 100");
            let pdu = [&[0x30, length + 5, 2, 1, 1, tag, length], content.as_slice()].concat();
            described(&pdu);
        }
    }
}
