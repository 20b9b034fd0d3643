//! What a response is and what its result says, read in place.

use super::ber::{self, Reader};
use super::frame::{Envelope, MessageId};
use super::oid;
use super::operation::OperationKind;
use super::request::Controls;
use super::result_code::ResultCode;

/// What a response PDU is (RFC 4511 §4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseKind {
    /// SearchResultEntry, §4.5.2
    Entry,
    /// SearchResultReference, §4.5.3
    Reference,
    /// IntermediateResponse, §4.13: not final.
    Intermediate,
    /// ExtendedResponse, §4.12. Samba also sends it as the final answer to any operation with an unknown critical
    /// control, so it is final whatever the request was.
    Extended,
    /// The final response to an operation of this kind.
    Final(OperationKind),
}

impl ResponseKind {
    /// The kind of response that carries this protocolOp tag octet; `None` for anything that isn't a response.
    pub const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            0x64 => Self::Entry,
            0x73 => Self::Reference,
            0x79 => Self::Intermediate,
            0x78 => Self::Extended,
            0x61 => Self::Final(OperationKind::Bind),
            0x65 => Self::Final(OperationKind::Search),
            0x67 => Self::Final(OperationKind::Modify),
            0x69 => Self::Final(OperationKind::Add),
            0x6B => Self::Final(OperationKind::Delete),
            0x6D => Self::Final(OperationKind::ModifyDn),
            0x6F => Self::Final(OperationKind::Compare),
            _ => return None,
        })
    }

    /// Whether no further response to the same request follows.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Extended | Self::Final(_))
    }
}

/// One whole response PDU, seen through its envelope.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    pdu: &'a [u8],
    envelope: Envelope,
    kind: ResponseKind,
}

/// The fields every final response shares (§4.1.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LdapResult<'a> {
    /// resultCode
    pub code: ResultCode,
    /// matchedDN
    pub matched_dn: &'a [u8],
    /// diagnosticMessage: may label logs and metrics, never decides anything (§4.1.9).
    pub diagnostic: &'a [u8],
}

impl<'a> Response<'a> {
    /// Sees `pdu`, one whole PDU, as a response; `None` if its protocolOp is not one.
    pub fn new(pdu: &'a [u8], envelope: Envelope) -> Option<Self> {
        ResponseKind::from_tag(envelope.tag).map(|kind| Self::of_kind(kind, pdu, envelope))
    }

    /// The same where its kind is known.
    #[inline]
    pub fn of_kind(kind: ResponseKind, pdu: &'a [u8], envelope: Envelope) -> Self {
        debug_assert_eq!(pdu.len(), envelope.length);
        Self { pdu, envelope, kind }
    }

    /// The octets as they were received.
    pub const fn pdu(&self) -> &'a [u8] {
        self.pdu
    }

    /// The request it answers; 0 for an unsolicited notification.
    pub const fn message_id(&self) -> MessageId {
        self.envelope.message_id
    }

    /// What it is.
    pub const fn kind(&self) -> ResponseKind {
        self.kind
    }

    /// The result code, of a final response in which it can be read, whatever follows.
    #[inline]
    pub fn code(&self) -> Option<ResultCode> {
        let mut content = self.content();
        match *content.rest() {
            _ if !self.kind.is_final() => None,
            [ber::ENUMERATED, 1, code @ 0..=0x7F, ..] => Some(ResultCode(code.into())),
            _ => content.unsigned(ber::ENUMERATED).map(ResultCode),
        }
    }

    /// The result, of a final response that can be read.
    pub fn result(&self) -> Option<LdapResult<'a>> {
        if !self.kind.is_final() {
            return None;
        }
        let mut fields = self.content();
        Some(LdapResult {
            code: ResultCode(fields.unsigned(ber::ENUMERATED)?),
            matched_dn: fields.take(ber::OCTET_STRING)?,
            diagnostic: fields.take(ber::OCTET_STRING)?,
        })
    }

    /// Whether it is a Notice of Disconnection (§4.4.1).
    pub fn is_notice_of_disconnection(&self) -> bool {
        if self.message_id() != 0 || self.kind != ResponseKind::Extended {
            return false;
        }
        let mut fields = self.content();
        std::iter::from_fn(|| fields.element())
            .any(|field| field.tag == 0x8A && field.content == oid::NOTICE_OF_DISCONNECTION.as_bytes())
    }

    /// Whether it refers the client elsewhere (§4.1.10, §4.5.3).
    pub fn has_references(&self) -> bool {
        match self.kind {
            ResponseKind::Reference => true,
            kind if kind.is_final() => {
                let mut fields = self.content();
                (0..3).all(|_| fields.element().is_some()) && fields.peek() == Some(0xA3)
            }
            _ => false,
        }
    }

    /// The envelope.
    pub const fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The controls.
    pub fn controls(&self) -> Controls<'a> {
        Controls::after(self.pdu, &self.envelope)
    }

    /// The cookie by which a paged search goes on (RFC 2696); none where this was the last page.
    pub fn paging_cookie(&self) -> Option<&'a [u8]> {
        self.controls().find_map(|control| control.paging_cookie())
    }

    fn content(&self) -> Reader<'a> {
        Reader::new(&self.pdu[self.envelope.content_start..self.envelope.content_end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ldap::envelope;

    fn response(pdu: &[u8]) -> Response<'_> {
        let envelope = envelope(pdu, usize::MAX).expect("well-formed").expect("whole");
        Response::new(pdu, envelope).expect("a response")
    }

    #[test]
    fn results() {
        let done = response(b"\x30\x0e\x02\x01\x02\x65\x09\x0a\x01\x20\x04\x01x\x04\x01y");
        let expected = LdapResult { code: ResultCode::NO_SUCH_OBJECT, matched_dn: b"x", diagnostic: b"y" };
        assert_eq!(done.result(), Some(expected));
        assert!(done.kind().is_final() && !done.is_notice_of_disconnection() && done.paging_cookie().is_none());
        assert_eq!(done.code(), Some(ResultCode::NO_SUCH_OBJECT));
        let cut_short = response(b"\x30\x0e\x02\x01\x02\x65\x09\x0a\x01\x20\x04\x01x\x04\x05y");
        assert_eq!((cut_short.result(), cut_short.code()), (None, Some(ResultCode::NO_SUCH_OBJECT)));
        // A code of two octets, as e-syncRefreshRequired has.
        let done = response(b"\x30\x0d\x02\x01\x02\x65\x08\x0a\x02\x10\x00\x04\x00\x04\x00");
        assert_eq!(done.result().map(|result| result.code), Some(ResultCode(4096)));
        let entry = response(b"\x30\x09\x02\x01\x02\x64\x04\x04\x00\x30\x00");
        assert!(!entry.kind().is_final() && entry.result().is_none() && entry.code().is_none());
    }

    #[test]
    fn notice_of_disconnection() {
        let notice = b"\x30\x24\x02\x01\x00\x78\x1f\x0a\x01\x34\x04\x00\x04\x00\x8a\x161.3.6.1.4.1.1466.20036";
        assert!(response(notice).is_notice_of_disconnection());
        let mut other = notice.to_vec();
        other[4] = 1;
        assert!(!response(&other).is_notice_of_disconnection());
    }

    #[test]
    fn paging_cookies() {
        let with = b"\x30\x2f\x02\x01\x02\x65\x07\x0a\x01\x00\x04\x00\x04\x00\xa0\x21\x30\x1f\x04\x161.2.840.113556.1.4.319\x04\x05\x30\x03\x02\x01\x00";
        // The value lacks its cookie: unreadable, so not a cookie.
        assert!(response(with).paging_cookie().is_none());
        let with = b"\x30\x32\x02\x01\x02\x65\x07\x0a\x01\x00\x04\x00\x04\x00\xa0\x24\x30\x22\x04\x161.2.840.113556.1.4.319\x04\x08\x30\x06\x02\x01\x00\x04\x01c";
        assert_eq!(response(with).paging_cookie(), Some(&b"c"[..]));
        let done = b"\x30\x31\x02\x01\x02\x65\x07\x0a\x01\x00\x04\x00\x04\x00\xa0\x23\x30\x21\x04\x161.2.840.113556.1.4.319\x04\x07\x30\x05\x02\x01\x00\x04\x00";
        assert!(response(done).paging_cookie().is_none());
    }
}
