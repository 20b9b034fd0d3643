//! The directory: entries in memory, and the questions that need no connection.

use std::collections::BTreeMap;

use ldap3_proto::{LdapFilter, LdapSearchScope};

use super::dn::{Dn, InvalidDn};
use super::entry::Entry;
use super::filter;

/// Flag of userAccountControl (MS-ADTS §2.2.16).
const ACCOUNT_DISABLED: i64 = 0x2;

/// What a domain is called in its several ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Such as `corp.example.com`.
    pub dns: String,
    /// Such as `CORP`.
    pub netbios: String,
    /// Such as `DC=corp,DC=example,DC=com`.
    pub base: String,
}

/// Entries in memory. Read-only once it is served, so any number of servers may share one.
#[derive(Clone)]
pub struct Directory {
    domain: Domain,
    contexts: Vec<NamingContext>,
    entries: BTreeMap<Dn, Entry>,
}

impl Directory {
    /// A directory without entries that holds the naming context `domain.base`.
    pub fn new(domain: Domain) -> Result<Self, InvalidDn> {
        let base = NamingContext::new(&domain.base)?;
        Ok(Self { domain, contexts: vec![base], entries: BTreeMap::new() })
    }

    /// Adds a naming context. A search from above doesn't enter it: it gets a reference to it, as in AD.
    pub fn add_naming_context(&mut self, name: &str) -> Result<(), InvalidDn> {
        self.contexts.push(NamingContext::new(name)?);
        Ok(())
    }

    /// Adds an entry, in the place of one with the same name.
    pub fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.dn().clone(), entry);
    }

    /// The names of the domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The naming contexts as they are shown; the domain's is the first.
    pub(super) fn naming_contexts(&self) -> impl Iterator<Item = &str> {
        self.contexts.iter().map(|context| context.name.as_str())
    }

    /// The entry of this name.
    pub fn entry(&self, dn: &Dn) -> Option<&Entry> {
        self.entries.get(dn)
    }

    /// The entry that a simple bind with this name and password may act as. The name is a DN, a userPrincipalName,
    /// `account@domain` or `DOMAIN\account`, as Samba takes it.
    pub(super) fn authenticate(&self, name: &str, password: &str) -> Result<&Entry, BindRefusal> {
        let account =
            self.account(name).filter(|account| account.accepts(password)).ok_or(BindRefusal::WrongNameOrPassword)?;
        let number = |attribute| account.text(attribute).and_then(|text| text.parse::<i64>().ok());
        if number("userAccountControl").is_some_and(|flags| flags & ACCOUNT_DISABLED != 0) {
            return Err(BindRefusal::Disabled);
        }
        if number("pwdLastSet") == Some(0) {
            return Err(BindRefusal::PasswordMustChange);
        }
        Ok(account)
    }

    /// The entries in the scope that match, in the order of their names, and the references to other naming contexts in it.
    pub(super) fn search(
        &self,
        base: &Dn,
        scope: &LdapSearchScope,
        filter: &LdapFilter,
    ) -> Result<Found<'_>, NoSuchObject<'_>> {
        if !self.entries.contains_key(base) {
            return Err(self.no_such_object(base));
        }
        let context = self.context_of(base);
        let entries = self
            .subtree(base)
            .filter(|entry| in_scope(entry.dn(), base, scope) && self.context_of(entry.dn()) == context)
            .filter(|entry| filter::matches(filter, entry))
            .collect();
        Ok(Found { entries, references: self.references(base, scope) })
    }

    /// The refusal for a name that isn't there, which says how far the name leads (RFC 4511 §4.1.9).
    pub(super) fn no_such_object(&self, dn: &Dn) -> NoSuchObject<'_> {
        let matched = std::iter::successors(dn.parent(), Dn::parent).find_map(|above| self.entries.get(&above));
        NoSuchObject { matched: matched.map_or("", Entry::name) }
    }

    fn account(&self, name: &str) -> Option<&Entry> {
        if let Ok(dn) = Dn::parse(name) {
            return self.entries.get(&dn);
        }
        let Domain { dns, netbios, .. } = &self.domain;
        let has = |entry: &Entry, attribute, wanted: &str| {
            entry.text(attribute).is_some_and(|held| held.to_lowercase() == wanted.to_lowercase())
        };
        let account_name = match (name.split_once('\\'), name.rsplit_once('@')) {
            (Some((domain, account)), _) if domain.eq_ignore_ascii_case(netbios) => Some(account),
            (None, Some((account, domain))) if domain.eq_ignore_ascii_case(dns) => Some(account),
            _ => None,
        };
        self.entries.values().find(|entry| {
            has(entry, "userPrincipalName", name)
                || account_name.is_some_and(|account| has(entry, "sAMAccountName", account))
        })
    }

    /// `base` and all below it, whatever its naming context.
    fn subtree(&self, base: &Dn) -> impl Iterator<Item = &Entry> {
        self.entries.range(base..).take_while(|(dn, _)| dn.is_within(base)).map(|(_, entry)| entry)
    }

    /// The place of the innermost naming context that holds the name.
    fn context_of(&self, dn: &Dn) -> Option<usize> {
        let holding = self.contexts.iter().enumerate().filter(|(_, context)| dn.is_within(&context.dn));
        holding.max_by_key(|(_, context)| context.dn.depth()).map(|(place, _)| place)
    }

    /// Where to go on for the naming contexts right below the searched one, as Samba words it: on its own server, in
    /// cleartext, by the domain's name.
    fn references(&self, base: &Dn, scope: &LdapSearchScope) -> Vec<String> {
        let context = self.context_of(base);
        let adjoining = |other: &&NamingContext| {
            other.dn.parent().is_some_and(|above| {
                other.dn != *base
                    && above.is_within(base)
                    && self.context_of(&above) == context
                    && in_scope(&other.dn, base, scope)
            })
        };
        let suffix = if *scope == LdapSearchScope::OneLevel { "??base" } else { "" };
        let dns = &self.domain.dns;
        self.contexts.iter().filter(adjoining).map(|other| format!("ldap://{dns}/{}{suffix}", other.name)).collect()
    }
}

/// What a search found.
pub(super) struct Found<'a> {
    pub(super) entries: Vec<&'a Entry>,
    pub(super) references: Vec<String>,
}

/// There is no entry of the name; `matched` is the nearest one above it, or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoSuchObject<'a> {
    pub(super) matched: &'a str,
}

/// Why a simple bind was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindRefusal {
    /// Samba tells nobody which of the two it was.
    WrongNameOrPassword,
    /// The password was right.
    Disabled,
    /// The password was right.
    PasswordMustChange,
}

impl BindRefusal {
    /// AD's code for it, in hexadecimal, as the diagnostic message carries it.
    pub(super) const fn sub_code(self) -> &'static str {
        match self {
            Self::WrongNameOrPassword => "52e",
            Self::Disabled => "533",
            Self::PasswordMustChange => "773",
        }
    }
}

#[derive(Clone)]
struct NamingContext {
    dn: Dn,
    name: String,
}

impl NamingContext {
    fn new(name: &str) -> Result<Self, InvalidDn> {
        Ok(Self { dn: Dn::parse(name)?, name: name.to_owned() })
    }
}

/// `dn` is known to be `base` or below it.
fn in_scope(dn: &Dn, base: &Dn, scope: &LdapSearchScope) -> bool {
    let levels = dn.depth() - base.depth();
    match scope {
        LdapSearchScope::Base => levels == 0,
        LdapSearchScope::OneLevel => levels == 1,
        LdapSearchScope::Subtree => true,
        LdapSearchScope::Children => levels > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{ADMINISTRATOR_PASSWORD, USER_PASSWORD};

    const BASE: &str = "DC=corp,DC=example,DC=com";

    fn names(directory: &Directory, base: &str, scope: LdapSearchScope, filter: &str) -> Vec<String> {
        let base = Dn::parse(base).expect("a DN");
        let filter = ldap3_proto::parse_ldap_filter_str(filter).expect("a filter");
        let found = directory.search(&base, &scope, &filter).expect("the base exists");
        found.entries.iter().map(|entry| entry.name().to_owned()).collect()
    }

    #[test]
    fn the_corporation_is_complete() {
        let corp = Directory::corp();
        let count = |filter| names(&corp, BASE, LdapSearchScope::Subtree, filter).len();
        assert_eq!(count("(sAMAccountName=administrator)"), 1);
        assert_eq!(count("(&(objectCategory=person)(objectClass=user)(!(adminCount=1)))"), 20);
        assert_eq!(count("(objectClass=group)"), 5);
        assert_eq!(count("(&(objectClass=group)(!(member=*)))"), 0);
        assert_eq!(count("(userAccountControl:1.2.840.113556.1.4.803:=2)"), 1);
    }

    #[test]
    fn member_and_member_of_mirror_each_other() {
        let corp = Directory::corp();
        let mut links = 0;
        for group in corp.entries.values() {
            for member in group.values("member") {
                let member = Dn::parse(std::str::from_utf8(member).expect("text")).expect("a DN");
                let member = corp.entry(&member).expect("every member is an entry");
                assert!(member.values("memberOf").iter().any(|of| of == group.name().as_bytes()), "{}", member.name());
                links += 1;
            }
        }
        let back: usize = corp.entries.values().map(|entry| entry.values("memberOf").len()).sum();
        assert!(links > 20 && links == back, "{links} {back}");
    }

    #[test]
    fn every_entry_has_its_own_identity() {
        let corp = Directory::corp();
        for attribute in ["objectGUID", "objectSid", "distinguishedName"] {
            let mut held: Vec<_> = corp.entries.values().filter_map(|entry| entry.values(attribute).first()).collect();
            let before = held.len();
            held.sort();
            held.dedup();
            assert!(before > 20 && held.len() == before, "{attribute}");
        }
    }

    #[test]
    fn scopes() {
        let corp = Directory::corp();
        let users = format!("cn=users,{BASE}");
        let all = "(objectClass=*)";
        assert_eq!(names(&corp, &users, LdapSearchScope::Base, all), ["CN=Users,DC=corp,DC=example,DC=com"]);
        let one = names(&corp, &users, LdapSearchScope::OneLevel, all);
        let sub = names(&corp, &users, LdapSearchScope::Subtree, all);
        assert_eq!((one.len(), sub.len()), (26, 27));
        assert_eq!(names(&corp, &users, LdapSearchScope::Children, all), one);
        let below_domain = names(&corp, BASE, LdapSearchScope::OneLevel, all);
        assert!(below_domain.contains(&"CN=Users,DC=corp,DC=example,DC=com".to_owned()), "{below_domain:?}");
        assert!(!below_domain.iter().any(|name| name.contains("Configuration")), "another naming context");
    }

    #[test]
    fn other_naming_contexts_are_referred_to() {
        let corp = Directory::corp();
        let all = LdapFilter::Present("objectClass".into());
        let references = |base: &str, scope| {
            let base = Dn::parse(base).expect("a DN");
            corp.search(&base, &scope, &all).expect("the base exists").references
        };
        let configuration = "ldap://corp.example.com/CN=Configuration,DC=corp,DC=example,DC=com";
        assert_eq!(references(BASE, LdapSearchScope::Subtree), [configuration]);
        assert_eq!(references(BASE, LdapSearchScope::OneLevel), [format!("{configuration}??base")]);
        assert!(references(BASE, LdapSearchScope::Base).is_empty());
        assert!(references(&format!("CN=Users,{BASE}"), LdapSearchScope::Subtree).is_empty());
        assert_eq!(references(&format!("CN=Configuration,{BASE}"), LdapSearchScope::Subtree).len(), 1, "the schema");
    }

    #[test]
    fn a_missing_base_names_the_nearest_entry_above() {
        let corp = Directory::corp();
        let matched = |dn: &str| corp.no_such_object(&Dn::parse(dn).expect("a DN")).matched;
        assert_eq!(matched(&format!("cn=x,cn=y,cn=users,{BASE}")), "CN=Users,DC=corp,DC=example,DC=com");
        assert_eq!(matched("dc=other"), "");
    }

    #[test]
    fn names_that_bind() {
        let corp = Directory::corp();
        let administrator = [
            "administrator@corp.example.com",
            "ADMINISTRATOR@CORP.EXAMPLE.COM",
            r"CORP\Administrator",
            r"corp\administrator",
            "cn=administrator,cn=users,dc=corp,dc=example,dc=com",
        ];
        for name in administrator {
            let entry = corp.authenticate(name, ADMINISTRATOR_PASSWORD);
            assert_eq!(
                entry.ok().map(Entry::name),
                Some("CN=Administrator,CN=Users,DC=corp,DC=example,DC=com"),
                "{name}"
            );
        }
        assert!(corp.authenticate(r"CORP\ada.lovelace", USER_PASSWORD).is_ok());
    }

    #[test]
    fn names_and_passwords_that_do_not_bind() {
        use BindRefusal::{Disabled, PasswordMustChange, WrongNameOrPassword};
        let corp = Directory::corp();
        let table = [
            ("Administrator", ADMINISTRATOR_PASSWORD, WrongNameOrPassword),
            ("administrator@corp.example.com", USER_PASSWORD, WrongNameOrPassword),
            ("administrator@corp.example.com", "", WrongNameOrPassword),
            (r"OTHER\Administrator", ADMINISTRATOR_PASSWORD, WrongNameOrPassword),
            ("nobody@corp.example.com", USER_PASSWORD, WrongNameOrPassword),
            ("CN=Users,DC=corp,DC=example,DC=com", "", WrongNameOrPassword),
            ("", USER_PASSWORD, WrongNameOrPassword),
            (r"CORP\edsger.dijkstra", USER_PASSWORD, Disabled),
            (r"CORP\edsger.dijkstra", "wrong", WrongNameOrPassword),
            (r"CORP\vint.cerf", USER_PASSWORD, PasswordMustChange),
        ];
        for (name, password, refusal) in table {
            assert_eq!(corp.authenticate(name, password).err(), Some(refusal), "{name} {password}");
        }
    }
}
