//! Why AD refused a bind, as its diagnostic message tells: `… AcceptSecurityContext error, data 52e, v1db1`.
//!
//! Samba words it the same way (seen with 4.17), for simple and SASL binds. The message is no contract (RFC 4511 §4.1.9):
//! it labels metrics and logs and decides nothing.

/// A Win32 error code that AD gives as the reason of a refused bind, with `none` and `other` for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubCode {
    /// 525. AD only; Samba says 52e.
    NoSuchUser,
    /// 52e
    WrongPassword,
    /// 530
    LogonHours,
    /// 531
    Workstation,
    /// 532
    PasswordExpired,
    /// 533
    AccountDisabled,
    /// 701
    AccountExpired,
    /// 773
    PasswordMustChange,
    /// 775
    AccountLocked,
    /// The message holds no code: the backend is no AD, or the proxy speaks itself.
    None,
    /// Any other code.
    Other,
}

/// Each value, its label and what to tell people.
const TABLE: [(SubCode, &str, &str); 11] = [
    (SubCode::NoSuchUser, "525", "there is no such user"),
    (SubCode::WrongPassword, "52e", "wrong user name or password"),
    (SubCode::LogonHours, "530", "not permitted to log on at this time"),
    (SubCode::Workstation, "531", "not permitted to log on from this workstation"),
    (SubCode::PasswordExpired, "532", "the password has expired"),
    (SubCode::AccountDisabled, "533", "the account is disabled"),
    (SubCode::AccountExpired, "701", "the account has expired"),
    (SubCode::PasswordMustChange, "773", "the user must change the password first"),
    (SubCode::AccountLocked, "775", "the account is locked out"),
    (SubCode::None, "none", "the server gave no reason"),
    (SubCode::Other, "other", "a reason seldom seen: look at the diagnostic message"),
];

impl SubCode {
    /// Every value.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// Reads the diagnostic message of a refused bind.
    pub fn of(diagnostic: &[u8]) -> Self {
        const BEFORE: &[u8] = b", data ";
        let Some(at) = diagnostic.windows(BEFORE.len()).position(|window| window == BEFORE) else { return Self::None };
        let code = &diagnostic[at + BEFORE.len()..];
        let code = &code[..code.iter().take_while(|octet| octet.is_ascii_hexdigit()).count()];
        if code.is_empty() {
            return Self::None;
        }
        TABLE.iter().find(|row| row.1.as_bytes().eq_ignore_ascii_case(code)).map_or(Self::Other, |row| row.0)
    }

    /// The label of metrics and logs.
    pub fn as_str(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// What it means, for people.
    pub fn meaning(self) -> &'static str {
        TABLE[self as usize].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_values() {
        for (index, code) in SubCode::all().enumerate() {
            assert_eq!(code as usize, index);
        }
    }

    /// As Samba 4.17 and AD word them.
    #[test]
    fn codes() {
        for (message, label) in [
            ("80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 52e, v1db1", "52e"),
            ("8009030C: LdapErr: DSID-0C0904DC, comment: AcceptSecurityContext error, data 533, v1db1", "533"),
            ("80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 775, v2580\0", "775"),
            ("80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data 52E, v1db1", "52e"),
            ("8009030C: LdapErr: DSID-0C0904DC, comment: AcceptSecurityContext error, data 490, v1db1", "other"),
            ("comment: AcceptSecurityContext error, data 5, v1db1", "other"),
            ("comment: AcceptSecurityContext error, data , v1db1", "none"),
            ("comment: AcceptSecurityContext error, data ", "none"),
            ("invalid credentials", "none"),
            ("", "none"),
        ] {
            assert_eq!(SubCode::of(message.as_bytes()).as_str(), label, "{message}");
        }
    }
}
