//! Patterns for the names that may bind.

use crate::ldap::dn::{Dn, fold};
use crate::throttle::{LoginName, is_escaped_principal};

/// A pattern for names. `*` stands for any characters, also none; case and repeated spaces don't count.
///
/// A pattern without `=`, `@`, `\` and `/` is compared with the account, however the name is written:
/// see [`LoginName::account`]. Any other is compared with the whole name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    Account(String),
    Name(String),
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        if text.contains(['=', '@', '\\', '/']) { Self::Name(tidy(text)) } else { Self::Account(fold(text)) }
    }

    pub(super) fn matches(&self, name: &LoginName) -> bool {
        match self {
            Self::Account(pattern) => name.account().is_some_and(|account| glob(pattern, account)),
            Self::Name(pattern) => whole(name).is_some_and(|name| glob(pattern, &name)),
        }
    }

    /// Whether a backend may read a name in it that matches.
    pub(super) fn may_match(&self, name: &LoginName) -> bool {
        let unclear = match self {
            Self::Account(_) => name.account().is_none(),
            Self::Name(_) => whole(name).is_none(),
        };
        unclear || self.matches(name)
    }
}

/// The whole name in a form to compare; `None` where a backend may read it otherwise than we do.
fn whole(name: &LoginName) -> Option<String> {
    let text = name.as_str();
    match text {
        _ if text.contains('\0') => None,
        _ if text.contains('=') => Dn::parse(text).map(|dn| dn.to_string()),
        _ if is_escaped_principal(text) => None,
        _ => Some(fold(text)),
    }
}

/// A pattern for DNs can't be read as a DN, since `*` may stand for components; so only the spaces around separators go.
fn tidy(pattern: &str) -> String {
    let trimmed = |text: &str, separator: char| {
        text.split(separator).map(fold).collect::<Vec<_>>().join(separator.encode_utf8(&mut [0; 4]))
    };
    if pattern.contains('=') { trimmed(&trimmed(pattern, ','), '=') } else { fold(pattern) }
}

/// Whether `text` matches `pattern`, in time that is at worst the product of their lengths.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last `*` met, and where the text that it doesn't swallow begins.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&octet| octet == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, matches) in [
            ("administrator", "Administrator@corp.example.com", true),
            ("administrator", "CORP\\Administrator", true),
            ("ADMINISTRATOR", "cn=administrator,cn=users,dc=corp,dc=example,dc=com", true),
            ("administrator", "administrator2@corp.example.com", false),
            ("svc-*", "svc-app@corp.example.com", true),
            ("*", "<GUID=497cdaf3-bac5-48f4-ab36-c0fda2331a32>", false),
            ("*@corp.example.com", "ann@CORP.example.com", true),
            ("*@corp.example.com", "CORP\\ann", false),
            ("*@corp.example.com", "ann@corp.example.com\0@x", false),
            ("*@corp.example.com", "x\0@corp.example.com", false),
            ("*@corp.example.com", r"a\nn@corp.example.com", false),
            ("*@corp.example.com", r"ann\@corp.example.com@corp.example.com", false),
            ("ann", r"a\nn@corp.example.com", false),
            ("nn", r"a\nn@corp.example.com", false),
            ("corp\\*", r"corp\a\nn@corp.example.com", false),
            ("corp\\*", "CORP\\ann", true),
            ("*, OU = Services ,dc=corp", "cn=app, ou=services, dc=corp", true),
            ("*,ou=services,dc=corp", r"CN=\61pp,OU=Services,DC=corp", true),
            // The comma is part of a value: the entry isn't in that unit.
            ("*,ou=services,dc=corp", r"cn=app\,ou=services,dc=corp", false),
            ("*,ou=services,dc=corp", r"cn=app\2cou=services,dc=corp", false),
            ("*,ou=services,dc=corp", "cn=\"app\",ou=services,dc=corp", false),
            ("cn=lee\\2c ann,dc=corp", r"cn=Lee\, Ann,dc=corp", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(&LoginName::new(name.as_bytes())), matches, "{pattern} {name:?}");
        }
    }

    #[test]
    fn globs() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "a", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*ab", "aab", true),
            ("**", "x", true),
            ("é*", "école", true),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }

    /// The rule, said the slow way.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|from| slow(rest, &text[from..])),
            Some((octet, rest)) => text.first() == Some(octet) && slow(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_the_slow_rule(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            prop_assert_eq!(glob(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
