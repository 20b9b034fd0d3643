//! Whom a bind names, brought to one key however it is written.

use super::ntlm;
use crate::ldap::dn::{Dn, fold};
use crate::ldap::{Authentication, BindRequest};

/// What a BindRequest shows of who binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindName {
    /// Nobody: no name (RFC 4513 §5.1.1; AD takes any password with it), SASL's ANONYMOUS, or NTLM without a user.
    Anonymous,
    /// A name with an empty password, whose success is no authentication (RFC 4513 §5.1.2).
    Unauthenticated(LoginName),
    /// A name that the bind sets out to prove.
    Named(LoginName),
    /// A first step of NTLM: the name comes with a later one.
    Later,
    /// A SASL step that shows none: Kerberos, EXTERNAL.
    Unseen,
    /// A SASL step that may name anybody, or nobody, since servers read it differently. Policies let none pass.
    Unreadable,
}

/// A name somebody logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginName {
    text: String,
    account: Option<String>,
}

impl BindName {
    /// Whom this bind names.
    pub fn of(bind: &BindRequest<'_>) -> Self {
        // Samba reads passwords, too, up to the first NUL.
        match bind.authentication {
            Authentication::Simple(_) if bind.is_nameless() => Self::Anonymous,
            Authentication::Simple([] | [0, ..]) => Self::Unauthenticated(LoginName::new(bind.name)),
            Authentication::Simple(_) => Self::Named(LoginName::new(bind.name)),
            Authentication::Sasl { mechanism, .. } if mechanism.eq_ignore_ascii_case(b"ANONYMOUS") => Self::Anonymous,
            Authentication::Sasl { credentials, .. } => match ntlm::identity(credentials.unwrap_or_default()) {
                ntlm::Identity::None => Self::Unseen,
                ntlm::Identity::Later => Self::Later,
                ntlm::Identity::Anonymous => Self::Anonymous,
                ntlm::Identity::User { domain, user } => Self::Named(LoginName::in_domain(&domain, user)),
                ntlm::Identity::Unreadable => Self::Unreadable,
            },
            Authentication::Other(_) => Self::Unseen,
        }
    }

    /// The name to be proven, if the bind shows one.
    pub const fn named(&self) -> Option<&LoginName> {
        match self {
            Self::Named(name) => Some(name),
            _ => None,
        }
    }
}

impl LoginName {
    /// Reads a bind's name.
    pub fn new(name: &[u8]) -> Self {
        let text = String::from_utf8_lossy(name).into_owned();
        let account = account(&text);
        Self { text, account }
    }

    /// The same from an NTLM message. What stands for a domain says nothing of the account.
    fn in_domain(domain: &str, user: String) -> Self {
        let account = account(&user);
        Self { text: if domain.is_empty() { user } else { format!("{domain}\\{user}") }, account }
    }

    /// The name as it was sent, `NETBIOS\name` for NTLM.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The account, in lower case, that these all share:
    ///
    /// | form | the part taken |
    /// |---|---|
    /// | `cn=Ann Lee,ou=people,dc=…` | the value of the leaf |
    /// | `ann@corp.example.com` | before the `@` |
    /// | `CORP\ann` | after the `\` |
    /// | `corp.example.com/People/ann` | after the last `/` |
    /// | `ann` | all of it |
    ///
    /// What AD would have to be asked for stays apart: a DN whose leaf isn't the sAMAccountName, a userPrincipalName that was
    /// given on its own, a servicePrincipalName, displayName. So `denied_bind_names` stops the names it knows of, not the
    /// account, and the throttle counts each such name by itself. `None` for forms in which anybody may write one account in endlessly many ways: GUIDs, SIDs, DNs that
    /// only some directories can read (Samba takes `cn="ann",…` and `<GUID=…>;anything`), and principals with escapes.
    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }
}

/// Whether it is a Kerberos principal that says more than a name and a realm. Samba removes the escapes of `a\nn@realm` and
/// `ann\@realm@realm`, as Kerberos does, and both are ann.
pub fn is_escaped_principal(text: &str) -> bool {
    text.contains('@') && (text.contains('\\') || text.matches('@').count() > 1)
}

fn account(text: &str) -> Option<String> {
    // Samba reads names up to the first NUL.
    let text = text.split('\0').next().unwrap_or_default();
    // The order in which Samba tries the forms.
    let account = if text.contains('=') {
        return Dn::parse(text)?.leaf_value().map(str::to_owned);
    } else if is_identifier(text.trim_start_matches(' ')) || is_escaped_principal(text) {
        return None;
    } else if let Some((user, _suffix)) = text.split_once('@') {
        user
    } else {
        text
    };
    account.rsplit(['\\', '/', '\n']).next().map(fold)
}

/// A GUID in braces, a SID, or what stands in angle brackets.
fn is_identifier(text: &str) -> bool {
    text.starts_with(['<', '{']) || text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("S-1-"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name_of(name: &[u8], authentication: Authentication<'_>) -> BindName {
        BindName::of(&BindRequest { name, authentication })
    }

    #[test]
    fn forms_of_one_account() {
        for form in [
            "ann lee",
            "Ann Lee@corp.example.com",
            "ann lee@CORP",
            " ann  lee@corp.example.com ",
            "ann lee@corp.example.com\0junk",
            "CORP\\Ann Lee",
            "CORP\\ ann lee ",
            "corp.example.com/People/Ann Lee",
            "corp.example.com/People\nAnn Lee",
            "CN=Ann Lee,OU=People,DC=corp,DC=example,DC=com",
            r"cn=\41nn lee,ou=people,dc=corp,dc=example,dc=com",
            "cn=ann lee,ou=people,dc=corp,dc=example,dc=com\0,cn=x",
        ] {
            assert_eq!(LoginName::new(form.as_bytes()).account(), Some("ann lee"), "{form:?}");
        }
        assert_eq!(LoginName::new("MÜLLER".as_bytes()).account(), Some("müller"));
    }

    /// Samba 4.17 lets all of these log in, and each has endlessly many spellings.
    #[test]
    fn forms_that_cannot_be_linked() {
        for form in [
            "<GUID=497cdaf3-bac5-48f4-ab36-c0fda2331a32>",
            "<GUID=497cdaf3-bac5-48f4-ab36-c0fda2331a32>;CN=anything",
            "<SID=S-1-5-21-1-2-3-1102>",
            "S-1-5-21-1-2-3-1102",
            " s-1-5-21-1-2-3-1102",
            "{497cdaf3-bac5-48f4-ab36-c0fda2331a32}",
            "cn=\"ann\",ou=people,dc=corp,dc=example,dc=com",
            r"a\nn@corp.example.com",
            r"\ann@corp.example.com",
            r"ann\@corp.example.com@corp.example.com",
            "ann@corp.example.com@corp.example.com",
            "a\\nn@corp.example.com\0junk",
        ] {
            assert_eq!(LoginName::new(form.as_bytes()).account(), None, "{form:?}");
        }
    }

    #[test]
    fn whom_a_bind_names() {
        let sasl = |mechanism, credentials| Authentication::Sasl { mechanism, credentials };
        assert_eq!(name_of(b"", Authentication::Simple(b"")), BindName::Anonymous);
        assert_eq!(name_of(b"", Authentication::Simple(b"x")), BindName::Anonymous);
        assert_eq!(name_of(b"\0ann", Authentication::Simple(b"x")), BindName::Anonymous);
        assert_eq!(name_of(b"ann", Authentication::Simple(b"\0x")), BindName::Unauthenticated(LoginName::new(b"ann")));
        assert_eq!(name_of(b"ann", Authentication::Simple(b"")), BindName::Unauthenticated(LoginName::new(b"ann")));
        assert_eq!(name_of(b"ann", Authentication::Simple(b"x")), BindName::Named(LoginName::new(b"ann")));
        assert_eq!(name_of(b"", sasl(b"anonymous", Some(b"me"))), BindName::Anonymous);
        assert_eq!(name_of(b"", sasl(b"NTLM", Some(b"NTLMSSP\0\x01\0\0\0\x35\x82\x08\x62"))), BindName::Later);
        assert_eq!(name_of(b"", sasl(b"NTLM", Some(b"NTLMSSP\0\x01\0\0\0\x06\x82\x08\x62"))), BindName::Unreadable);
        // RFC 4513 §5.2.1.1: the name of a SASL bind says nothing.
        assert_eq!(name_of(b"ann", sasl(b"GSSAPI", Some(b"`\x01x"))), BindName::Unseen);
        assert_eq!(name_of(b"ann", sasl(b"EXTERNAL", None)), BindName::Unseen);
        assert_eq!(name_of(b"ann", Authentication::Other(0x89)), BindName::Unseen);
    }

    proptest! {
        #[test]
        fn any_name_can_be_read(name: Vec<u8>) {
            let name = LoginName::new(&name);
            prop_assert!(name.account().is_none_or(|account| fold(account) == account));
        }
    }
}
