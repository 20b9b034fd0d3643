//! Search filters (RFC 4511 §4.5.1.7).

use ldap3_proto::LdapFilter;
use ldap3_proto::proto::{LdapMatchingRuleAssertion, LdapSubstringFilter};

use super::dn::fold;
use super::entry::Entry;
use super::value::Value;

/// AD's matching rules on integers that hold flags (MS-ADTS §3.1.1.3.4.4).
const BIT_AND: &str = "1.2.840.113556.1.4.803";
const BIT_OR: &str = "1.2.840.113556.1.4.804";

/// Whether the filter matches the entry.
///
/// As in Samba's database there is no *Undefined*: an assertion that can't be judged is false, and its negation true.
pub(super) fn matches(filter: &LdapFilter, entry: &Entry) -> bool {
    match filter {
        LdapFilter::And(all) => all.iter().all(|inner| matches(inner, entry)),
        LdapFilter::Or(any) => any.iter().any(|inner| matches(inner, entry)),
        LdapFilter::Not(inner) => !matches(inner, entry),
        LdapFilter::Present(attribute) => !entry.values(attribute).is_empty(),
        // Nothing is spelled approximately here: RFC 4511 lets a server take it as equality.
        LdapFilter::Equality(attribute, asserted) | LdapFilter::Approx(attribute, asserted) => {
            equals(entry, attribute, asserted.as_bytes())
        }
        LdapFilter::GreaterOrEqual(attribute, asserted) => {
            compares(entry, attribute, asserted.as_bytes(), |held, asserted| held >= asserted)
        }
        LdapFilter::LessOrEqual(attribute, asserted) => {
            compares(entry, attribute, asserted.as_bytes(), |held, asserted| held <= asserted)
        }
        LdapFilter::Substring(attribute, parts) => has_substrings(entry, attribute, parts),
        LdapFilter::Extensible(assertion) => extensible(entry, assertion),
    }
}

/// Whether one value of the attribute equals the asserted one; also the question that a compare asks.
pub(super) fn equals(entry: &Entry, attribute: &str, asserted: &[u8]) -> bool {
    if attribute.eq_ignore_ascii_case("objectCategory") && !asserted.contains(&b'=') {
        return is_of_category(entry, asserted);
    }
    compares(entry, attribute, asserted, |held, asserted| held == asserted)
}

fn compares(entry: &Entry, attribute: &str, asserted: &[u8], holds: impl Fn(&Value, &Value) -> bool) -> bool {
    let Some(asserted) = Value::parse(attribute, asserted) else { return false };
    entry.values(attribute).iter().filter_map(|held| Value::parse(attribute, held)).any(|held| holds(&held, &asserted))
}

/// AD takes a class name for the class's category (MS-ADTS §3.1.1.3.1.3.5): `(objectCategory=user)` means `CN=Person,CN=Schema,…`.
fn is_of_category(entry: &Entry, class: &[u8]) -> bool {
    let class = String::from_utf8_lossy(class).to_lowercase();
    let category = match class.as_str() {
        "user" | "organizationalperson" => "person",
        "domain" | "domaindns" => "domain-dns",
        "organizationalunit" => "organizational-unit",
        other => other,
    };
    entry.values("objectCategory").iter().any(|held| match Value::parse("objectCategory", held) {
        Some(Value::Name(dn)) => dn.leaf_value() == Some(category),
        _ => false,
    })
}

fn has_substrings(entry: &Entry, attribute: &str, parts: &LdapSubstringFilter) -> bool {
    entry.values(attribute).iter().any(|held| match Value::parse(attribute, held) {
        Some(Value::Text(text)) => text_has_substrings(&text, parts),
        _ => false,
    })
}

/// `text` is folded already. Each part takes the first place it fits in, which leaves the most to the parts after it.
fn text_has_substrings(text: &str, parts: &LdapSubstringFilter) -> bool {
    let mut rest = text;
    if let Some(initial) = &parts.initial {
        let Some(after) = rest.strip_prefix(fold(initial).trim_start()) else { return false };
        rest = after;
    }
    for part in &parts.any {
        let part = fold(part);
        let Some(at) = rest.find(&part) else { return false };
        rest = &rest[at + part.len()..];
    }
    parts.final_.as_ref().is_none_or(|last| rest.ends_with(fold(last).trim_end()))
}

fn extensible(entry: &Entry, assertion: &LdapMatchingRuleAssertion) -> bool {
    let Some(attribute) = &assertion.type_ else { return false };
    let asserted = assertion.match_value.as_bytes();
    let with_flags = |holds: fn(i64, i64) -> bool| {
        compares(entry, attribute, asserted, |held, mask| match (held, mask) {
            (Value::Integer(held), Value::Integer(mask)) => holds(*held, *mask),
            _ => false,
        })
    };
    match assertion.matching_rule.as_deref() {
        None => equals(entry, attribute, asserted),
        Some(BIT_AND) => with_flags(|held, mask| held & mask == mask),
        Some(BIT_OR) => with_flags(|held, mask| held & mask != 0),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ldap3_proto::parse_ldap_filter_str;
    use proptest::prelude::*;

    fn ada() -> Entry {
        Entry::new("CN=Ada Lovelace,CN=Users,DC=corp")
            .expect("a DN")
            .with("objectClass", ["top", "person", "user"])
            .with("cn", ["Ada Lovelace"])
            .with("description", ["Wrote  the first program"])
            .with("memberOf", ["CN=Engineering,CN=Users,DC=corp", "CN=VPN Users,CN=Users,DC=corp"])
            .with("userAccountControl", ["514"])
            .with("groupType", ["-2147483646"])
            .with("whenCreated", ["20240102030405.0Z"])
            .with("isCriticalSystemObject", ["TRUE"])
            .with("objectSid", [super::super::value::sid("S-1-5-21-1-2-3-1104").expect("a SID")])
            .with("objectCategory", ["CN=Person,CN=Schema,CN=Configuration,DC=corp"])
    }

    /// Each value in quotes: the parser takes no space and no `=` in a plain one.
    fn quoted(filter: &str) -> String {
        let (mut quoted, mut in_value) = (String::new(), false);
        for letter in filter.chars() {
            match letter {
                '=' if !in_value => quoted.push_str("=\""),
                ')' if in_value => quoted.push_str("\")"),
                other => quoted.push(other),
            }
            in_value = letter != ')' && (in_value || letter == '=');
        }
        quoted
    }

    #[test]
    fn filters_match_as_in_ad() {
        let table = [
            // equality
            ("(cn=ada lovelace)", true),
            ("(CN=ADA  LOVELACE)", true),
            ("(cn=ada)", false),
            ("(nosuch=x)", false),
            ("(objectClass=Person)", true),
            ("(isCriticalSystemObject=true)", true),
            ("(memberOf=cn=engineering, cn=users,dc=CORP)", true),
            ("(memberOf=cn=engineering)", false),
            ("(memberOf=garbage)", false),
            ("(objectSid=S-1-5-21-1-2-3-1104)", true),
            ("(objectSid=S-1-5-21-1-2-3-1105)", false),
            ("(objectCategory=person)", true),
            ("(objectCategory=User)", true),
            ("(objectCategory=group)", false),
            ("(objectCategory=cn=person,cn=schema,cn=configuration,dc=corp)", true),
            ("(cn~=ada lovelace)", true),
            // presence
            ("(cn=*)", true),
            ("(nosuch=*)", false),
            // and, or, not
            ("(&(cn=ada lovelace)(objectClass=user))", true),
            ("(&(cn=ada lovelace)(objectClass=group))", false),
            ("(|(cn=nobody)(objectClass=user))", true),
            ("(|(cn=nobody)(objectClass=group))", false),
            ("(!(cn=nobody))", true),
            ("(!(nosuch=x))", true),
            ("(&(objectClass=user)(!(userAccountControl:1.2.840.113556.1.4.803:=2)))", false),
            // substrings
            ("(cn=ada*)", true),
            ("(cn=*LACE)", true),
            ("(cn=*a*lo*e)", true),
            ("(cn=a*v*v*)", false),
            ("(cn=ada love*lovelace)", false),
            ("(cn=ada *)", true),
            ("(cn=ada  *lace )", true),
            ("(description=wrote the*)", true),
            ("(memberOf=CN=Eng*)", false),
            // ordering
            ("(userAccountControl>=514)", true),
            ("(userAccountControl>=99)", true),
            ("(userAccountControl>=515)", false),
            ("(userAccountControl<=514)", true),
            ("(userAccountControl<=99)", false),
            ("(userAccountControl>=abc)", false),
            ("(whenCreated>=20240101000000.0Z)", true),
            ("(whenCreated<=20240101000000.0Z)", false),
            ("(cn>=ad)", true),
            // matching rules
            ("(userAccountControl:1.2.840.113556.1.4.803:=2)", true),
            ("(userAccountControl:1.2.840.113556.1.4.803:=3)", false),
            ("(userAccountControl:1.2.840.113556.1.4.804:=3)", true),
            ("(userAccountControl:1.2.840.113556.1.4.804:=4)", false),
            ("(groupType:1.2.840.113556.1.4.803:=2147483648)", true),
            ("(cn:1.2.840.113556.1.4.803:=2)", false),
            ("(cn:=ada lovelace)", true),
            ("(cn:1.2.3.4:=ada lovelace)", false),
        ];
        let ada = ada();
        for (text, expected) in table {
            let filter = parse_ldap_filter_str(&quoted(text)).unwrap_or_else(|error| panic!("{text}: {error:?}"));
            assert_eq!(matches(&filter, &ada), expected, "{text}");
        }
    }

    #[test]
    fn the_empty_and_is_true_the_empty_or_false() {
        assert!(matches(&LdapFilter::And(vec![]), &ada()), "RFC 4526");
        assert!(!matches(&LdapFilter::Or(vec![]), &ada()), "RFC 4526");
    }

    proptest! {
        #[test]
        fn a_text_matches_its_own_pieces(text in "[a-c ]{1,10}", cuts in prop::collection::vec(0usize..10, 0..3)) {
            let text = fold(&text).trim().to_owned();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut bounds = vec![0];
            bounds.extend(cuts);
            bounds.push(text.len());
            let mut pieces: Vec<String> = bounds.windows(2).map(|ends| text[ends[0]..ends[1]].to_owned()).collect();
            let last = pieces.pop();
            let initial = if pieces.is_empty() { None } else { Some(pieces.remove(0)) };
            let parts = LdapSubstringFilter { initial, any: pieces, final_: last };
            prop_assert!(text_has_substrings(&text, &parts), "{text:?} {parts:?}");
        }
    }
}
