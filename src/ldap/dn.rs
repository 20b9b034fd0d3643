//! Distinguished names (RFC 4514), read to be compared.
//!
//! A policy compares a name here and the backend opens an entry there, so the reader is at least as strict as any
//! backend: quoted values, `;` between components, `+`, `#` values and `<GUID=…>` are not names for it.

use std::fmt::{self, Write as _};

/// A distinguished name in a form that compares equal whatever case, spaces and escapes it was written with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dn {
    /// From the leaf to the root, as in the text.
    components: Vec<Component>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Component {
    attribute: String,
    value: String,
}

impl Dn {
    /// Reads a DN; `None` if the text is none. The empty text is the root's DN.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim_matches(' ').is_empty() {
            return Some(Self { components: Vec::new() });
        }
        let components = split_at_commas(text).into_iter().map(component).collect::<Option<_>>()?;
        Some(Self { components })
    }

    /// Whether this is `base` or an entry below it.
    pub fn is_within(&self, base: &Self) -> bool {
        self.components.ends_with(&base.components)
    }

    /// Whether this is the root's, the empty one.
    pub fn is_root(&self) -> bool {
        self.components.is_empty()
    }

    /// The value of the leaf component, folded.
    pub fn leaf_value(&self) -> Option<&str> {
        self.components.first().map(|component| component.value.as_str())
    }

    /// The DNS domain that a naming context made of `dc=` components alone stands for (RFC 2247), in lower case.
    pub fn domain(&self) -> Option<String> {
        let labels: Option<Vec<&str>> = self
            .components
            .iter()
            .map(|component| (component.attribute == "dc").then_some(component.value.as_str()))
            .collect();
        labels.map(|labels| labels.join(".")).filter(|domain| !domain.is_empty())
    }
}

/// One text for all the ways the name can be written: in lower case, each character that isn't plain as its escaped
/// octets, so that a comma in the text is always one between components.
impl fmt::Display for Dn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Component { attribute, value }) in self.components.iter().enumerate() {
            write!(f, "{}{attribute}=", if index == 0 { "" } else { "," })?;
            for character in value.chars() {
                match character {
                    ' ' | '-' | '_' | '.' | '@' => f.write_char(character)?,
                    plain if plain.is_alphanumeric() => f.write_char(plain)?,
                    special => {
                        for octet in special.encode_utf8(&mut [0; 4]).bytes() {
                            write!(f, "\\{octet:02x}")?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The text in lower case, without spaces around it and with each run of spaces inside as one: how directories compare
/// strings that ignore case (RFC 4518 §2.4, §2.6.1). ς, which is in lower case as it is, is σ: Samba compares in upper case,
/// where both are Σ. There is no other such letter, and ß must not become two, as it would in upper case here but not there.
pub fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !folded.is_empty() {
            folded.push(' ');
        }
        folded.extend(word.chars().flat_map(char::to_lowercase).map(|lower| if lower == 'ς' { 'σ' } else { lower }));
    }
    folded
}

/// The pieces between commas that no backslash precedes.
fn split_at_commas(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, octet) in text.bytes().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

fn component(text: &str) -> Option<Component> {
    let (attribute, value) = text.split_once('=')?;
    let attribute = attribute.trim_matches(' ');
    if attribute.is_empty() || !attribute.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
        return None;
    }
    let value = fold(&unescape(value)?);
    if value.is_empty() {
        return None;
    }
    Some(Component { attribute: attribute.to_ascii_lowercase(), value })
}

/// A component's value without its escapes (RFC 4514 §2.4); `None` where a character stands bare that must not.
fn unescape(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.trim_start_matches(' ').bytes();
    while let Some(octet) = rest.next() {
        match octet {
            b'\\' => octets.push(escaped(&mut rest)?),
            b'#' if octets.is_empty() => return None,
            b'"' | b'+' | b';' | b'<' | b'>' => return None,
            octet => octets.push(octet),
        }
    }
    String::from_utf8(octets).ok().filter(|value| !value.contains('\0'))
}

fn escaped(rest: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let first = rest.next()?;
    if b" \"#+,;<=>\\".contains(&first) {
        return Some(first);
    }
    let digit = |octet: u8| char::from(octet).to_digit(16);
    let value = digit(first)? << 4 | digit(rest.next()?)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dn(text: &str) -> Dn {
        Dn::parse(text).unwrap_or_else(|| panic!("{text:?} is a DN"))
    }

    #[test]
    fn names_that_are_equal_however_written() {
        let plain = dn("cn=ann lee,ou=people,dc=example,dc=com");
        for other in [
            "CN=Ann Lee,OU=People,DC=Example,DC=COM",
            " cn = Ann   Lee , ou=people ,dc=example,  dc=com ",
            r"cn=\61nn\20lee,ou=people,dc=example,dc=com",
            r"cn=ann lee\ ,ou=people,dc=example,dc=com",
        ] {
            assert_eq!(dn(other), plain, "{other}");
        }
        assert_eq!(dn(r"cn=M\C3\BCller"), dn("cn=MÜLLER"));
    }

    #[test]
    fn case_does_not_count() {
        for (one, other, equal) in [
            ("Ann", "aNN", true),
            ("ÉCOLE", "école", true),
            ("πέτρος", "ΠΈΤΡΟΣ", true),
            ("πέτρος", "πέτροσ", true),
            ("Straße", "STRASSE", false),
        ] {
            assert_eq!(fold(one) == fold(other), equal, "{one} {other}");
        }
    }

    #[test]
    fn within() {
        let base = dn("ou=people,dc=example,dc=com");
        for (name, inside) in [
            ("OU=People, DC=example, DC=com", true),
            ("cn=ann,ou=people,dc=example,dc=com", true),
            (r"cn=a\,b,ou=people,dc=example,dc=com", true),
            ("dc=example,dc=com", false),
            ("", false),
            ("ou=morepeople,dc=example,dc=com", false),
            // The comma is part of a value: this names an entry right below dc=com.
            (r"cn=ann\,ou=people\,dc=example,dc=com", false),
            (r"cn=x\2Cou=people,dc=example,dc=com", false),
            ("cn=ann,ou=people,dc=example,dc=com,dc=evil", false),
        ] {
            assert_eq!(dn(name).is_within(&base), inside, "{name}");
        }
        assert!(base.is_within(&dn("")));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_name() {
        for text in [
            "ann",
            "cn=",
            "=ann",
            "cn=ann,",
            ",cn=ann",
            "cn=ann,,dc=com",
            "c n=ann",
            r#"cn="ann,ou=people""#,
            "cn=ann;ou=people",
            "cn=ann+sn=lee",
            "cn=#0403616e6e",
            "<GUID=b6e1f1e0-0000-0000-0000-000000000000>",
            "cn=ann\0,dc=com",
            r"cn=ann\00",
            r"cn=ann\",
            r"cn=\zz",
            r"cn=\ff",
        ] {
            assert_eq!(Dn::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn domains() {
        assert_eq!(dn("DC=corp,DC=example,DC=com").domain().as_deref(), Some("corp.example.com"));
        assert_eq!(dn("cn=configuration,dc=corp,dc=example,dc=com").domain(), None);
        assert_eq!(dn("").domain(), None);
    }

    #[test]
    fn one_text_for_every_way_to_write_it() {
        assert_eq!(dn(r" CN = Lee\, Ann ,DC=Example").to_string(), r"cn=lee\2c ann,dc=example");
        assert_eq!(dn(r"cn=M\C3\BCller*").to_string(), r"cn=müller\2a");
        assert_eq!(dn("").to_string(), "");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Some(name) = Dn::parse(&text) {
                prop_assert_eq!(Dn::parse(&name.to_string()), Some(name));
            }
        }

        /// Every value, escaped octet by octet, is the value again, and never reaches outside its component.
        #[test]
        fn escapes_keep_a_value_in_its_component(value in "[^\0]{0,20}") {
            let escaped: String = value.bytes().map(|octet| format!("\\{octet:02x}")).collect();
            let name = Dn::parse(&format!("cn={escaped},dc=example"));
            if fold(&value).is_empty() {
                prop_assert_eq!(name, None);
            } else {
                let name = name.expect("a DN");
                prop_assert!(name.is_within(&dn("dc=example")) && !name.is_within(&name_of_two()));
                let folded = fold(&value);
                prop_assert_eq!(name.leaf_value(), Some(folded.as_str()));
            }
        }
    }

    fn name_of_two() -> Dn {
        dn("ou=people,dc=example")
    }
}
