//! Distinguished names, in the form in which two spellings of one name are equal.

use std::fmt;

/// A distinguished name (RFC 4514), normalised: types and values without case, spaces squeezed, escapes undone.
///
/// It is kept root first, so that the names below a name sort right after it: a subtree is one range of a sorted map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Dn(Vec<Rdn>);

/// One level of a name: its (type, value) pairs, sorted because their order carries no meaning.
type Rdn = Vec<(String, String)>;

impl Dn {
    /// Reads the string form of RFC 4514 §3; the empty string is the root.
    pub fn parse(text: &str) -> Result<Self, InvalidDn> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut rdns = Vec::new();
        loop {
            let (rdn, after) = parse_rdn(rest)?;
            rdns.push(rdn);
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rdns.reverse();
        Ok(Self(rdns))
    }

    /// The name one level up; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, above) = self.0.split_last()?;
        Some(Self(above.to_vec()))
    }

    /// Whether this name is `base` or lies below it.
    pub fn is_within(&self, base: &Self) -> bool {
        self.0.starts_with(&base.0)
    }

    /// How many levels it has; 0 for the root.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// The value of the lowest level, such as `administrator`; `None` for the root.
    pub fn leaf_value(&self) -> Option<&str> {
        let (_, value) = self.0.last()?.first()?;
        Some(value)
    }
}

/// The text is no distinguished name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidDn;

impl fmt::Display for InvalidDn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a distinguished name (RFC 4514)")
    }
}

impl std::error::Error for InvalidDn {}

/// Lower case, runs of white space squeezed to one space: the parts of RFC 4518's preparation that matter for directory names.
pub(super) fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for letter in text.chars().flat_map(char::to_lowercase) {
        if !letter.is_whitespace() {
            folded.push(letter);
        } else if !folded.ends_with(' ') {
            folded.push(' ');
        }
    }
    folded
}

/// Reads `type=value+type=value` up to the end or a comma, and returns what follows.
fn parse_rdn(text: &str) -> Result<(Rdn, &str), InvalidDn> {
    let mut rdn = Rdn::new();
    let mut rest = text;
    loop {
        let (kind, after_equals) = rest.split_once('=').ok_or(InvalidDn)?;
        let kind = kind.trim();
        if kind.is_empty() || !kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)) {
            return Err(InvalidDn);
        }
        let (value, after) = parse_value(after_equals)?;
        rdn.push((kind.to_ascii_lowercase(), fold(&value).trim().to_owned()));
        match after.strip_prefix('+') {
            Some(more) => rest = more,
            None => {
                rdn.sort();
                return Ok((rdn, after));
            }
        }
    }
}

/// Reads a value up to an unescaped `,` or `+`, undoing the escapes of RFC 4514 §3 (`\,` and `\2C`).
fn parse_value(text: &str) -> Result<(String, &str), InvalidDn> {
    let bytes = text.as_bytes();
    let mut value = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b',' | b'+' => break,
            b'"' | b';' | b'<' | b'>' | 0 => return Err(InvalidDn),
            b'\\' => {
                let (unescaped, length) = parse_escape(&bytes[at + 1..])?;
                value.push(unescaped);
                at += 1 + length;
            }
            plain => {
                value.push(plain);
                at += 1;
            }
        }
    }
    let value = String::from_utf8(value).map_err(|_| InvalidDn)?;
    Ok((value, &text[at..]))
}

/// What stands behind a backslash, and how many bytes it takes.
fn parse_escape(bytes: &[u8]) -> Result<(u8, usize), InvalidDn> {
    let hex = |byte: &u8| char::from(*byte).to_digit(16);
    match bytes {
        [high, low, ..] if hex(high).is_some() => {
            let (Some(high), Some(low)) = (hex(high), hex(low)) else { return Err(InvalidDn) };
            let byte = u8::try_from(high * 16 + low).map_err(|_| InvalidDn)?;
            Ok((byte, 2))
        }
        [special, ..] if b" \"#+,;<=>\\".contains(special) => Ok((*special, 1)),
        _ => Err(InvalidDn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dn(text: &str) -> Dn {
        Dn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn spellings_of_one_name_are_equal() {
        let spellings = [
            "CN=Ada Lovelace,CN=Users,DC=corp,DC=example,DC=com",
            "cn=ada lovelace,cn=users,dc=CORP,dc=example,dc=com",
            " cn = Ada  Lovelace , CN=Users, DC=corp,DC=example ,DC=com ",
            r"cn=\41da Lovelace,cn=Users,dc=corp,dc=example,dc=com",
        ];
        for spelling in spellings {
            assert_eq!(dn(spelling), dn(spellings[0]), "{spelling}");
        }
        assert_eq!(dn("cn=a+sn=b,dc=c"), dn("SN=B+CN=A,dc=c"), "the order within a level carries no meaning");
        assert_eq!(dn(r"cn=Lovelace\, Ada,dc=c"), dn(r"cn=Lovelace\2C Ada,dc=c"));
        assert_eq!(dn(r"cn=Z\C3\BCrich,dc=c"), dn("cn=zürich,dc=c"));
        assert_eq!(dn("cn=a=b").leaf_value(), Some("a=b"));
    }

    #[test]
    fn different_names_differ() {
        assert_ne!(dn(r"cn=a\,dc=b"), dn("cn=a,dc=b"));
        assert_ne!(dn(r"cn=a\+sn=b"), dn("cn=a+sn=b"));
        assert_ne!(dn("cn=a,dc=b"), dn("dc=b,cn=a"));
        assert_ne!(dn("cn=a b"), dn("cn=ab"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "garbage",
            "=x",
            "cn=a,",
            ",cn=a",
            "cn=a,,dc=b",
            r"cn=a\",
            r"cn=\4",
            r"cn=\4g",
            r"cn=\zz",
            "c n=a",
            "cn=a;dc=b",
            r"cn=\FF",
        ] {
            assert_eq!(Dn::parse(text), Err(InvalidDn), "{text}");
        }
    }

    #[test]
    fn places_in_the_tree() {
        let (ada, users) = (dn("cn=ada,cn=users,dc=corp"), dn("CN=Users,DC=corp"));
        assert!(ada.is_within(&users) && ada.is_within(&ada) && ada.is_within(&Dn::default()));
        assert!(!users.is_within(&ada) && !dn("cn=x,cn=users2,dc=corp").is_within(&users));
        assert_eq!(ada.parent(), Some(users.clone()));
        assert_eq!(Dn::default().parent(), None);
        assert_eq!(dn(""), Dn::default());
        assert!(users < ada && ada < dn("cn=users2,dc=corp"), "a subtree is one range");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            let _ = Dn::parse(&text);
        }

        #[test]
        fn escaping_every_byte_changes_nothing(value in "[a-zA-Z0-9,+=é ]{1,12}") {
            let escaped: String = value.bytes().map(|byte| format!("\\{byte:02X}")).collect();
            let folded = fold(&value);
            let parsed = dn(&format!("cn={escaped},dc=c"));
            prop_assert_eq!(parsed.depth(), 2);
            prop_assert_eq!(parsed.leaf_value(), Some(folded.trim()));
        }
    }
}
