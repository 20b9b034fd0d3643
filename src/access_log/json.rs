//! A line of JSON, written field by field. Pure.
//!
//! What the access log costs is mostly this: serde_json, which escapes names as well and takes flattened structures apart,
//! made it five times as much (measured, bench/README.md). Texts that need escapes are still left to it.

use std::io::Write as _;
use std::net::SocketAddr;

/// A field's name with all that stands around it; made by [`key!`].
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) &'static str);

#[cfg(test)]
impl Key {
    /// Without what stands around it.
    pub(super) fn name(self) -> &'static str {
        self.0.trim_matches(['"', ':'])
    }
}

/// A field's name.
macro_rules! key {
    ($name:literal) => {
        $crate::access_log::json::Key(concat!("\"", $name, "\":"))
    };
}
pub(super) use key;

/// An object under construction. Every field ends in a comma; the last one becomes the object's end.
///
/// What takes a key is compiled into its caller, where the key is known: writing it is a move or two instead of a call.
pub(super) struct Object<'a>(&'a mut Vec<u8>);

impl<'a> Object<'a> {
    /// One without fields, at the end of `line`.
    pub(super) fn begin(line: &'a mut Vec<u8>) -> Self {
        line.push(b'{');
        Self(line)
    }

    /// Fields alone, for [`fields`](Self::fields) of an object.
    pub(super) fn part(fields: &'a mut Vec<u8>) -> Self {
        Self(fields)
    }

    /// Fields that are written already.
    pub(super) fn fields(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    /// A text of anybody's.
    #[inline(always)]
    pub(super) fn text(&mut self, key: Key, value: &str) {
        self.key(key);
        self.quoted(value);
        self.0.push(b',');
    }

    pub(super) fn optional_text(&mut self, key: Key, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// A text that `write` writes at the end of the line, in UTF-8.
    #[inline(always)]
    pub(super) fn written(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        let start = self.0.len();
        self.0.push(b'"');
        write(self.0);
        if any_to_escape(&self.0[start + 1..]) {
            let text = self.0.split_off(start);
            self.quoted(&String::from_utf8_lossy(&text[1..]));
        } else {
            self.0.push(b'"');
        }
        self.0.push(b',');
    }

    /// One of our own words.
    #[inline(always)]
    pub(super) fn word(&mut self, key: Key, word: &'static str) {
        self.unescaped(key, word.as_bytes());
    }

    pub(super) fn optional_word(&mut self, key: Key, word: Option<&'static str>) {
        if let Some(word) = word {
            self.word(key, word);
        }
    }

    /// A text that has nothing to be escaped.
    #[inline(always)]
    pub(super) fn unescaped(&mut self, key: Key, text: &[u8]) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(text);
        self.0.extend_from_slice(b"\",");
    }

    pub(super) fn address(&mut self, key: Key, address: SocketAddr) {
        self.key(key);
        match address {
            // As it is displayed, at a tenth of the cost.
            SocketAddr::V4(v4) => {
                for (before, number) in std::iter::zip(*b"\"...", v4.ip().octets()) {
                    self.0.push(before);
                    self.digits(number);
                }
                self.0.push(b':');
                self.digits(v4.port());
                self.0.extend_from_slice(b"\",");
            }
            SocketAddr::V6(v6) => write!(self.0, "\"{v6}\",").expect("a Vec takes every write"),
        }
    }

    #[inline(always)]
    pub(super) fn number(&mut self, key: Key, value: impl Into<u64>) {
        self.key(key);
        self.digits(value);
        self.0.push(b',');
    }

    pub(super) fn truth(&mut self, key: Key, value: bool) {
        self.key(key);
        self.0.extend_from_slice(if value { b"true," } else { b"false," });
    }

    #[inline(always)]
    pub(super) fn list<T: AsRef<str>>(&mut self, key: Key, texts: impl Iterator<Item = T>) {
        self.key(key);
        self.0.push(b'[');
        for text in texts {
            self.quoted(text.as_ref());
            self.0.push(b',');
        }
        self.end(b']');
        self.0.push(b',');
    }

    pub(super) fn object(&mut self, key: Key, fill: impl FnOnce(&mut Self)) {
        self.key(key);
        self.0.push(b'{');
        fill(self);
        self.end(b'}');
        self.0.push(b',');
    }

    /// Ends the object, and its line.
    pub(super) fn end_line(mut self) {
        self.end(b'}');
        self.0.push(b'\n');
    }

    #[inline(always)]
    fn key(&mut self, Key(key): Key) {
        self.0.extend_from_slice(key.as_bytes());
    }

    fn digits(&mut self, number: impl Into<u64>) {
        match number.into() {
            // Most counts are 0 or 1.
            digit @ 0..=9 => self.0.push(b'0' + digit as u8),
            number => self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        }
    }

    fn end(&mut self, bracket: u8) {
        match self.0.last_mut() {
            Some(comma @ b',') => *comma = bracket,
            _ => self.0.push(bracket),
        }
    }

    fn quoted(&mut self, text: &str) {
        if any_to_escape(text.as_bytes()) {
            return serde_json::to_writer(&mut *self.0, text).expect("a Vec takes every write");
        }
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }
}

/// Whether a control character, a quote or a backslash is among these octets. Most texts are short, so eight at a time.
fn any_to_escape(text: &[u8]) -> bool {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const SIGNS: u64 = EACH * 0x80;
    // Octets below `bound`, by their signs; after the first of them others may be taken for one.
    let below = |word: u64, bound: u8| word.wrapping_sub(EACH * u64::from(bound)) & !word & SIGNS;
    let any = |octets: [u8; 8]| {
        let word = u64::from_ne_bytes(octets);
        let equal = |octet: u8| below(word ^ (EACH * u64::from(octet)), 1);
        below(word, 0x20) | equal(b'"') | equal(b'\\') != 0
    };
    let (words, rest) = text.as_chunks();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().any(|word| any(*word)) || any(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn whatever_needs_an_escape_is_seen_wherever_it_stands() {
        for octet in 0..=u8::MAX {
            let expected = octet < 0x20 || octet == b'"' || octet == b'\\';
            for around in [b' ', 0x7F, 0x80, 0xFF, octet] {
                for place in 0..19 {
                    let mut text = [around; 19];
                    text[place] = octet;
                    assert_eq!(any_to_escape(&text[..=place]), expected, "{octet:#x} at {place} behind {around:#x}");
                }
            }
        }
        assert!(!any_to_escape(b""));
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_read(
            text: String, number: u64, list: Vec<String>, flag: bool, ip: std::net::IpAddr, port: u16
        ) {
            let address = SocketAddr::new(ip, port);
            let (mut line, mut part) = (Vec::new(), Vec::new());
            Object::part(&mut part).truth(key!("flag"), flag);
            let mut object = Object::begin(&mut line);
            object.text(key!("text"), &text);
            object.optional_text(key!("absent"), None);
            object.written(key!("written"), |line| line.extend_from_slice(text.as_bytes()));
            object.number(key!("small"), number % 20);
            object.object(key!("inner"), |inner| inner.list(key!("list"), list.iter()));
            object.object(key!("empty"), |_| {});
            object.list(key!("none"), [""; 0].iter());
            object.number(key!("number"), number);
            object.fields(&part);
            object.word(key!("word"), "search");
            object.address(key!("address"), address);
            object.end_line();
            prop_assert_eq!(line.iter().filter(|octet| **octet == b'\n').count(), 1, "one line");
            let expected = json!({
                "text": text, "written": text, "small": number % 20, "inner": {"list": list}, "empty": {}, "none": [],
                "number": number, "flag": flag, "word": "search", "address": address.to_string(),
            });
            prop_assert_eq!(serde_json::from_slice::<Value>(&line).expect("JSON"), expected);
        }
    }
}
