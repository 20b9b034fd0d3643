//! Attribute values, compared as AD's schema compares them.

use super::dn::{Dn, fold};

/// A value in the form that its attribute's syntax compares.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    /// Any text, and generalized times: without case, spaces squeezed.
    Text(String),
    Integer(i64),
    Name(Dn),
    Octets(Vec<u8>),
}

impl Value {
    /// Reads the value of an attribute as the directory stores it or a client asserts it; `None` if the syntax doesn't allow it.
    pub(super) fn parse(attribute: &str, bytes: &[u8]) -> Option<Self> {
        let text = || std::str::from_utf8(bytes).ok();
        Some(match Syntax::of(attribute) {
            Syntax::Text => Self::Text(fold(text()?).trim().to_owned()),
            Syntax::Integer => Self::Integer(text()?.trim().parse().ok()?),
            Syntax::Name => Self::Name(Dn::parse(text()?).ok()?),
            Syntax::Sid => Self::Octets(text().and_then(sid).unwrap_or_else(|| bytes.to_vec())),
            Syntax::Octets => Self::Octets(bytes.to_vec()),
        })
    }
}

/// The binary form (MS-DTYP §2.4.2.2) of a security identifier such as `S-1-5-21-1-2-3-500`.
pub(super) fn sid(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.strip_prefix("S-1-")?.split('-');
    let authority: u64 = parts.next()?.parse().ok()?;
    let subauthorities = parts.map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
    let mut bytes = vec![1, u8::try_from(subauthorities.len()).ok()?];
    bytes.extend_from_slice(&authority.to_be_bytes()[2..]);
    bytes.extend(subauthorities.iter().flat_map(|part| part.to_le_bytes()));
    Some(bytes)
}

/// How an attribute's values compare.
enum Syntax {
    Text,
    Integer,
    Name,
    Sid,
    Octets,
}

impl Syntax {
    /// From AD's schema, for the attributes that the directory holds; any other is text.
    fn of(attribute: &str) -> Self {
        match attribute.to_ascii_lowercase().as_str() {
            "accountexpires"
            | "admincount"
            | "badpasswordtime"
            | "badpwdcount"
            | "codepage"
            | "countrycode"
            | "grouptype"
            | "highestcommittedusn"
            | "instancetype"
            | "lastlogoff"
            | "lastlogon"
            | "lastlogontimestamp"
            | "logoncount"
            | "primarygroupid"
            | "pwdlastset"
            | "samaccounttype"
            | "systemflags"
            | "useraccountcontrol"
            | "usnchanged"
            | "usncreated" => Self::Integer,
            "configurationnamingcontext"
            | "defaultnamingcontext"
            | "distinguishedname"
            | "manager"
            | "member"
            | "memberof"
            | "namingcontexts"
            | "objectcategory"
            | "rootdomainnamingcontext"
            | "schemanamingcontext" => Self::Name,
            "objectsid" => Self::Sid,
            "jpegphoto" | "objectguid" | "thumbnailphoto" => Self::Octets,
            _ => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_syntax_has_its_own_equality() {
        let equal = [
            ("cn", "Ada  LOVELACE ", "ada lovelace"),
            ("userAccountControl", "512", "0512"),
            ("MEMBER", "cn=a, dc=b", "CN=A,DC=B"),
        ];
        for (attribute, one, other) in equal {
            let one = Value::parse(attribute, one.as_bytes());
            assert!(one.is_some(), "{attribute}");
            assert_eq!(one, Value::parse(attribute, other.as_bytes()), "{attribute}");
        }
        assert_ne!(Value::parse("objectGUID", b"A"), Value::parse("objectGUID", b"a"));
    }

    #[test]
    fn values_outside_the_syntax_are_none() {
        assert_eq!(Value::parse("userAccountControl", b"abc"), None);
        assert_eq!(Value::parse("member", b"garbage"), None);
        assert_eq!(Value::parse("cn", b"\xFF"), None);
    }

    #[test]
    fn a_sid_has_two_forms() {
        // The administrators' alias, as every domain has it.
        let administrators = [1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x20, 2, 0, 0];
        assert_eq!(sid("S-1-5-32-544").as_deref(), Some(administrators.as_slice()));
        assert_eq!(Value::parse("objectSid", b"S-1-5-32-544"), Value::parse("objectSid", &administrators));
        for text in ["S-1", "S-1-x", "S-1-5-", "S-2-5-32", "S-1-5-4294967296"] {
            assert_eq!(sid(text), None, "{text}");
        }
    }
}
