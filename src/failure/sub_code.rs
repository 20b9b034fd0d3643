//! Why AD refused a bind, as its diagnostic message tells: `… AcceptSecurityContext error, data 52e, v1db1`.
//!
//! Samba words it the same way (seen with 4.17), for simple and SASL binds. The message is no contract (RFC 4511 §4.1.9):
//! it labels metrics and logs and decides nothing.

use std::fmt;

use super::ClosedList;

closed_list! {
    /// A Win32 error code that AD gives as the reason of a refused bind, with `none` and `other` for the rest.
    SubCode {
        /// There is no such user (AD only; Samba says 52e).
        NoSuchUser = "525",
        /// Wrong user name or password.
        WrongPassword = "52e",
        /// Not permitted to log on at this time.
        LogonHours = "530",
        /// Not permitted to log on from this workstation.
        Workstation = "531",
        /// The password has expired.
        PasswordExpired = "532",
        /// The account is disabled.
        AccountDisabled = "533",
        /// The account has expired.
        AccountExpired = "701",
        /// The user must change the password first.
        PasswordMustChange = "773",
        /// The account is locked out.
        AccountLocked = "775",
        /// The message holds no code: the backend is no AD, or the proxy speaks itself.
        None = "none",
        /// Any other code: the diagnostic that the client got has it.
        Other = "other",
    }
}

impl SubCode {
    /// Reads the diagnostic message of a refused bind.
    pub fn of(diagnostic: &[u8]) -> Self {
        const BEFORE: &[u8] = b", data ";
        let Some(at) = diagnostic.windows(BEFORE.len()).position(|window| window == BEFORE) else { return Self::None };
        let code = &diagnostic[at + BEFORE.len()..];
        let code = &code[..code.iter().take_while(|octet| octet.is_ascii_hexdigit()).count()];
        if code.is_empty() {
            return Self::None;
        }
        let known = Self::ALL.iter().find(|known| known.as_str().as_bytes().eq_ignore_ascii_case(code));
        known.copied().unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
