//! What a request asks for, read in place from its octets.

use super::ber::{self, Reader};
use super::frame::{Envelope, MessageId};
use super::oid;
use super::operation::OperationKind;

/// One whole request PDU, seen through its envelope. Nothing is copied or decoded until asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pdu: &'a [u8],
    envelope: Envelope,
    kind: OperationKind,
    search: Option<SearchFields<'a>>,
}

/// Where a search's fields stand: every search is asked for them more than once.
#[derive(Debug, Clone, Copy)]
struct SearchFields<'a> {
    after_base: &'a [u8],
    /// The filter's whole element.
    filter: &'a [u8],
    /// Whether each field carries its tag.
    typed: bool,
}

impl<'a> SearchFields<'a> {
    /// `None` where the elements up to the filter can't be told apart.
    #[inline(always)]
    fn of(content: &'a [u8]) -> Option<Self> {
        const BEFORE_FILTER: [u8; 5] = [ber::ENUMERATED, ber::ENUMERATED, ber::INTEGER, ber::INTEGER, ber::BOOLEAN];
        let mut fields = Reader::new(content);
        let mut typed = fields.element()?.tag == ber::OCTET_STRING;
        let after_base = fields.rest();
        // Most have a value of one octet, limits of 0 among them.
        let are_short = |before: &[u8; 15]| {
            std::iter::zip(before.chunks_exact(3), BEFORE_FILTER).all(|(field, tag)| field[..2] == [tag, 1])
        };
        match after_base.split_first_chunk() {
            Some((before, rest)) if are_short(before) => fields = Reader::new(rest),
            _ => {
                for tag in BEFORE_FILTER {
                    typed &= fields.element()?.tag == tag;
                }
            }
        }
        let filter = fields.element()?.whole;
        typed &= fields.take(ber::SEQUENCE).is_some();
        Some(Self { after_base, filter, typed })
    }
}

impl<'a> Request<'a> {
    /// Sees `pdu`, one whole PDU, as a request; `None` if its protocolOp is not one.
    #[inline(always)]
    pub fn new(pdu: &'a [u8], envelope: Envelope) -> Option<Self> {
        debug_assert_eq!(pdu.len(), envelope.length);
        let kind = OperationKind::from_request_tag(envelope.tag)?;
        let mut request = Self { pdu, envelope, kind, search: None };
        if kind == OperationKind::Search {
            request.search = SearchFields::of(request.content());
        }
        Some(request)
    }

    /// The octets as they were received.
    pub const fn pdu(&self) -> &'a [u8] {
        self.pdu
    }

    /// Its messageID.
    pub const fn message_id(&self) -> MessageId {
        self.envelope.message_id
    }

    /// What it asks for.
    pub const fn kind(&self) -> OperationKind {
        self.kind
    }

    /// Whether anything follows the protocolOp, where the controls stand. Most requests have none.
    pub const fn has_controls(&self) -> bool {
        self.envelope.content_end < self.envelope.length
    }

    /// The controls, none where there are none or they can't be read.
    #[inline]
    pub fn controls(&self) -> Controls<'a> {
        Controls::after(self.pdu, &self.envelope)
    }

    /// The bind in it (§4.2).
    pub fn bind(&self) -> Option<BindRequest<'a>> {
        if self.kind != OperationKind::Bind {
            return None;
        }
        let mut fields = Reader::new(self.content());
        fields.take(ber::INTEGER)?;
        let name = fields.take(ber::OCTET_STRING)?;
        let authentication = fields.element()?;
        let authentication = match authentication.tag {
            0x80 => Authentication::Simple(authentication.content),
            0xA3 => {
                let mut sasl = Reader::new(authentication.content);
                Authentication::Sasl {
                    mechanism: sasl.take(ber::OCTET_STRING)?,
                    // What is there and can't be read is not the same as nothing: Samba takes lengths that LDAP forbids.
                    credentials: match sasl.peek() {
                        Some(ber::OCTET_STRING) => Some(sasl.take(ber::OCTET_STRING)?),
                        _ => None,
                    },
                }
            }
            tag => Authentication::Other(tag),
        };
        Some(BindRequest { name, authentication })
    }

    /// The search in it (§4.5.1).
    pub fn search(&self) -> Option<SearchRequest<'a>> {
        if self.kind != OperationKind::Search {
            return None;
        }
        let mut fields = Reader::new(self.content());
        Some(SearchRequest {
            base: fields.take(ber::OCTET_STRING)?,
            scope: fields.unsigned(ber::ENUMERATED)?,
            dereference_aliases: fields.unsigned(ber::ENUMERATED)?,
            size_limit: fields.unsigned(ber::INTEGER)?,
            time_limit: fields.unsigned(ber::INTEGER)?,
            types_only: fields.take(ber::BOOLEAN)? != [0],
            filter: fields.element()?.whole,
            attributes: Reader::new(fields.take(ber::SEQUENCE)?),
        })
    }

    /// The operation an Abandon names (§4.11).
    pub fn abandoned_id(&self) -> Option<MessageId> {
        if self.kind == OperationKind::Abandon { ber::unsigned(self.content()) } else { None }
    }

    /// The object identifier of an extended operation (§4.12).
    pub fn extended_name(&self) -> Option<&'a [u8]> {
        if self.kind == OperationKind::Extended { Reader::new(self.content()).take(0x80) } else { None }
    }

    /// Whether it is StartTLS (§4.14), to any backend: Samba reads an object identifier up to its first NUL.
    pub fn is_start_tls(&self) -> bool {
        self.extended_name().is_some_and(|name| until_nul(name) == oid::START_TLS.as_bytes())
    }

    /// Whether a search's filter nests and, or, not deeper than `limit`; `None` where that can't be told from octets that
    /// a backend may read all the same: Samba takes lengths that LDAP forbids.
    #[inline(always)]
    pub fn filter_is_deeper_than(&self, limit: usize) -> Option<bool> {
        let filter = self.search.as_ref()?.filter;
        if nests(*filter.first()?) { depth_exceeds(filter, limit) } else { Some(false) }
    }

    /// A search's content without its base: names of attributes stand here, in the filter and in the list. Empty where that
    /// can't be read.
    pub fn search_without_base(&self) -> &'a [u8] {
        self.search.as_ref().map_or(&[], |fields| fields.after_base)
    }

    /// The entry an update, compare or modifyDN names.
    pub fn entry(&self) -> Option<&'a [u8]> {
        match self.kind {
            OperationKind::Delete => Some(self.content()),
            OperationKind::Add | OperationKind::Modify | OperationKind::ModifyDn | OperationKind::Compare => {
                Reader::new(self.content()).take(ber::OCTET_STRING)
            }
            _ => None,
        }
    }

    /// Whether what the operation is about can be read; an unbind is about nothing.
    pub fn is_readable(&self) -> bool {
        match self.kind {
            OperationKind::Bind => self.bind().is_some(),
            OperationKind::Search => self.search.as_ref().is_some_and(|fields| fields.typed),
            OperationKind::Abandon => self.abandoned_id().is_some(),
            OperationKind::Extended => self.extended_name().is_some(),
            OperationKind::Unbind => true,
            OperationKind::Add
            | OperationKind::Modify
            | OperationKind::ModifyDn
            | OperationKind::Compare
            | OperationKind::Delete => self.entry().is_some(),
        }
    }

    /// The protocolOp's content octets.
    pub fn content(&self) -> &'a [u8] {
        &self.pdu[self.envelope.content_start..self.envelope.content_end]
    }
}

/// What Samba reads of a name or an object identifier: up to the first NUL.
pub fn until_nul(octets: &[u8]) -> &[u8] {
    octets.split(|octet| *octet == 0).next().unwrap_or_default()
}

/// A BindRequest's fields but its version, which is the backend's to judge.
#[derive(Clone, Copy)]
pub struct BindRequest<'a> {
    /// The name: a DN, a user principal name, `NETBIOS\name`, or empty.
    pub name: &'a [u8],
    /// How the client proves it.
    pub authentication: Authentication<'a>,
}

impl BindRequest<'_> {
    /// Whether it names nobody. AD takes any password with no name (RFC 4513 §5.1.1 wants none), and Samba reads names up to
    /// the first NUL.
    pub const fn is_nameless(&self) -> bool {
        matches!(self.name, [] | [0, ..])
    }
}

/// A BindRequest's AuthenticationChoice. Never printed: it holds secrets.
#[derive(Clone, Copy)]
pub enum Authentication<'a> {
    /// A password, possibly empty.
    Simple(&'a [u8]),
    /// RFC 4513 §5.2.1.3: absent and empty credentials differ.
    Sasl {
        /// The mechanism's name.
        mechanism: &'a [u8],
        /// The client's part of the exchange.
        credentials: Option<&'a [u8]>,
    },
    /// Another tag, such as Sicily's `[9]`, `[10]`, `[11]`.
    Other(u8),
}

/// A SearchRequest's fields.
#[derive(Debug, Clone, Copy)]
pub struct SearchRequest<'a> {
    /// baseObject
    pub base: &'a [u8],
    /// 0 base, 1 one level, 2 subtree
    pub scope: u32,
    /// derefAliases
    pub dereference_aliases: u32,
    /// Entries, 0 = no limit asked.
    pub size_limit: u32,
    /// Seconds, 0 = no limit asked.
    pub time_limit: u32,
    /// typesOnly
    pub types_only: bool,
    /// The filter's whole element.
    pub filter: &'a [u8],
    attributes: Reader<'a>,
}

impl<'a> SearchRequest<'a> {
    /// The attributes asked for.
    pub fn attributes(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.attributes;
        std::iter::from_fn(move || rest.take(ber::OCTET_STRING))
    }
}

/// Whether a filter's choice of this tag has filters in it.
const fn nests(tag: u8) -> bool {
    const AND: u8 = 0xA0;
    const OR: u8 = 0xA1;
    const NOT: u8 = 0xA2;
    matches!(tag, AND | OR | NOT)
}

fn depth_exceeds(filter: &[u8], limit: usize) -> Option<bool> {
    let mut open = vec![Reader::new(filter)];
    while let Some(level) = open.last_mut() {
        if level.is_empty() {
            open.pop();
            continue;
        }
        let element = level.element()?;
        if nests(element.tag) {
            if open.len() > limit {
                return Some(true);
            }
            open.push(Reader::new(element.content));
        }
    }
    Some(false)
}

/// A control (§4.1.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control<'a> {
    /// controlType, an object identifier in dotted form.
    pub oid: &'a [u8],
    /// criticality
    pub critical: bool,
    /// controlValue
    pub value: Option<&'a [u8]>,
}

impl<'a> Control<'a> {
    /// The cookie in a paged-results control's value, unless it is empty (RFC 2696: no page before, or none after).
    pub fn paging_cookie(&self) -> Option<&'a [u8]> {
        if self.oid != oid::PAGED_RESULTS.as_bytes() {
            return None;
        }
        let mut value = Reader::new(self.value?);
        let mut fields = Reader::new(value.take(ber::SEQUENCE)?);
        fields.take(ber::INTEGER)?;
        fields.take(ber::OCTET_STRING).filter(|cookie| !cookie.is_empty())
    }
}

/// Walks a PDU's controls.
#[derive(Debug, Clone, Copy)]
pub struct Controls<'a> {
    rest: Reader<'a>,
}

impl<'a> Controls<'a> {
    /// The controls that follow the protocolOp of `pdu`.
    #[inline]
    pub(super) fn after(pdu: &'a [u8], envelope: &Envelope) -> Self {
        let mut trailing = Reader::new(&pdu[envelope.content_end..]);
        Self { rest: Reader::new(trailing.take(0xA0).unwrap_or_default()) }
    }
}

impl<'a> Iterator for Controls<'a> {
    type Item = Control<'a>;

    #[inline]
    fn next(&mut self) -> Option<Control<'a>> {
        let mut fields = Reader::new(self.rest.take(ber::SEQUENCE)?);
        Some(Control {
            oid: fields.take(ber::OCTET_STRING)?,
            critical: fields.take(ber::BOOLEAN).is_some_and(|value| value != [0]),
            value: fields.take(ber::OCTET_STRING),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ldap::envelope;

    fn request(pdu: &[u8]) -> Option<Request<'_>> {
        let envelope = envelope(pdu, usize::MAX).ok()??;
        (envelope.length == pdu.len()).then(|| Request::new(pdu, envelope))?
    }

    const SEARCH: &[u8] =
        b"\x30\x47\x02\x01\x02\x63\x21\x04\x04dc=x\x0a\x01\x02\x0a\x01\x00\x02\x01\x0a\x02\x01\x05\x01\x01\xff\
        \x87\x02cn\x30\x06\x04\x01a\x04\x01b\xa0\x1f\x30\x1d\x04\x161.2.840.113556.1.4.319\x01\x01\xff\x04\x00";

    #[test]
    fn search_fields() {
        let request = request(SEARCH).expect("a request");
        let search = request.search().expect("a search");
        assert_eq!((search.base, search.scope, search.size_limit, search.time_limit), (&b"dc=x"[..], 2, 10, 5));
        assert!(search.types_only);
        assert_eq!(search.filter, b"\x87\x02cn");
        assert_eq!(search.attributes().collect::<Vec<_>>(), [b"a", b"b"]);
        let controls: Vec<_> = request.controls().collect();
        assert_eq!(controls, [Control { oid: b"1.2.840.113556.1.4.319", critical: true, value: Some(b"") }]);
        assert!(request.bind().is_none() && request.abandoned_id().is_none());
    }

    /// However the octets before the filter are changed, the short way through them finds what the long one does.
    #[test]
    fn search_fields_are_the_same_both_ways() {
        fn long_way(content: &[u8]) -> Option<(&[u8], bool)> {
            let mut fields = Reader::new(content);
            let base = fields.element()?;
            let before: Vec<_> = (0..5).map(|_| fields.element().map(|field| field.tag)).collect::<Option<_>>()?;
            let filter = fields.element()?.whole;
            let typed = base.tag == 4 && before == [0x0A, 0x0A, 2, 2, 1] && fields.take(ber::SEQUENCE).is_some();
            Some((filter, typed))
        }
        let content = &SEARCH[7..40];
        for at in 0..content.len() {
            for octet in 0..=0xFF {
                let mut content = content.to_vec();
                content[at] = octet;
                let fields = SearchFields::of(&content).map(|fields| (fields.filter, fields.typed));
                assert_eq!(fields, long_way(&content), "{content:02x?}");
            }
        }
        assert_eq!(SearchFields::of(content).map(|fields| fields.typed), Some(true));
    }

    #[test]
    fn binds() {
        let simple = request(b"\x30\x0f\x02\x01\x01\x60\x0a\x02\x01\x03\x04\x02cn\x80\x01p").and_then(|r| r.bind());
        let simple = simple.expect("a simple bind");
        assert_eq!(simple.name, b"cn");
        assert!(matches!(simple.authentication, Authentication::Simple(b"p")));
        // RFC 4513 §5.2.1.3: absent and empty SASL credentials differ.
        let absent =
            request(b"\x30\x12\x02\x01\x01\x60\x0d\x02\x01\x03\x04\x00\xa3\x06\x04\x04NTLM").and_then(|r| r.bind());
        assert!(matches!(
            absent.expect("a bind").authentication,
            Authentication::Sasl { mechanism: b"NTLM", credentials: None }
        ));
        let empty = request(b"\x30\x14\x02\x01\x01\x60\x0f\x02\x01\x03\x04\x00\xa3\x08\x04\x04NTLM\x04\x00")
            .and_then(|r| r.bind());
        assert!(matches!(
            empty.expect("a bind").authentication,
            Authentication::Sasl { mechanism: b"NTLM", credentials: Some(b"") }
        ));
        let disguised =
            request(b"\x30\x1a\x02\x01\x01\x60\x15\x02\x01\x03\x04\x00\xa3\x0e\x04\x04NTLM\x04\x85\0\0\0\0\x01x");
        assert!(disguised.expect("a request").bind().is_none(), "or its name would pass unseen");
        let sicily = request(b"\x30\x0e\x02\x01\x01\x60\x09\x02\x01\x03\x04\x00\x8a\x02xy").and_then(|r| r.bind());
        assert!(matches!(sicily.expect("a bind").authentication, Authentication::Other(0x8A)));
    }

    #[test]
    fn abandon_delete_extended() {
        let abandon = request(b"\x30\x06\x02\x01\x07\x50\x01\x03").expect("an abandon");
        assert_eq!(abandon.abandoned_id(), Some(3));
        let delete = request(b"\x30\x07\x02\x01\x07\x4a\x02cn").expect("a delete");
        assert_eq!(delete.entry(), Some(&b"cn"[..]));
        let extended = request(b"\x30\x0a\x02\x01\x07\x77\x05\x80\x031.2").expect("an extended request");
        assert_eq!(extended.extended_name(), Some(&b"1.2"[..]));
    }

    #[test]
    fn what_cannot_be_read() {
        for (pdu, readable) in [
            (SEARCH, true),
            (b"\x30\x07\x02\x01\x02\x63\x02\x04\x00", false),
            (b"\x30\x0f\x02\x01\x01\x60\x0a\x02\x01\x03\x04\x02cn\x80\x01p", true),
            (b"\x30\x07\x02\x01\x01\x60\x02\xff\xff", false),
            (b"\x30\x05\x02\x01\x01\x66\x00", false),
            (b"\x30\x05\x02\x01\x01\x77\x00", false),
            (b"\x30\x05\x02\x01\x01\x50\x00", false),
            (b"\x30\x05\x02\x01\x01\x42\x00", true),
            (b"\x30\x05\x02\x01\x01\x4a\x00", true),
        ] {
            let request = request(pdu).expect("it frames well");
            assert_eq!(request.is_readable(), readable, "{pdu:02x?}");
        }
    }

    #[test]
    fn filter_depth() {
        let nested = |depth: usize| {
            (0..depth).fold(b"\x87\x02cn".to_vec(), |inner, _| {
                let mut filter = vec![0xA2, 0x84];
                filter.extend((inner.len() as u32).to_be_bytes());
                filter.extend(inner);
                filter
            })
        };
        for (depth, limit, exceeds) in [(0, 0, false), (1, 0, true), (100, 100, false), (101, 100, true)] {
            assert_eq!(depth_exceeds(&nested(depth), limit), Some(exceeds), "{depth} in {limit}");
        }
        // Samba reads 0x80 and then a length, and five length octets; a filter in that disguise is as deep.
        for disguised in [&b"\xa2\x06\xa2\x80\x03\x87\x01a"[..], b"\xa2\x0a\xa2\x85\0\0\0\0\x03\x87\x01a"] {
            assert_eq!(depth_exceeds(disguised, 100), None, "{disguised:02x?}");
        }
    }

    /// A domain controller's worker dies of StartTLS, so it must be known in every form that Samba takes for it.
    #[test]
    fn start_tls_in_disguise() {
        let extended = |name: &[u8]| {
            let mut pdu = vec![0x30, 5 + name.len() as u8, 0x02, 0x01, 0x01, 0x77, name.len() as u8];
            pdu.extend(name);
            pdu
        };
        for (name, expected) in [
            (&b"\x80\x161.3.6.1.4.1.1466.20037"[..], true),
            (b"\x80\x171.3.6.1.4.1.1466.20037\0", true),
            (b"\x80\x191.3.6.1.4.1.1466.20037\0.1", true),
            (b"\x80\x171.3.6.1.4.1.1466.200371", false),
        ] {
            assert_eq!(request(&extended(name)).map(|request| request.is_start_tls()), Some(expected), "{name:02x?}");
        }
        for unreadable in [&b"\x80\x80\x161.3.6.1.4.1.1466.20037"[..], b"\x80\x85\0\0\0\0\x161.3.6.1.4.1.1466.20037"] {
            assert_eq!(
                request(&extended(unreadable)).and_then(|request| request.extended_name().map(<[u8]>::len)),
                None
            );
        }
    }

    proptest! {
        /// Whatever stands inside a well-formed envelope, reading it neither panics nor leaves the PDU.
        #[test]
        fn hostile_contents(tag in prop::sample::select(vec![0x60_u8, 0x42, 0x63, 0x66, 0x68, 0x4A, 0x6C, 0x6E, 0x50, 0x77]),
                            body in prop::collection::vec(any::<u8>(), 0..100), controls in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut pdu = vec![0x30, (5 + body.len() + controls.len()) as u8, 0x02, 0x01, 0x01, tag, body.len() as u8];
            pdu.extend(&body);
            pdu.extend(&controls);
            let request = request(&pdu).expect("well-formed");
            let _ = (request.bind().is_some(), request.abandoned_id(), request.extended_name(), request.entry());
            prop_assert!(request.controls().count() <= 20);
            prop_assert!(request.has_controls() || request.controls().next().is_none());
            if let Some(search) = request.search() {
                prop_assert!(search.attributes().count() <= body.len());
            }
            let _ = request.filter_is_deeper_than(3);
        }
    }
}
