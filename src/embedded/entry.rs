//! Entries and what a search returns of them.

use ldap3_proto::{LdapPartialAttribute, LdapSearchResultEntry};

use super::dn::{Dn, InvalidDn};

/// One entry: its name, its attributes in the order and spelling they are shown in, and the password that binds as it.
#[derive(Clone)]
pub struct Entry {
    dn: Dn,
    name: String,
    attributes: Vec<LdapPartialAttribute>,
    operational: Vec<LdapPartialAttribute>,
    password: Option<String>,
}

impl Entry {
    /// An entry without attributes; `name` is the DN as it will be shown.
    pub fn new(name: &str) -> Result<Self, InvalidDn> {
        Ok(Self {
            dn: Dn::parse(name)?,
            name: name.to_owned(),
            attributes: Vec::new(),
            operational: Vec::new(),
            password: None,
        })
    }

    /// With this attribute, whose values may be text or bytes.
    #[must_use]
    pub fn with<V: Into<Vec<u8>>>(mut self, attribute: &str, values: impl IntoIterator<Item = V>) -> Self {
        self.attributes.push(new_attribute(attribute, values));
        self
    }

    /// With this operational attribute: shown only where a search asks for it by name or with `+` (RFC 3673).
    #[must_use]
    pub fn with_operational<V: Into<Vec<u8>>>(mut self, attribute: &str, values: impl IntoIterator<Item = V>) -> Self {
        self.operational.push(new_attribute(attribute, values));
        self
    }

    /// With the password that a simple bind as this entry must give. No attribute shows it.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Where the entry stands.
    pub fn dn(&self) -> &Dn {
        &self.dn
    }

    /// The DN as it is shown.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The values of an attribute, named in any case; empty if it has none.
    pub fn values(&self, attribute: &str) -> &[Vec<u8>] {
        self.attributes
            .iter()
            .chain(&self.operational)
            .find(|held| held.atype.eq_ignore_ascii_case(attribute))
            .map_or(&[], |held| &held.vals)
    }

    /// The first value of an attribute, if it is text.
    pub(super) fn text(&self, attribute: &str) -> Option<&str> {
        std::str::from_utf8(self.values(attribute).first()?).ok()
    }

    /// Whether `password` binds as this entry.
    pub(super) fn accepts(&self, password: &str) -> bool {
        self.password.as_deref() == Some(password)
    }

    /// What a search that asks for `attributes` gets (RFC 4511 §4.5.1.8): none or `*` for all user attributes, `+` for the
    /// operational ones, `1.1` for none.
    pub(super) fn project(&self, attributes: &[String], types_only: bool) -> LdapSearchResultEntry {
        let asked = |name: &str| attributes.iter().any(|asked| asked.eq_ignore_ascii_case(name));
        let all_user = attributes.is_empty() || asked("*");
        let user = self.attributes.iter().filter(|held| all_user || asked(&held.atype));
        let operational = self.operational.iter().filter(|held| asked("+") || asked(&held.atype));
        let mut selected: Vec<_> = user.chain(operational).cloned().collect();
        if types_only {
            selected.iter_mut().for_each(|attribute| attribute.vals.clear());
        }
        LdapSearchResultEntry { dn: self.name.clone(), attributes: selected }
    }
}

fn new_attribute<V: Into<Vec<u8>>>(name: &str, values: impl IntoIterator<Item = V>) -> LdapPartialAttribute {
    LdapPartialAttribute { atype: name.to_owned(), vals: values.into_iter().map(Into::into).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_selection() {
        let entry = Entry::new("CN=Ada,DC=corp")
            .expect("a DN")
            .with("cn", ["Ada"])
            .with("memberOf", ["CN=a,DC=corp", "CN=b,DC=corp"])
            .with_operational("createTimeStamp", ["20240102030405.0Z"]);
        let table: &[(&[&str], &[&str])] = &[
            (&[], &["cn", "memberOf"]),
            (&["*"], &["cn", "memberOf"]),
            (&["+"], &["createTimeStamp"]),
            (&["*", "+"], &["cn", "memberOf", "createTimeStamp"]),
            (&["1.1"], &[]),
            (&["1.1", "cn"], &["cn"]),
            (&["MEMBEROF", "memberOf", "nosuch"], &["memberOf"]),
            (&["createtimestamp"], &["createTimeStamp"]),
            (&["*", "createtimestamp"], &["cn", "memberOf", "createTimeStamp"]),
        ];
        for (asked, shown) in table {
            let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
            let projected = entry.project(&asked, false);
            let names: Vec<&str> = projected.attributes.iter().map(|attribute| attribute.atype.as_str()).collect();
            assert_eq!(&names, shown, "{asked:?}");
            assert!(projected.attributes.iter().all(|attribute| !attribute.vals.is_empty()));
        }
        let types = entry.project(&[], true);
        assert_eq!(types.attributes.len(), 2);
        assert!(types.attributes.iter().all(|attribute| attribute.vals.is_empty()));
    }
}
