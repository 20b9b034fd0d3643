//! A search filter as text (RFC 4515), with or without its values. Pure.

use crate::ldap::ber::Reader;

/// Longer texts end in an ellipsis: a filter may take a quarter of a megabyte.
const MAX_BYTES: usize = 4096;
/// Deeper parts are an ellipsis.
const MAX_DEPTH: usize = 32;
/// What stands for a value that isn't shown.
const REDACTED: &str = "?";

/// The text of a filter's whole BER element. With `redact`, values are `?`, so that `(uid=jdoe)` reads `(uid=?)`: they
/// say who was looked for. What can't be read is `…`.
pub(super) fn filter_text(filter: &[u8], redact: bool) -> String {
    // Most texts are a little longer than their filter or shorter.
    let mut text = String::with_capacity(filter.len().min(MAX_BYTES) + 16);
    write_filter(&mut text, &mut Reader::new(filter), redact, MAX_DEPTH);
    if text.len() > MAX_BYTES {
        let end = (0..=MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn write_filter(text: &mut String, reader: &mut Reader<'_>, redact: bool, depth: usize) {
    let Some(filter) = reader.element().filter(|_| depth > 0 && text.len() <= MAX_BYTES) else {
        return text.push('…');
    };
    let mut parts = Reader::new(filter.content);
    text.push('(');
    match filter.tag {
        0xA0..=0xA2 => {
            text.push(['&', '|', '!'][usize::from(filter.tag - 0xA0)]);
            while !parts.is_empty() {
                let before = parts.rest().len();
                write_filter(text, &mut parts, redact, depth - 1);
                if parts.rest().len() == before || text.len() > MAX_BYTES {
                    break;
                }
            }
        }
        0xA3 => write_assertion(text, &mut parts, "=", redact),
        0xA4 => write_substrings(text, &mut parts, redact),
        0xA5 => write_assertion(text, &mut parts, ">=", redact),
        0xA6 => write_assertion(text, &mut parts, "<=", redact),
        0x87 => {
            escape(text, filter.content);
            text.push_str("=*");
        }
        0xA8 => write_assertion(text, &mut parts, "~=", redact),
        0xA9 => write_extensible(text, &mut parts, redact),
        _ => text.push('…'),
    }
    text.push(')');
}

fn write_assertion(text: &mut String, parts: &mut Reader<'_>, operator: &str, redact: bool) {
    let (attribute, value) = (parts.element(), parts.element());
    let (Some(attribute), Some(value)) = (attribute, value) else { return text.push('…') };
    escape(text, attribute.content);
    text.push_str(operator);
    write_value(text, value.content, redact);
}

fn write_substrings(text: &mut String, parts: &mut Reader<'_>, redact: bool) {
    let (attribute, pieces) = (parts.element(), parts.element());
    let (Some(attribute), Some(pieces)) = (attribute, pieces) else { return text.push('…') };
    escape(text, attribute.content);
    text.push('=');
    const INITIAL: u8 = 0x80;
    const FINAL: u8 = 0x82;
    let mut pieces = Reader::new(pieces.content);
    let mut last = None;
    while let Some(piece) = pieces.element() {
        if piece.tag != INITIAL {
            text.push('*');
        }
        write_value(text, piece.content, redact);
        last = Some(piece.tag);
    }
    if last != Some(FINAL) {
        text.push('*');
    }
}

fn write_extensible(text: &mut String, parts: &mut Reader<'_>, redact: bool) {
    let (rule, attribute) = (parts.take(0x81), parts.take(0x82));
    let Some(value) = parts.take(0x83) else { return text.push('…') };
    escape(text, attribute.unwrap_or_default());
    if parts.take(0x84).is_some_and(|dn_attributes| dn_attributes != [0]) {
        text.push_str(":dn");
    }
    if let Some(rule) = rule {
        text.push(':');
        escape(text, rule);
    }
    text.push_str(":=");
    write_value(text, value, redact);
}

fn write_value(text: &mut String, value: &[u8], redact: bool) {
    if redact { text.push_str(REDACTED) } else { escape(text, value) }
}

/// RFC 4515 §3: what has a meaning in filters, and what isn't printable, is `\` and two hexadecimal digits.
fn escape(text: &mut String, value: &[u8]) {
    let has_meaning = |octet: u8| octet.is_ascii_control() || matches!(octet, b'*' | b'(' | b')' | b'\\');
    let hexadecimal = |text: &mut String, octet: u8| text.push_str(&format!("\\{octet:02x}"));
    for chunk in value[..value.len().min(MAX_BYTES)].utf8_chunks() {
        if !chunk.valid().bytes().any(has_meaning) {
            text.push_str(chunk.valid());
        } else {
            for character in chunk.valid().chars() {
                match u8::try_from(character) {
                    Ok(octet) if has_meaning(octet) => hexadecimal(text, octet),
                    _ => text.push(character),
                }
            }
        }
        chunk.invalid().iter().for_each(|octet| hexadecimal(text, *octet));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A BER element with a short length.
    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).expect("test filters are short");
        [&[tag, length], content.as_slice()].concat()
    }

    fn equal(attribute: &[u8], value: &[u8]) -> Vec<u8> {
        tlv(0xA3, &[&tlv(4, &[attribute]), &tlv(4, &[value])])
    }

    fn substrings(pieces: &[&[u8]]) -> Vec<u8> {
        tlv(0xA4, &[&tlv(4, &[b"cn"]), &tlv(0x30, pieces)])
    }

    #[test]
    fn every_kind_of_filter_has_its_text_with_and_without_values() {
        let table: [(Vec<u8>, &str, &str); 12] = [
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
        let mut wide = vec![0xA1, 0x82, 0x4E, 0x20];
        wide.extend(equal(b"a", b"0123456789").repeat(1250));
        assert!(filter_text(&wide, false).len() <= MAX_BYTES + '…'.len_utf8());
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
