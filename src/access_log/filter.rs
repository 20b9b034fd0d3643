//! A search filter as text (RFC 4515), with or without its values. Pure.

use std::fmt;

use crate::ldap::ber::Reader;

/// Longer texts end in an ellipsis: a filter may take a quarter of a megabyte.
const MAX_BYTES: usize = 4096;
/// Deeper parts are an ellipsis.
const MAX_DEPTH: usize = 32;
/// What stands for a value that isn't shown.
const REDACTED: &str = "?";

/// A filter's whole BER element. With `redact`, values are `?`, so that `(uid=jdoe)` reads `(uid=?)`: they say who was
/// looked for. What can't be read is `…`.
#[derive(Clone, Copy)]
pub(super) struct Filter<'a> {
    pub element: &'a [u8],
    pub redact: bool,
}

impl Filter<'_> {
    /// Writes the text at the end of `line`; it is UTF-8.
    pub(super) fn write(self, line: &mut Vec<u8>) {
        let start = line.len();
        let mut text = Text { line, start, redact: self.redact };
        text.filter(&mut Reader::new(self.element), MAX_DEPTH);
        text.end();
    }
}

impl fmt::Display for Filter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// A text under construction, at the end of a line.
struct Text<'a> {
    line: &'a mut Vec<u8>,
    start: usize,
    redact: bool,
}

impl Text<'_> {
    fn push(&mut self, text: &str) {
        self.line.extend_from_slice(text.as_bytes());
    }

    fn is_long(&self) -> bool {
        self.line.len() - self.start > MAX_BYTES
    }

    /// Cuts it where it is too long, not within a character.
    fn end(&mut self) {
        if self.is_long() {
            let is_boundary = |end: &usize| self.line[*end] & 0xC0 != 0x80;
            let end = (self.start..=self.start + MAX_BYTES).rev().find(is_boundary).unwrap_or(self.start);
            self.line.truncate(end);
            self.push("…");
        }
    }

    fn filter(&mut self, reader: &mut Reader<'_>, depth: usize) {
        let Some(filter) = reader.element().filter(|_| depth > 0 && !self.is_long()) else {
            return self.push("…");
        };
        let mut parts = Reader::new(filter.content);
        self.push("(");
        match filter.tag {
            0xA0 => self.set("&", &mut parts, depth),
            0xA1 => self.set("|", &mut parts, depth),
            0xA2 => self.set("!", &mut parts, depth),
            0xA3 => self.assertion(&mut parts, "="),
            0xA4 => self.substrings(&mut parts),
            0xA5 => self.assertion(&mut parts, ">="),
            0xA6 => self.assertion(&mut parts, "<="),
            0x87 => {
                self.escape(filter.content);
                self.push("=*");
            }
            0xA8 => self.assertion(&mut parts, "~="),
            0xA9 => self.extensible(&mut parts),
            _ => self.push("…"),
        }
        self.push(")");
    }

    fn set(&mut self, operator: &str, parts: &mut Reader<'_>, depth: usize) {
        self.push(operator);
        while !parts.is_empty() {
            let before = parts.rest().len();
            self.filter(parts, depth - 1);
            if parts.rest().len() == before || self.is_long() {
                break;
            }
        }
    }

    fn assertion(&mut self, parts: &mut Reader<'_>, operator: &str) {
        let (attribute, value) = (parts.element(), parts.element());
        let (Some(attribute), Some(value)) = (attribute, value) else { return self.push("…") };
        self.escape(attribute.content);
        self.push(operator);
        self.value(value.content);
    }

    fn substrings(&mut self, parts: &mut Reader<'_>) {
        let (attribute, pieces) = (parts.element(), parts.element());
        let (Some(attribute), Some(pieces)) = (attribute, pieces) else { return self.push("…") };
        self.escape(attribute.content);
        self.push("=");
        const INITIAL: u8 = 0x80;
        const FINAL: u8 = 0x82;
        let mut pieces = Reader::new(pieces.content);
        let mut last = None;
        while let Some(piece) = pieces.element().filter(|_| !self.is_long()) {
            if piece.tag != INITIAL {
                self.push("*");
            }
            self.value(piece.content);
            last = Some(piece.tag);
        }
        if last != Some(FINAL) {
            self.push("*");
        }
    }

    fn extensible(&mut self, parts: &mut Reader<'_>) {
        let (rule, attribute) = (parts.take(0x81), parts.take(0x82));
        let Some(value) = parts.take(0x83) else { return self.push("…") };
        self.escape(attribute.unwrap_or_default());
        if parts.take(0x84).is_some_and(|dn_attributes| dn_attributes != [0]) {
            self.push(":dn");
        }
        if let Some(rule) = rule {
            self.push(":");
            self.escape(rule);
        }
        self.push(":=");
        self.value(value);
    }

    fn value(&mut self, value: &[u8]) {
        if self.redact { self.push(REDACTED) } else { self.escape(value) }
    }

    /// RFC 4515 §3: what has a meaning in filters, and what isn't printable, is `\` and two hexadecimal digits.
    fn escape(&mut self, value: &[u8]) {
        let value = &value[..value.len().min(MAX_BYTES)];
        if value.iter().all(|octet| octet.is_ascii() && !has_meaning(*octet)) {
            return self.line.extend_from_slice(value);
        }
        for chunk in value.utf8_chunks() {
            if !chunk.valid().bytes().any(has_meaning) {
                self.push(chunk.valid());
            } else {
                for character in chunk.valid().chars() {
                    match u8::try_from(character) {
                        Ok(octet) if has_meaning(octet) => self.hexadecimal(octet),
                        _ => self.push(character.encode_utf8(&mut [0; 4])),
                    }
                }
            }
            chunk.invalid().iter().for_each(|octet| self.hexadecimal(*octet));
        }
    }

    fn hexadecimal(&mut self, octet: u8) {
        self.push(&format!("\\{octet:02x}"));
    }
}

fn has_meaning(octet: u8) -> bool {
    octet.is_ascii_control() || matches!(octet, b'*' | b'(' | b')' | b'\\')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter_text(element: &[u8], redact: bool) -> String {
        let mut line = b"before it".to_vec();
        Filter { element, redact }.write(&mut line);
        String::from_utf8(line.split_off(9)).expect("UTF-8")
    }

    /// A BER element with a short length.
    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).expect("test filters are short");
        [&[tag, length], content.as_slice()].concat()
    }

    fn tlv_of_16_bits(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("not longer");
        [&[tag, 0x82], &length.to_be_bytes()[..], content].concat()
    }

    fn equal(attribute: &[u8], value: &[u8]) -> Vec<u8> {
        tlv(0xA3, &[&tlv(4, &[attribute]), &tlv(4, &[value])])
    }

    fn substrings(pieces: &[&[u8]]) -> Vec<u8> {
        tlv(0xA4, &[&tlv(4, &[b"cn"]), &tlv(0x30, pieces)])
    }

    #[test]
    fn every_kind_of_filter_has_its_text_with_and_without_values() {
        let table: [(Vec<u8>, &str, &str); 14] = [
            (equal(b"uid", b"jdoe"), "(uid=jdoe)", "(uid=?)"),
            (tlv(0xA5, &[&tlv(4, &[b"a"]), &tlv(4, &[b"1"])]), "(a>=1)", "(a>=?)"),
            (tlv(0xA6, &[&tlv(4, &[b"a"]), &tlv(4, &[b"1"])]), "(a<=1)", "(a<=?)"),
            (tlv(0xA8, &[&tlv(4, &[b"a"]), &tlv(4, &[b"1"])]), "(a~=1)", "(a~=?)"),
            (tlv(0x87, &[b"objectClass"]), "(objectClass=*)", "(objectClass=*)"),
            (substrings(&[&tlv(0x80, &[b"a"])]), "(cn=a*)", "(cn=?*)"),
            (substrings(&[&tlv(0x81, &[b"b"])]), "(cn=*b*)", "(cn=*?*)"),
            (substrings(&[&tlv(0x80, &[b"a"]), &tlv(0x81, &[b"b"]), &tlv(0x82, &[b"c"])]), "(cn=a*b*c)", "(cn=?*?*?)"),
            (
                tlv(0xA0, &[&equal(b"a", b"1"), &tlv(0xA2, &[&equal(b"b", b"2")])]),
                "(&(a=1)(!(b=2)))",
                "(&(a=?)(!(b=?)))",
            ),
            (tlv(0xA1, &[]), "(|)", "(|)"),
            (
                tlv(0xA9, &[&tlv(0x81, &[b"2.4"]), &tlv(0x82, &[b"m"]), &tlv(0x83, &[b"v"]), &tlv(0x84, &[&[0xFF]])]),
                "(m:dn:2.4:=v)",
                "(m:dn:2.4:=?)",
            ),
            (equal(b"objectGUID", &[0x00, 0xFF, b'*', b'(']), r"(objectGUID=\00\ff\2a\28)", "(objectGUID=?)"),
            (equal(b"cn", "Jürgen".as_bytes()), "(cn=Jürgen)", "(cn=?)"),
            (equal(b"cn", "ü*".as_bytes()), r"(cn=ü\2a)", "(cn=?)"),
        ];
        for (filter, shown, redacted) in table {
            assert_eq!(filter_text(&filter, false), shown);
            assert_eq!(filter_text(&filter, true), redacted);
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = (0..60).fold(equal(b"a", b"1"), |inner, _| tlv(0xA2, &[&inner[..inner.len().min(250)]]));
        let text = filter_text(&deep, false);
        assert!(text.contains('…') && text.matches('!').count() <= MAX_DEPTH, "{text}");
        let or = tlv_of_16_bits(0xA1, &equal(b"a", b"0123456789").repeat(1250));
        let pieces = tlv_of_16_bits(0x30, &tlv(0x81, &[b""]).repeat(30_000));
        let substrings = tlv_of_16_bits(0xA4, &[tlv(4, &[b"cn"]), pieces].concat());
        for wide in [or, substrings] {
            for redact in [false, true] {
                let mut line = Vec::new();
                Filter { element: &wide, redact }.write(&mut line);
                assert!((MAX_BYTES - 2..=MAX_BYTES + '…'.len_utf8()).contains(&line.len()), "{}", line.len());
                assert!(line.capacity() <= 4 * MAX_BYTES, "nothing is written only to be cut off: {}", line.capacity());
            }
        }
    }

    proptest! {
        #[test]
        fn any_octets_have_a_text_and_redaction_shows_no_value(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            filter_text(&octets, false);
            filter_text(&octets, true);
            let secret = [b"sEcReT", octets.as_slice()].concat();
            let secret = &secret[..secret.len().min(100)];
            let filter = tlv(0xA0, &[&equal(b"a", secret)]);
            prop_assert!(!filter_text(&filter, true).contains("sEcReT"));
        }
    }
}
