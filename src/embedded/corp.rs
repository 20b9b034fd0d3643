//! The example domain corp.example.com, shaped as Samba 4.17 shows a freshly provisioned domain with people in it.

use super::directory::{Directory, Domain};
use super::entry::Entry;
use super::value::sid;

/// The password of `administrator@corp.example.com`. It has no character that a shell would read.
pub const ADMINISTRATOR_PASSWORD: &str = "Passw0rd-demo";

/// The password of every other user.
pub const USER_PASSWORD: &str = "Passw0rd-user";

const BASE: &str = "DC=corp,DC=example,DC=com";
const DOMAIN_SID: &str = "S-1-5-21-1004336348-1177238915-682003330";
const CREATED: &str = "20240102030405.0Z";
const NEVER: &str = "9223372036854775807";

/// Their accounts are `first.last`. Edsger Dijkstra's is disabled; Vint Cerf must change his password.
const PEOPLE: [(&str, &str, &str); 20] = [
    ("Ada", "Lovelace", "Engineering"),
    ("Alan", "Turing", "Engineering"),
    ("Barbara", "Liskov", "Engineering"),
    ("Dennis", "Ritchie", "Engineering"),
    ("Donald", "Knuth", "Engineering"),
    ("Edsger", "Dijkstra", "Engineering"),
    ("Frances", "Allen", "Engineering"),
    ("Grace", "Hopper", "Engineering"),
    ("Hedy", "Lamarr", "Engineering"),
    ("John", "McCarthy", "Engineering"),
    ("Katherine", "Johnson", "Finance"),
    ("Ken", "Thompson", "Engineering"),
    ("Margaret", "Hamilton", "Operations"),
    ("Mary", "Jackson", "Finance"),
    ("Radia", "Perlman", "Operations"),
    ("Sophie", "Wilson", "Engineering"),
    ("Tim", "Berners-Lee", "Operations"),
    ("Tony", "Hoare", "Engineering"),
    ("Vint", "Cerf", "Operations"),
    ("Jörg", "Müller", "Finance"),
];

impl Directory {
    /// The domain corp.example.com: Administrator, 20 users and 5 groups below `CN=Users`.
    pub fn corp() -> Self {
        let domain = Domain { dns: "corp.example.com".to_owned(), netbios: "CORP".to_owned(), base: BASE.to_owned() };
        let mut corp = Self::new(domain).expect("BASE is a DN");
        for context in ["CN=Configuration", "CN=Schema,CN=Configuration"] {
            corp.add_naming_context(&format!("{context},{BASE}")).expect("both are DNs");
        }
        let groups = groups();
        let users = PEOPLE.iter().zip(1104..).map(|(person, rid)| (user(person, rid), rid));
        let objects = containers()
            .into_iter()
            .zip(1..)
            .chain([(administrator(), 500)])
            .chain(users)
            .chain(groups.iter().map(|group| (group.entry(), group.rid)));
        for (object, number) in objects {
            corp.insert(numbered(linked(object, &groups), number));
        }
        corp
    }
}

struct Group {
    name: &'static str,
    rid: usize,
    members: Vec<String>,
}

impl Group {
    fn dn(&self) -> String {
        person_dn(self.name)
    }

    fn entry(&self) -> Entry {
        object(&self.dn(), &["top", "group"], "Group")
            .with("cn", [self.name])
            .with("name", [self.name])
            .with("objectSid", [domain_sid(self.rid)])
            .with("sAMAccountName", [self.name])
            .with("sAMAccountType", ["268435456"])
            .with("groupType", ["-2147483646"])
            .with("member", self.members.clone())
    }
}

fn groups() -> [Group; 5] {
    let people = |wanted: fn(usize, &str) -> bool| {
        let chosen = PEOPLE.iter().enumerate().filter(move |(place, (.., department))| wanted(*place, department));
        chosen.map(|(_, (given_name, surname, _))| person_dn(&format!("{given_name} {surname}"))).collect::<Vec<_>>()
    };
    // Groups may hold groups: whoever operates may enter from outside.
    let mut remote = people(|place, _| place % 3 == 0);
    remote.push(person_dn("Operations"));
    [
        Group { name: "Domain Admins", rid: 512, members: vec![person_dn("Administrator")] },
        Group { name: "Engineering", rid: 1201, members: people(|_, department| department == "Engineering") },
        Group { name: "Finance", rid: 1202, members: people(|_, department| department == "Finance") },
        Group { name: "Operations", rid: 1203, members: people(|_, department| department == "Operations") },
        Group { name: "VPN Users", rid: 1204, members: remote },
    ]
}

fn containers() -> Vec<Entry> {
    let domain = object(BASE, &["top", "domain", "domainDNS"], "Domain-DNS")
        .with("dc", ["corp"])
        .with("name", ["corp"])
        .with("objectSid", [sid(DOMAIN_SID).expect("DOMAIN_SID is a SID")]);
    let controllers = format!("OU=Domain Controllers,{BASE}");
    let unit = object(&controllers, &["top", "organizationalUnit"], "Organizational-Unit")
        .with("ou", ["Domain Controllers"])
        .with("name", ["Domain Controllers"]);
    let container = |name: &str, below: &str| {
        object(&format!("CN={name},{below}"), &["top", "container"], "Container")
            .with("cn", [name])
            .with("name", [name])
    };
    let configuration = format!("CN=Configuration,{BASE}");
    vec![
        domain,
        unit,
        container("Users", BASE),
        container("Computers", BASE),
        container("Configuration", BASE),
        container("Schema", &configuration),
    ]
}

fn administrator() -> Entry {
    let description = "Built-in account for administering the computer/domain";
    account(&person_dn("Administrator"), "Administrator", "Administrator", 500)
        .with("description", [description])
        .with("adminCount", ["1"])
        .with("isCriticalSystemObject", ["TRUE"])
        .with_password(ADMINISTRATOR_PASSWORD)
}

fn user(&(given_name, surname, department): &(&str, &str, &str), rid: usize) -> Entry {
    let name = format!("{given_name} {surname}");
    // As most administrators do: no letters in account names that a mail address can't hold.
    let account_name = format!("{given_name}.{surname}").to_lowercase().replace('ö', "oe").replace('ü', "ue");
    account(&person_dn(&name), &name, &account_name, rid)
        .with("sn", [surname])
        .with("givenName", [given_name])
        .with("displayName", [name.as_str()])
        .with("department", [department])
        .with("mail", [format!("{account_name}@corp.example.com")])
        .with_password(USER_PASSWORD)
}

/// What Administrator and the users have in common.
fn account(dn: &str, name: &str, account_name: &str, rid: usize) -> Entry {
    let flags = if name == "Edsger Dijkstra" { "514" } else { "512" };
    let password_last_set = if name == "Vint Cerf" { "0" } else { "133486490450000000" };
    object(dn, &["top", "person", "organizationalPerson", "user"], "Person")
        .with("cn", [name])
        .with("name", [name])
        .with("objectSid", [domain_sid(rid)])
        .with("sAMAccountName", [account_name])
        .with("sAMAccountType", ["805306368"])
        .with("userPrincipalName", [format!("{}@corp.example.com", account_name.to_lowercase())])
        .with("userAccountControl", [flags])
        .with("primaryGroupID", ["513"])
        .with("accountExpires", [NEVER])
        .with("pwdLastSet", [password_last_set])
        .with("badPwdCount", ["0"])
        .with("logonCount", ["0"])
}

/// `dn` is written in this file, from parts without characters that need escaping.
fn object(dn: &str, classes: &[&str], category: &str) -> Entry {
    Entry::new(dn)
        .expect("the names in this file are DNs")
        .with("objectClass", classes.iter().copied())
        .with("objectCategory", [format!("CN={category},CN=Schema,CN=Configuration,{BASE}")])
}

/// With the back links of the groups it is a member of.
fn linked(entry: Entry, groups: &[Group]) -> Entry {
    let holds_it = |group: &&Group| group.members.iter().any(|member| member == entry.name());
    let holding: Vec<_> = groups.iter().filter(holds_it).map(Group::dn).collect();
    if holding.is_empty() { entry } else { entry.with("memberOf", holding) }
}

/// With what every entry has, told apart by `number`.
fn numbered(entry: Entry, number: usize) -> Entry {
    let name = entry.name().to_owned();
    let usn = (3000 + number).to_string();
    entry
        .with("instanceType", ["4"])
        .with("whenCreated", [CREATED])
        .with("whenChanged", [CREATED])
        .with("uSNCreated", [usn.as_str()])
        .with("uSNChanged", [usn.as_str()])
        .with("objectGUID", [guid(number)])
        .with("distinguishedName", [name])
        .with_operational("createTimeStamp", [CREATED])
        .with_operational("modifyTimeStamp", [CREATED])
}

fn person_dn(name: &str) -> String {
    format!("CN={name},CN=Users,{BASE}")
}

fn domain_sid(rid: usize) -> Vec<u8> {
    sid(&format!("{DOMAIN_SID}-{rid}")).expect("a SID with a small last part is a SID")
}

/// A GUID that is always the same for the same number. Its high bytes make it no valid UTF-8, as most GUIDs are.
fn guid(number: usize) -> [u8; 16] {
    let number = u16::try_from(number).expect("entries in this file have small numbers").to_le_bytes();
    [number[0], number[1], 0xF2, 0x5E, 0xBC, 0xF5, 0x49, 0x4A, 0x94, 0x87, 0xCA, 0x96, 0x0E, 0x84, 0xAC, 0x1D]
}
