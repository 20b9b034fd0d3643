//! Server-side sorting (RFC 2891).

use std::cmp::Ordering;

use ldap3_proto::control::{LdapControl, ServerSortRequet as SortKey};

use super::entry::Entry;
use super::value::Value;

/// The OID of the response control.
const SORT_RESPONSE: &str = "1.2.840.113556.1.4.474";

/// Puts the entries in the order of the keys, the first key first. Entries without the attribute come last (§2.2).
pub(super) fn sort(entries: &mut [&Entry], keys: &[SortKey]) {
    entries.sort_by(|one, other| {
        keys.iter().map(|key| order(one, other, key)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    });
}

/// The response control that says the entries are sorted.
///
/// By hand, because `ldap3_proto` writes an empty attributeType of the wrong class into its own: SortResult ::= SEQUENCE {
/// sortResult ENUMERATED { success (0) } }.
pub(super) fn sorted() -> LdapControl {
    let value = Some(vec![0x30, 0x03, 0x0A, 0x01, 0x00]);
    LdapControl::Unknown { oid: SORT_RESPONSE.to_owned(), criticality: false, value }
}

fn order(one: &Entry, other: &Entry, key: &SortKey) -> Ordering {
    // The smallest value represents a multi-valued attribute (§2.2).
    let smallest = |entry: &Entry| {
        let values = entry.values(&key.attribute_name).iter();
        values.filter_map(|held| Value::parse(&key.attribute_name, held)).min()
    };
    match (smallest(one), smallest(other)) {
        (Some(one), Some(other)) if key.reverse_order => other.cmp(&one),
        (Some(one), Some(other)) => one.cmp(&other),
        // A missing value is larger than any, so reversed it comes first.
        (one, other) if key.reverse_order => one.is_some().cmp(&other.is_some()),
        (one, other) => other.is_some().cmp(&one.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted_names(keys: &[(&str, bool)]) -> String {
        let entry = |name: &str, logons: Option<&str>| {
            let entry = Entry::new(&format!("CN={name}")).expect("a DN").with("cn", [name]);
            if let Some(logons) = logons { entry.with("logonCount", [logons]) } else { entry }
        };
        let entries = [entry("b", Some("10")), entry("C", Some("9")), entry("a", None), entry("d", Some("9"))];
        let mut view: Vec<&Entry> = entries.iter().collect();
        let keys: Vec<SortKey> = keys
            .iter()
            .map(|(name, reverse)| SortKey {
                attribute_name: name.to_string(),
                ordering_rule: None,
                reverse_order: *reverse,
            })
            .collect();
        sort(&mut view, &keys);
        view.iter().filter_map(|entry| entry.text("cn")).collect()
    }

    #[test]
    fn orders() {
        assert_eq!(sorted_names(&[("cn", false)]), "abCd");
        assert_eq!(sorted_names(&[("CN", true)]), "dCba");
        assert_eq!(sorted_names(&[("logonCount", false), ("cn", true)]), "dCba");
        assert_eq!(sorted_names(&[("logonCount", true), ("cn", false)]), "abCd");
        assert_eq!(sorted_names(&[("nosuch", false)]), "bCad", "equal entries keep their order");
    }
}
