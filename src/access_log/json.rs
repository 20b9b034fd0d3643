//! A line of JSON, written field by field. Pure.
//!
//! What the access log costs is mostly this: serde_json, which escapes names as well and takes flattened structures apart,
//! made it five times as much (measured, bench/README.md). Texts that need escapes are still left to it.

use std::io::Write as _;
use std::net::SocketAddr;

/// Room that most lines fit in.
const USUAL_LINE: usize = 1000;

/// A field's name with all that stands around it; made by [`key!`].
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) &'static str);

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
pub(super) struct Object(Vec<u8>);

impl Object {
    /// One without fields.
    pub(super) fn new() -> Self {
        let mut line = Vec::with_capacity(USUAL_LINE);
        line.push(b'{');
        Self(line)
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
    pub(super) fn number(&mut self, key: Key, value: impl itoa::Integer) {
        self.key(key);
        self.digits(value);
        self.0.push(b',');
    }

    pub(super) fn truth(&mut self, key: Key, value: bool) {
        self.key(key);
        self.0.extend_from_slice(if value { b"true," } else { b"false," });
    }

    pub(super) fn list(&mut self, key: Key, values: &[String]) {
        self.key(key);
        self.0.push(b'[');
        for value in values {
            self.quoted(value);
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

    /// The object on a line of its own.
    pub(super) fn into_line(mut self) -> Vec<u8> {
        self.end(b'}');
        self.0.push(b'\n');
        self.0
    }

    #[inline(always)]
    fn key(&mut self, Key(key): Key) {
        self.0.extend_from_slice(key.as_bytes());
    }

    fn digits(&mut self, number: impl itoa::Integer) {
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    fn end(&mut self, bracket: u8) {
        match self.0.last_mut() {
            Some(comma @ b',') => *comma = bracket,
            _ => self.0.push(bracket),
        }
    }

    fn quoted(&mut self, text: &str) {
        let escaped = |octet: u8| octet < 0x20 || octet == b'"' || octet == b'\\';
        // All of them, not only up to the first: that way they are looked at sixteen at a time.
        if text.bytes().fold(false, |any, octet| any | escaped(octet)) {
            return serde_json::to_writer(&mut self.0, text).expect("a Vec takes every write");
        }
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_said_is_read(
            text: String, number: u64, list: Vec<String>, flag: bool, ip: std::net::IpAddr, port: u16
        ) {
            let address = SocketAddr::new(ip, port);
            let mut object = Object::new();
            object.text(key!("text"), &text);
            object.optional_text(key!("absent"), None);
            object.object(key!("inner"), |inner| inner.list(key!("list"), &list));
            object.object(key!("empty"), |_| {});
            object.list(key!("none"), &[]);
            object.number(key!("number"), number);
            object.truth(key!("flag"), flag);
            object.word(key!("word"), "search");
            object.address(key!("address"), address);
            let line = object.into_line();
            prop_assert_eq!(line.iter().filter(|octet| **octet == b'\n').count(), 1, "one line");
            let expected = json!({
                "text": text, "inner": {"list": list}, "empty": {}, "none": [], "number": number, "flag": flag,
                "word": "search", "address": address.to_string(),
            });
            prop_assert_eq!(serde_json::from_slice::<Value>(&line).expect("JSON"), expected);
        }
    }
}
