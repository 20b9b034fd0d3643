//! The requests probes send.

use ldap3_proto::proto::{LdapDerefAliases, LdapOp, LdapSearchRequest};
use ldap3_proto::{LdapFilter, LdapSearchScope};
use zeroize::Zeroizing;

use crate::ldap::reply::encode;
use crate::ldap::{MessageId, ber};

/// What a probe looks for.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub base: String,
    pub scope: LdapSearchScope,
    pub filter: LdapFilter,
    /// `1.1` asks for none (RFC 4511 §4.5.1.8).
    pub attributes: Vec<String>,
    /// 0 = all.
    pub size_limit: usize,
}

impl Search {
    /// The rootDSE with these attributes, or with none.
    pub(super) fn root_dse(attributes: impl IntoIterator<Item = String>) -> Self {
        let mut attributes: Vec<_> = attributes.into_iter().collect();
        if attributes.is_empty() {
            attributes.push("1.1".to_owned());
        }
        Self {
            base: String::new(),
            scope: LdapSearchScope::Base,
            filter: LdapFilter::Present("objectClass".to_owned()),
            attributes,
            size_limit: 0,
        }
    }

    /// The PDU.
    pub(super) fn encode(&self, id: MessageId) -> Vec<u8> {
        encode(
            id,
            LdapOp::SearchRequest(LdapSearchRequest {
                base: self.base.clone(),
                scope: self.scope.clone(),
                aliases: LdapDerefAliases::Never,
                sizelimit: i32::try_from(self.size_limit).unwrap_or(i32::MAX),
                timelimit: 0,
                typesonly: false,
                filter: self.filter.clone(),
                attrs: self.attributes.clone(),
            }),
        )
    }
}

/// The PDU of a simple bind. Ours and not `ldap3_proto`'s: that keeps the password in a `String` it leaves in memory.
pub(super) fn bind(id: MessageId, name: &str, password: &[u8]) -> Zeroizing<Vec<u8>> {
    const BIND_REQUEST: u8 = 0x60;
    const SIMPLE: u8 = 0x80;
    let version = [ber::INTEGER, 1, 3];
    let name = element(ber::OCTET_STRING, &[name.as_bytes()]);
    let password = element(SIMPLE, &[password]);
    let bind = element(BIND_REQUEST, &[&version, &name, &password]);
    element(ber::SEQUENCE, &[&element(ber::INTEGER, &[&id.to_be_bytes()]), &bind])
}

/// The PDU of an unbind.
pub(super) fn unbind(id: MessageId) -> Vec<u8> {
    encode(id, LdapOp::UnbindRequest)
}

/// A BER element with a length of the 4-octet form, which RFC 4511 §5.1 allows and every server takes. Its capacity is
/// exact, so that no unerased copy is left behind by growing.
fn element(tag: u8, content: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut element = Zeroizing::new(Vec::with_capacity(length + 6));
    element.extend([tag, 0x84]);
    let length = u32::try_from(length).expect("names and passwords are read from files of a few octets");
    element.extend(length.to_be_bytes());
    content.iter().for_each(|part| element.extend(*part));
    element
}

#[cfg(test)]
mod tests {
    use ldap3_proto::proto::{LdapBindCred, LdapBindRequest};
    use ldap3_proto::{LdapCodec, LdapMsg};
    use proptest::prelude::*;
    use tokio_util::bytes::BytesMut;
    use tokio_util::codec::Decoder as _;

    use super::*;

    fn decode(pdu: &[u8]) -> LdapMsg {
        LdapCodec::default().decode(&mut BytesMut::from(pdu)).expect("well-formed").expect("whole")
    }

    proptest! {
        #[test]
        fn binds_say_what_they_should(id in 1_u32..=0x7FFF_FFFF, name in ".{0,300}", password in ".{0,300}") {
            let message = decode(&bind(id, &name, password.as_bytes()));
            prop_assert_eq!(message.msgid, id as i32);
            let LdapOp::BindRequest(LdapBindRequest { version, dn, cred }) = message.op else {
                panic!("{:?}", message.op)
            };
            prop_assert_eq!((version, dn), (3, name));
            prop_assert!(cred == LdapBindCred::Simple(password));
        }
    }

    #[test]
    fn searches_and_unbinds() {
        let message = decode(&Search::root_dse([]).encode(7));
        let LdapOp::SearchRequest(search) = message.op else { panic!("{:?}", message.op) };
        assert_eq!((message.msgid, search.base.as_str(), search.attrs), (7, "", vec!["1.1".to_owned()]));
        assert_eq!(decode(&unbind(8)), LdapMsg::new(8, LdapOp::UnbindRequest));
    }
}
