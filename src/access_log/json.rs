//! A line of JSON, written field by field. Pure.
//!
//! What the access log costs is mostly this: serde_json, which escapes names as well and takes flattened structures apart,
//! made it five times as much (measured, bench/README.md). Texts that need escapes are still left to it.

use std::fmt::Display;
use std::io::Write as _;

/// Room that most lines fit in.
const USUAL_LINE: usize = 640;

/// An object under construction. Names are written as they are.
pub(super) struct Object(Vec<u8>);

impl Object {
    /// One whose first field is this.
    pub(super) fn of(name: &'static str, value: &str) -> Self {
        let mut object = Self(Vec::with_capacity(USUAL_LINE));
        object.0.push(b'{');
        object.text(name, value);
        object
    }

    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.quoted(value);
    }

    pub(super) fn optional_text(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// What is displayed has nothing to be escaped.
    pub(super) fn plain(&mut self, name: &'static str, value: impl Display) {
        self.name(name);
        write!(self.0, "\"{value}\"").expect("a Vec takes every write");
    }

    pub(super) fn number(&mut self, name: &'static str, value: impl itoa::Integer) {
        self.name(name);
        self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    pub(super) fn truth(&mut self, name: &'static str, value: bool) {
        self.name(name);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    pub(super) fn list(&mut self, name: &'static str, values: &[String]) {
        self.name(name);
        self.0.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.0.push(b',');
            }
            self.quoted(value);
        }
        self.0.push(b']');
    }

    pub(super) fn object(&mut self, name: &'static str, fill: impl FnOnce(&mut Self)) {
        self.name(name);
        self.0.push(b'{');
        fill(self);
        self.0.push(b'}');
    }

    /// The object on a line of its own.
    pub(super) fn into_line(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n");
        self.0
    }

    fn name(&mut self, name: &'static str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn quoted(&mut self, text: &str) {
        let escaped = |octet: u8| octet < 0x20 || octet == b'"' || octet == b'\\';
        if text.bytes().any(escaped) {
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
        fn whatever_is_said_is_read(text: String, number: u64, list: Vec<String>, flag: bool) {
            let mut object = Object::of("first", &text);
            object.optional_text("absent", None);
            object.object("inner", |inner| inner.list("list", &list));
            object.object("empty", |_| {});
            object.number("number", number);
            object.truth("flag", flag);
            object.plain("plain", number);
            let line = object.into_line();
            prop_assert_eq!(line.iter().filter(|octet| **octet == b'\n').count(), 1, "one line");
            let expected = json!({
                "first": text, "inner": {"list": list}, "empty": {}, "number": number, "flag": flag,
                "plain": number.to_string(),
            });
            prop_assert_eq!(serde_json::from_slice::<Value>(&line).expect("JSON"), expected);
        }
    }
}
