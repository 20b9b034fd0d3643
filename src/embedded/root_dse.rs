//! The rootDSE: what a server tells about itself to anyone (RFC 4512 §5.1, MS-ADTS §3.1.1.3.2).

use time::OffsetDateTime;

use super::directory::Directory;
use super::entry::Entry;
use crate::ldap::oid;

/// The number of the last change; the directory never changes.
const HIGHEST_COMMITTED_USN: &str = "5000";

/// The rootDSE of the server that is called `host` (`dc1`) at this moment.
pub(super) fn root_dse(directory: &Directory, host: &str, now: OffsetDateTime) -> Entry {
    let domain = directory.domain();
    let (base, dns) = (domain.base.as_str(), domain.dns.as_str());
    let server =
        format!("CN={},CN=Servers,CN=Default-First-Site-Name,CN=Sites,CN=Configuration,{base}", host.to_uppercase());
    Entry::new("")
        .expect("the empty name is the root's DN")
        .with("configurationNamingContext", [format!("CN=Configuration,{base}")])
        .with("defaultNamingContext", [base])
        .with("rootDomainNamingContext", [base])
        .with("schemaNamingContext", [format!("CN=Schema,CN=Configuration,{base}")])
        .with("namingContexts", directory.naming_contexts())
        // Active Directory, its LDAP v3 integration, and Windows 2003, 2008 and 2008 R2 (MS-ADTS §3.1.1.3.4.3).
        .with(
            "supportedCapabilities",
            [
                "1.2.840.113556.1.4.800",
                "1.2.840.113556.1.4.1670",
                "1.2.840.113556.1.4.1791",
                "1.2.840.113556.1.4.1935",
                "1.2.840.113556.1.4.2080",
            ],
        )
        .with("supportedLDAPVersion", ["2", "3"])
        .with("supportedControl", [oid::PAGED_RESULTS, oid::SERVER_SORT, oid::DOMAIN_SCOPE])
        .with("supportedExtension", [oid::WHO_AM_I])
        // Named because clients look for them; every SASL bind is answered authMethodNotSupported.
        .with("supportedSASLMechanisms", ["GSS-SPNEGO", "GSSAPI", "NTLM"])
        .with("vendorName", ["ldaps-proxy embedded directory"])
        .with("isSynchronized", ["TRUE"])
        .with("isGlobalCatalogReady", ["TRUE"])
        .with("dsServiceName", [format!("CN=NTDS Settings,{server}")])
        .with("serverName", [server])
        .with("dnsHostName", [format!("{host}.{dns}")])
        .with("ldapServiceName", [format!("{dns}:{host}$@{}", dns.to_uppercase())])
        .with("currentTime", [generalized_time(now)])
        .with("highestCommittedUSN", [HIGHEST_COMMITTED_USN])
        .with("domainFunctionality", ["4"])
        .with("forestFunctionality", ["4"])
        .with("domainControllerFunctionality", ["4"])
        // Absent from what Samba lists, yet `(objectClass=*)`, which every client asks with, must find the rootDSE.
        .with_operational("objectClass", ["top"])
}

/// RFC 4517 §3.3.13, with the fraction that AD writes.
fn generalized_time(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}{:02}{day:02}{hour:02}{minute:02}{second:02}.0Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_server_and_the_time() {
        let now = OffsetDateTime::from_unix_timestamp(1_795_507_178).expect("a time");
        let entry = root_dse(&Directory::corp(), "dc1", now);
        assert_eq!(entry.text("dnsHostName"), Some("dc1.corp.example.com"));
        assert_eq!(entry.text("defaultNamingContext"), Some("DC=corp,DC=example,DC=com"));
        assert_eq!(entry.text("currentTime"), Some("20261124075938.0Z"));
        assert_eq!(entry.values("namingContexts").len(), 3);
        assert!(entry.text("serverName").is_some_and(|name| name.starts_with("CN=DC1,CN=Servers,")));
    }
}
