//! What a request asks for, field by field: what an operator needs, no secret, bounded. Pure.

use std::borrow::Cow;

use super::filter::Filter;
use super::json::{Key, key};
use crate::ldap::{Authentication, Control, OperationKind, Request, SearchRequest};

const MAX_NAME_BYTES: usize = 1024;
const MAX_LIST: usize = 50;
/// Of all texts of a list. Six times as much, each octet escaped, and twice that for two lists, must leave a record room in
/// one of the journal's datagrams: else a client could keep its own records out.
const MAX_LIST_BYTES: usize = 8 * 1024;

/// A field by the names it has.
#[derive(Clone, Copy)]
pub(super) struct Field {
    /// In a line of JSON.
    pub key: Key,
    /// What stands before it in a line of text.
    pub before: &'static str,
    /// In a span; some have no place there.
    #[cfg_attr(not(feature = "otlp"), expect(dead_code))]
    pub attribute: Option<&'static str>,
}

impl Field {
    const fn new(key: Key, before: &'static str, attribute: Option<&'static str>) -> Self {
        Self { key, before, attribute }
    }
}

/// The base of a search, the entry of an update or compare, the name of a bind.
const DN: Field = Field::new(key!("dn"), "", Some("ldap.dn"));
/// "base", "one" or "sub"
const SCOPE: Field = Field::new(key!("scope"), "", Some("ldap.scope"));
/// RFC 4515's text
const FILTER: Field = Field::new(key!("filter"), "", Some("ldap.filter"));
/// The attributes asked for; none is all.
const ATTRIBUTES: Field = Field::new(key!("attributes"), "attributes ", Some("ldap.attributes"));
/// Entries
const SIZE_LIMIT: Field = Field::new(key!("size_limit"), "size limit ", None);
/// Seconds
const TIME_LIMIT: Field = Field::new(key!("time_limit"), "time limit ", None);
/// "simple", a SASL mechanism, or "other"
const MECHANISM: Field = Field::new(key!("mechanism"), "", Some("ldap.bind.mechanism"));
/// An extended operation's object identifier.
const OID: Field = Field::new(key!("oid"), "", Some("ldap.extended.oid"));
/// The messageID an abandon names.
const ABANDONS: Field = Field::new(key!("abandons"), "#", None);
/// Controls, by [`name`]
const CONTROLS: Field = Field::new(key!("controls"), "controls ", Some("ldap.controls"));

/// What writes a description down while the request is read, so that nothing is made only to be written.
pub(super) trait Pen {
    /// A text, or what stands in the place of one.
    fn text(&mut self, field: Field, text: &str);
    /// One of our own words; a line of text has it without quotes.
    fn word(&mut self, field: Field, word: &'static str);
    fn number(&mut self, field: Field, number: u32);
    fn filter(&mut self, field: Field, filter: Filter<'_>);
    /// Texts of the client's, of which there is at least one.
    fn list<'a>(&mut self, field: Field, texts: impl Iterator<Item = Cow<'a, str>>);
}

/// Describes a request. Passwords, credentials and the values of updates are never part of it; `redact` leaves the
/// values of filters out as well.
#[inline(always)]
pub(super) fn describe(request: &Request<'_>, redact: bool, pen: &mut impl Pen) {
    match request.kind() {
        OperationKind::Search => {
            if let Some(search) = request.search() {
                describe_search(&search, redact, pen);
            }
        }
        OperationKind::Bind => {
            if let Some(bind) = request.bind() {
                match bind.authentication {
                    Authentication::Simple(_) => pen.text(MECHANISM, "simple"),
                    Authentication::Sasl { mechanism, .. } => pen.text(MECHANISM, &shown(mechanism)),
                    Authentication::Other(_) => pen.text(MECHANISM, "other"),
                }
                pen.text(DN, &shown(bind.name));
            }
        }
        _ => {
            if let Some(oid) = request.extended_name() {
                pen.text(OID, &shown(oid));
            }
            if let Some(entry) = request.entry() {
                pen.text(DN, &shown(entry));
            }
            if let Some(id) = request.abandoned_id() {
                pen.number(ABANDONS, id);
            }
        }
    }
    list(pen, CONTROLS, request.controls().map(name));
}

/// The first of the texts, if there are any, and an ellipsis in the place of the first that makes them too long.
#[inline(always)]
fn list<'a>(pen: &mut impl Pen, field: Field, texts: impl Iterator<Item = Cow<'a, str>>) {
    let mut room = Some(MAX_LIST_BYTES);
    let bounded = move |text: Cow<'a, str>| {
        room = room?.checked_sub(text.len());
        Some(if room.is_some() { text } else { "…".into() })
    };
    let mut texts = texts.take(MAX_LIST).map_while(bounded).peekable();
    if texts.peek().is_some() {
        pen.list(field, texts);
    }
}

/// A control's object identifier, `!` before it if it is critical.
fn name(control: Control<'_>) -> Cow<'_, str> {
    let oid = shown(control.oid);
    if control.critical { format!("!{oid}").into() } else { oid }
}

#[inline(always)]
fn describe_search(search: &SearchRequest<'_>, redact: bool, pen: &mut impl Pen) {
    pen.text(DN, &shown(search.base));
    if let Some(scope) = ["base", "one", "sub"].get(search.scope as usize) {
        pen.word(SCOPE, scope);
    }
    pen.filter(FILTER, Filter { element: search.filter, redact });
    list(pen, ATTRIBUTES, search.attributes().map(shown));
    for (field, limit) in [(SIZE_LIMIT, search.size_limit), (TIME_LIMIT, search.time_limit)] {
        if limit > 0 {
            pen.number(field, limit);
        }
    }
}

/// A text of the client's with what isn't UTF-8 replaced, and an ellipsis for what is too long.
pub(super) fn shown(octets: &[u8]) -> Cow<'_, str> {
    if octets.len() <= MAX_NAME_BYTES
        && let Ok(text) = std::str::from_utf8(octets)
    {
        return text.into();
    }
    shown_in_part(octets)
}

#[cold]
fn shown_in_part(octets: &[u8]) -> Cow<'_, str> {
    let mut text = String::from_utf8_lossy(&octets[..octets.len().min(MAX_NAME_BYTES)]);
    if octets.len() > MAX_NAME_BYTES {
        text.to_mut().push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples::{ABANDON, BIND, EXTENDED, FULL_SEARCH, delete, request};
    use super::*;

    /// What was written, by its names in JSON.
    #[derive(Default)]
    struct Told(Vec<(&'static str, String)>);

    impl Told {
        fn add(&mut self, field: Field, told: impl Into<String>) {
            self.0.push((field.key.name(), told.into()));
        }
    }

    impl Pen for Told {
        fn text(&mut self, field: Field, text: &str) {
            self.add(field, text);
        }

        fn word(&mut self, field: Field, word: &'static str) {
            self.add(field, word);
        }

        fn number(&mut self, field: Field, number: u32) {
            self.add(field, number.to_string());
        }

        fn filter(&mut self, field: Field, filter: Filter<'_>) {
            self.add(field, filter.to_string());
        }

        fn list<'a>(&mut self, field: Field, texts: impl Iterator<Item = Cow<'a, str>>) {
            texts.for_each(|text| self.add(field, text));
        }
    }

    fn told(pdu: &[u8]) -> Vec<(&'static str, String)> {
        let mut told = Told::default();
        describe(&request(pdu), true, &mut told);
        told.0
    }

    fn expect(pdu: &[u8], expected: &[(&'static str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        assert_eq!(told(pdu), expected);
    }

    #[test]
    fn a_search_is_described_without_its_values() {
        let expected = [
            ("dn", "dc=x"),
            ("scope", "sub"),
            ("filter", "(cn=?)"),
            ("attributes", "a"),
            ("attributes", "b"),
            ("size_limit", "10"),
            ("time_limit", "5"),
            ("controls", "!1.2.840.113556.1.4.319"),
        ];
        expect(FULL_SEARCH, &expected);
    }

    #[test]
    fn a_bind_is_described_without_its_password() {
        expect(BIND, &[("mechanism", "simple"), ("dn", "cn")]);
    }

    #[test]
    fn others_name_their_entry_their_operation_or_what_they_are() {
        expect(&delete(b"dc=x"), &[("dn", "dc=x")]);
        expect(ABANDON, &[("abandons", "2")]);
        expect(EXTENDED, &[("oid", "1.2")]);
    }

    #[test]
    fn a_text_is_shown_whatever_it_holds_and_however_long_it_is() {
        let long = "ü".repeat(MAX_NAME_BYTES);
        for (text, expected) in [
            (&b"cn=J\xc3\xbcrgen"[..], "cn=Jürgen".to_owned()),
            (b"cn=\xff", "cn=\u{FFFD}".to_owned()),
            (&long.as_bytes()[..MAX_NAME_BYTES], "ü".repeat(MAX_NAME_BYTES / 2)),
            (long.as_bytes(), "ü".repeat(MAX_NAME_BYTES / 2) + "…"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    proptest! {
        #[test]
        fn any_request_can_be_described(tag in prop::sample::select(vec![0x60_u8, 0x63, 0x66, 0x68, 0x4A, 0x6C, 0x6E, 0x50, 0x77]), content in prop::collection::vec(any::<u8>(), 0..100)) {
            let length = u8::try_from(content.len()).expect("at most 100");
            told(&[&[0x30, length + 5, 2, 1, 1, tag, length], content.as_slice()].concat());
        }
    }
}
