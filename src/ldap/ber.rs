//! A reader of definite-length BER, as far as LDAP uses it (RFC 4511 §5.1).

/// Tag octet of an INTEGER.
pub const INTEGER: u8 = 0x02;
/// Tag octet of an OCTET STRING.
pub const OCTET_STRING: u8 = 0x04;
/// Tag octet of an ENUMERATED.
pub const ENUMERATED: u8 = 0x0A;
/// Tag octet of a BOOLEAN.
pub const BOOLEAN: u8 = 0x01;
/// Tag octet of a SEQUENCE.
pub const SEQUENCE: u8 = 0x30;

/// The length octets can't be read as a length LDAP allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthError {
    /// `0x80`: §5.1 allows definite lengths only.
    Indefinite,
    /// More than four octets follow the first.
    TooLong,
}

/// What the first octets of an element say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The identifier octet. LDAP uses no tag number above 30, so there is always just one.
    pub tag: u8,
    /// Octets of the header itself.
    pub octets: usize,
    /// Octets of the content that follows.
    pub length: usize,
}

/// Reads the header of the element that `bytes` begin with; `None` while it is incomplete.
#[inline(always)]
pub fn header(bytes: &[u8]) -> Result<Option<Header>, LengthError> {
    let (tag, octets, length) = match *bytes {
        [tag, short @ 0..=0x7F, ..] => (tag, 2, u32::from(short)),
        [tag, 0x81, a, ..] => (tag, 3, u32::from(a)),
        [tag, 0x82, a, b, ..] => (tag, 4, u32::from_be_bytes([0, 0, a, b])),
        [tag, 0x83, a, b, c, ..] => (tag, 5, u32::from_be_bytes([0, a, b, c])),
        [tag, 0x84, a, b, c, d, ..] => (tag, 6, u32::from_be_bytes([a, b, c, d])),
        [_, 0x80, ..] => return Err(LengthError::Indefinite),
        [_, 0x85..=0xFF, ..] => return Err(LengthError::TooLong),
        _ => return Ok(None),
    };
    Ok(Some(Header { tag, octets, length: length as usize }))
}

/// Walks the elements of some content octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// One element, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// The identifier octet.
    pub tag: u8,
    /// The content octets.
    pub content: &'a [u8],
    /// Tag, length and content as they were received.
    pub whole: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `content`.
    pub const fn new(content: &'a [u8]) -> Self {
        Self { rest: content }
    }

    /// What has not been read.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The tag octet of the next element.
    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next element, or `None` at the end and where the bytes don't hold a whole one.
    #[inline]
    pub fn element(&mut self) -> Option<Element<'a>> {
        let Header { tag, octets, length } = header(self.rest).ok()??;
        let (whole, rest) = self.rest.split_at_checked(octets.checked_add(length)?)?;
        self.rest = rest;
        Some(Element { tag, content: &whole[octets..], whole })
    }

    /// The content of the next element if it carries `tag`; else nothing is read.
    #[inline]
    pub fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.peek()? != tag {
            return None;
        }
        self.element().map(|element| element.content)
    }

    /// The next element as a non-negative number of at most 31 bits, if it carries `tag`.
    pub fn unsigned(&mut self, tag: u8) -> Option<u32> {
        self.take(tag).and_then(unsigned)
    }
}

/// The content octets of an INTEGER or ENUMERATED as a number in 0..2³¹.
#[inline]
pub fn unsigned(content: &[u8]) -> Option<u32> {
    match content {
        [0..=0x7F, ..] if content.len() <= 4 => {
            Some(content.iter().fold(0, |value, octet| value << 8 | u32::from(*octet)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        for (bytes, expected) in [
            (&[][..], Ok(None)),
            (&[0x04], Ok(None)),
            (&[0x04, 0x05], Ok(Some((2, 5)))),
            (&[0x04, 0x7F], Ok(Some((2, 127)))),
            (&[0x04, 0x81], Ok(None)),
            (&[0x04, 0x81, 0x05], Ok(Some((3, 5)))),
            (&[0x04, 0x81, 0x80], Ok(Some((3, 128)))),
            (&[0x04, 0x82, 0x01], Ok(None)),
            (&[0x04, 0x82, 0x01, 0x02], Ok(Some((4, 0x0102)))),
            (&[0x04, 0x83, 0x01, 0x02], Ok(None)),
            (&[0x04, 0x83, 0x01, 0x02, 0x03], Ok(Some((5, 0x01_02_03)))),
            (&[0x04, 0x84, 0x01, 0x02, 0x03], Ok(None)),
            (&[0x04, 0x84, 0x00, 0x00, 0x00, 0x05], Ok(Some((6, 5)))),
            (&[0x04, 0x84, 0xFF, 0xFF, 0xFF, 0xFF], Ok(Some((6, 0xFFFF_FFFF)))),
            (&[0x04, 0x80], Err(LengthError::Indefinite)),
            (&[0x04, 0x85], Err(LengthError::TooLong)),
            (&[0x04, 0x88, 0, 0, 0, 0, 0, 0, 0, 5], Err(LengthError::TooLong)),
            (&[0x04, 0xFF], Err(LengthError::TooLong)),
        ] {
            let expected = expected.map(|some| some.map(|(octets, length)| Header { tag: 0x04, octets, length }));
            assert_eq!(header(bytes), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn take_leaves_other_tags_unread() {
        let mut reader = Reader::new(&[INTEGER, 1, 7, OCTET_STRING, 1, b'x']);
        assert_eq!(reader.take(OCTET_STRING), None);
        assert_eq!(reader.unsigned(INTEGER), Some(7));
        assert_eq!(reader.take(OCTET_STRING), Some(&b"x"[..]));
        assert!(reader.is_empty());
        assert_eq!(reader.element(), None);
    }

    #[test]
    fn an_element_that_overruns_is_none() {
        assert_eq!(Reader::new(&[OCTET_STRING, 5, b'x']).element(), None);
        assert_eq!(Reader::new(&[OCTET_STRING, 0x84, 0xFF, 0xFF, 0xFF, 0xFF]).element(), None);
    }

    #[test]
    fn unsigned_numbers() {
        assert_eq!(unsigned(&[0]), Some(0));
        assert_eq!(unsigned(&[1, 2]), Some(0x0102));
        assert_eq!(unsigned(&[1, 2, 3]), Some(0x01_02_03));
        assert_eq!(unsigned(&[0, 0, 0, 1]), Some(1));
        assert_eq!(unsigned(&[0x7F, 0xFF, 0xFF, 0xFF]), Some(0x7FFF_FFFF));
        for bad in [&[][..], &[0x80], &[0xFF, 0xFF], &[0, 0, 0, 0, 1]] {
            assert_eq!(unsigned(bad), None, "{bad:02x?}");
        }
    }
}
