//! Where a PDU ends, and what its envelope says: outer length, messageID, operation tag.
//!
//! The rules are at least as strict as any backend's about where a PDU ends, so that no request can be smuggled in
//! another's bytes (RFC 4511 §5.1, §4.1.1): the outer tag is 0x30, lengths are definite with at most four octets after
//! the first, the messageID is an INTEGER of 1–4 octets in 0..2³¹, and the operation stays inside its envelope.
//! What the operation holds is the backend's to judge.

use std::fmt;

use super::ber::{self, LengthError};

/// A messageID, 0..2³¹ (RFC 4511 §4.1.1.1). 0 belongs to unsolicited notifications.
pub type MessageId = u32;

/// What the first octets of a PDU say of it. Offsets count from the PDU's first octet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// Octets of the whole PDU.
    pub length: usize,
    /// The messageID.
    pub message_id: MessageId,
    /// The protocolOp's tag octet.
    pub tag: u8,
    /// Where the protocolOp's content starts.
    pub content_start: usize,
    /// Where the protocolOp ends; controls may follow up to `length`.
    pub content_end: usize,
}

/// Why bytes are not the beginning of a PDU the proxy lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The first octet is not a SEQUENCE's.
    NotASequence(u8),
    /// Length octets that LDAP forbids.
    Length(LengthError),
    /// The PDU announces more octets than allowed.
    TooLarge {
        /// Octets announced, header included.
        length: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// No messageID of 1–4 octets in 0..2³¹ where one belongs.
    MessageId,
    /// An element inside overruns the PDU.
    Overrun,
    /// The protocolOp's tag octet is not one of a request's.
    NotARequest(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASequence(tag) => write!(f, "an LDAP message begins with 0x30, not 0x{tag:02x}"),
            Self::Length(LengthError::Indefinite) => f.write_str("indefinite lengths are not allowed in LDAP"),
            Self::Length(LengthError::TooLong) => f.write_str("a length of more than four octets"),
            Self::TooLarge { length, limit } => write!(f, "a message of {length} octets, {limit} are allowed"),
            Self::MessageId => f.write_str("the messageID is not an INTEGER in 0..2147483647"),
            Self::Overrun => f.write_str("an element is longer than the message around it"),
            Self::NotARequest(tag) => write!(f, "0x{tag:02x} is not the tag of an LDAP request"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Reads the envelope of the PDU that `bytes` begin with; `None` while too little is there to tell.
///
/// Reads at most 26 octets and allocates nothing. `limit` is checked as soon as the outer length is known. The body may
/// still be incomplete: the PDU is whole once `bytes` hold [`Envelope::length`] octets.
#[inline(always)]
pub fn envelope(bytes: &[u8], limit: usize) -> Result<Option<Envelope>, FrameError> {
    match sound_envelope(bytes) {
        Some(envelope) if envelope.length <= limit => Ok(Some(envelope)),
        _ => why_not(bytes, limit).map(|()| None),
    }
}

/// The envelope if all of it is there and nothing is wrong with it. Read three times an operation, and inline with no reasons
/// given: what is returned through memory in small pieces and read in larger ones makes the processor wait.
#[inline(always)]
fn sound_envelope(bytes: &[u8]) -> Option<Envelope> {
    let outer = ber::header(bytes).ok()??;
    let length = outer.octets.checked_add(outer.length)?;
    let inside = bytes.get(outer.octets..)?;
    let (id_octets, message_id) = match *inside {
        [ber::INTEGER, 1, a @ 0..=0x7F, ..] => (3, u32::from(a)),
        [ber::INTEGER, 2, a @ 0..=0x7F, b, ..] => (4, u32::from_be_bytes([0, 0, a, b])),
        [ber::INTEGER, 3, a @ 0..=0x7F, b, c, ..] => (5, u32::from_be_bytes([0, a, b, c])),
        [ber::INTEGER, 4, a @ 0..=0x7F, b, c, d, ..] => (6, u32::from_be_bytes([a, b, c, d])),
        _ => long_winded_id(inside)?,
    };
    let operation = ber::header(inside.get(id_octets..)?).ok()??;
    let content_start = outer.octets + id_octets + operation.octets;
    let content_end = content_start.checked_add(operation.length)?;
    let is_sound = outer.tag == ber::SEQUENCE && content_end <= length;
    is_sound.then_some(Envelope { length, message_id, tag: operation.tag, content_start, content_end })
}

/// The octets of the messageID's element and its value, where it isn't written in the shortest way, if it is one at all.
#[cold]
fn long_winded_id(bytes: &[u8]) -> Option<(usize, MessageId)> {
    let header = ber::header(bytes).ok()??;
    let end = header.octets.checked_add(header.length)?;
    let octets = bytes.get(header.octets..end)?;
    let is_id = header.tag == ber::INTEGER && !octets.is_empty();
    is_id.then(|| ber::unsigned(octets)).flatten().map(|id| (end, id))
}

/// Why there is no envelope yet, or none at all: `Ok` while too little has arrived to tell.
#[cold]
fn why_not(bytes: &[u8], limit: usize) -> Result<(), FrameError> {
    match bytes.first() {
        None => return Ok(()),
        Some(&ber::SEQUENCE) => {}
        Some(&other) => return Err(FrameError::NotASequence(other)),
    }
    let Some(outer) = ber::header(bytes).map_err(FrameError::Length)? else { return Ok(()) };
    let length = outer.octets.saturating_add(outer.length);
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    if outer.length == 0 {
        return Err(FrameError::MessageId);
    }
    let message = Message { arrived: &bytes[..bytes.len().min(length)], length };

    let Some(id) = message.element(outer.octets)? else { return Ok(()) };
    if id.tag != ber::INTEGER || !(1..=4).contains(&(id.end - id.start)) {
        return Err(FrameError::MessageId);
    }
    let Some(octets) = message.arrived.get(id.start..id.end) else { return Ok(()) };
    ber::unsigned(octets).ok_or(FrameError::MessageId)?;
    message.element(id.end).map(|_| ())
}

/// A message of known length, of which a part has arrived.
struct Message<'a> {
    arrived: &'a [u8],
    length: usize,
}

struct Span {
    tag: u8,
    start: usize,
    end: usize,
}

impl Message<'_> {
    /// The element at `at`, whose content need not have arrived but must end inside the message.
    fn element(&self, at: usize) -> Result<Option<Span>, FrameError> {
        let header = ber::header(self.arrived.get(at..).unwrap_or_default()).map_err(FrameError::Length)?;
        let Some(ber::Header { tag, octets, length }) = header else {
            return if self.arrived.len() == self.length { Err(FrameError::Overrun) } else { Ok(None) };
        };
        let start = at + octets;
        match start.checked_add(length) {
            Some(end) if end <= self.length => Ok(Some(Span { tag, start, end })),
            _ => Err(FrameError::Overrun),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1024;

    /// Unbind, messageID 5.
    const UNBIND: [u8; 7] = [0x30, 0x05, 0x02, 0x01, 0x05, 0x42, 0x00];

    #[test]
    fn well_formed() {
        let whole = |bytes: &[u8]| envelope(bytes, LIMIT).expect("well-formed").expect("complete");
        let unbind = whole(&UNBIND);
        assert_eq!((unbind.length, unbind.message_id, unbind.tag), (7, 5, 0x42));
        assert_eq!((unbind.content_start, unbind.content_end), (7, 7));
        // §5.1: non-minimal lengths are legal, and AD sends them.
        let long = [0x30, 0x84, 0, 0, 0, 0x0B, 0x02, 0x84, 0, 0, 0, 0x01, 0x05, 0x42, 0x82, 0, 0];
        assert_eq!((whole(&long).length, whole(&long).message_id), (17, 5));
        let padded_id = [0x30, 0x08, 0x02, 0x04, 0, 0, 0, 0x05, 0x42, 0x00];
        assert_eq!(whole(&padded_id).message_id, 5);
        // §4.1.1: controls, and trailing components nobody knows, are the backend's to read.
        let trailing = [0x30, 0x08, 0x02, 0x01, 0x05, 0x42, 0x00, 0xA0, 0x01, 0x00];
        assert_eq!((whole(&trailing).length, whole(&trailing).content_end), (10, 7));
    }

    #[test]
    fn malformed() {
        use FrameError::*;
        for (bytes, error) in [
            (&[0x31, 0x05][..], NotASequence(0x31)),
            (&[0x70, 0x05], NotASequence(0x70)),
            (&[0x16, 0x03, 0x01], NotASequence(0x16)),
            (&[0x30, 0x80], Length(LengthError::Indefinite)),
            (&[0x30, 0x85], Length(LengthError::TooLong)),
            (&[0x30, 0x88, 0, 0, 0, 0, 0, 0, 0, 5], Length(LengthError::TooLong)),
            (&[0x30, 0x82, 0x10, 0x00], TooLarge { length: 4100, limit: LIMIT }),
            (&[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF], TooLarge { length: 0xFFFF_FFFF + 6, limit: LIMIT }),
            (&[0x30, 0x00], MessageId),
            (&[0x30, 0x05, 0x04, 0x01, 0x05, 0x42, 0x00], MessageId),
            (&[0x30, 0x04, 0x02, 0x00, 0x42, 0x00], MessageId),
            (&[0x30, 0x05, 0x02, 0x01, 0xFF, 0x42, 0x00], MessageId),
            (&[0x30, 0x09, 0x02, 0x05, 0, 0, 0, 0, 5, 0x42, 0x00], MessageId),
            (&[0x30, 0x03, 0x02, 0x01, 0x05], Overrun),
            (&[0x30, 0x03, 0x02, 0x04, 0x05], Overrun),
            (&[0x30, 0x04, 0x02, 0x01, 0x05, 0x42], Overrun),
            (&[0x30, 0x05, 0x02, 0x01, 0x05, 0x63, 0x01], Overrun),
            (&[0x30, 0x05, 0x02, 0x01, 0x05, 0x63, 0x80], Length(LengthError::Indefinite)),
            (&[0x30, 0x06, 0x02, 0x01, 0x05, 0x63, 0x84, 0xFF], Overrun),
        ] {
            assert_eq!(envelope(bytes, LIMIT), Err(error), "{bytes:02x?}");
        }
    }

    /// A PDU and what its envelope must say.
    fn pdu() -> impl Strategy<Value = (Vec<u8>, Envelope)> {
        let id = (0_u32..=0x7FFF_FFFF, 0_u32..=31).prop_map(|(id, shift)| id >> shift);
        let parts = (id, 0_usize..4, any::<u8>(), prop::collection::vec(any::<u8>(), 0..300), 0_u8..=4);
        parts.prop_map(|(message_id, spare, tag, body, padding)| {
            // One bit more than it has: an INTEGER's first bit is its sign.
            let shortest = (33 - message_id.leading_zeros()).div_ceil(8) as usize;
            let octets = (shortest + spare).min(4);
            let mut content = vec![0x02];
            put_length(&mut content, octets, padding);
            content.extend(&message_id.to_be_bytes()[4 - octets..]);
            content.push(tag);
            put_length(&mut content, body.len(), padding);
            let (before, body_length) = (content.len(), body.len());
            content.extend(&body);
            let mut pdu = vec![0x30];
            put_length(&mut pdu, content.len(), padding);
            let content_start = pdu.len() + before;
            pdu.extend(content);
            let content_end = content_start + body_length;
            let envelope = Envelope { length: pdu.len(), message_id, tag, content_start, content_end };
            (pdu, envelope)
        })
    }

    fn put_length(out: &mut Vec<u8>, length: usize, octets: u8) {
        if length < 0x80 && octets == 0 {
            out.push(length as u8);
        } else {
            let octets = usize::from(octets.max(2));
            out.push(0x80 | octets as u8);
            out.extend(&(length as u32).to_be_bytes()[4 - octets..]);
        }
    }

    proptest! {
        /// However few octets have arrived, the answer is "not yet" or the same envelope as for the whole.
        #[test]
        fn a_prefix_never_contradicts_the_whole((pdu, whole) in pdu()) {
            prop_assert_eq!(envelope(&pdu, LIMIT), Ok(Some(whole)));
            for cut in 0..pdu.len() {
                let part = envelope(&pdu[..cut], LIMIT).expect("a prefix of something well-formed");
                prop_assert!(part.is_none() || part == Some(whole));
            }
            prop_assert_eq!(envelope(&pdu[..pdu.len().min(26)], LIMIT), Ok(Some(whole)));
        }

        /// What is nearly a PDU is an envelope, waits for more or is refused, and both ways to say so agree. What follows a PDU
        /// changes nothing about it.
        #[test]
        fn both_ways_judge_alike(
            (pdu, _) in pdu(), at in 0_usize..26, octet in any::<u8>(), follows in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut pdu = pdu;
            if let Some(place) = pdu.get_mut(at) {
                *place = octet;
            }
            let verdict = envelope(&pdu, usize::MAX);
            let whole = verdict.is_ok_and(|envelope| envelope.is_some_and(|envelope| envelope.length <= pdu.len()));
            match verdict {
                Ok(Some(envelope)) => {
                    prop_assert_eq!(why_not(&pdu, usize::MAX), Ok(()));
                    prop_assert!(envelope.content_start <= envelope.content_end && envelope.content_end <= envelope.length);
                }
                Ok(None) => prop_assert!(pdu.len() < 26, "nothing is waited for without end"),
                Err(_) => {}
            }
            pdu.extend(follows);
            prop_assert!(!(whole || verdict.is_err()) || envelope(&pdu, usize::MAX) == verdict);
        }

        /// Garbage is refused or waits for more, never panics, and never claims more than the limit.
        #[test]
        fn garbage(bytes in prop::collection::vec(any::<u8>(), 0..64), sequence in any::<bool>()) {
            let mut bytes = bytes;
            if sequence && !bytes.is_empty() {
                bytes[0] = 0x30;
            }
            if let Ok(Some(envelope)) = envelope(&bytes, LIMIT) {
                prop_assert!(envelope.length <= LIMIT);
                prop_assert!(envelope.content_start <= envelope.content_end && envelope.content_end <= envelope.length);
            }
        }
    }
}
