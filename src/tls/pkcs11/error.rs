//! What goes wrong with a token, in words that lead to its repair.

use std::fmt;

use cryptoki::error::{Error, RvError};

use super::super::Finding;

/// Why a token didn't sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenError {
    /// What to do next.
    pub(super) remedy: Remedy,
    /// The configuration key it is about.
    key: &'static str,
    message: String,
    help: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The session, the token or the module's state is gone, perhaps for a moment: begin anew.
    Reconnect,
    /// The PIN was refused, and each further try brings the token closer to locking itself.
    NewPin,
    /// Trying again won't help.
    None,
}

impl TokenError {
    pub(super) fn new(key: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { remedy: Remedy::None, key, message: message.into(), help: help.into() }
    }

    pub(super) fn lost(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { remedy: Remedy::Reconnect, ..Self::new("private_key", message, help) }
    }

    pub(super) fn pin(message: impl Into<String>) -> Self {
        let help = "correct it, then restart or reload: it isn't tried again, since tokens lock after a few wrong ones";
        Self { remedy: Remedy::NewPin, ..Self::new("private_key_passphrase_file", message, help) }
    }

    pub(super) fn into_finding(self) -> Finding {
        Finding::error(self.key, self.message, self.help)
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl From<Error> for TokenError {
    fn from(error: Error) -> Self {
        let Error::Pkcs11(code, function) = &error else {
            return Self::new("pkcs11_module", format!("the PKCS#11 module can't be used: {error}"), "");
        };
        let said = format!("the token said {} to {}", code_name(*code), function_name(function));
        match code {
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => {
                Self::pin(format!("the token refuses the PIN ({})", code_name(*code)))
            }
            RvError::PinLocked => Self::pin("the token's PIN is locked: its security officer must unlock it"),
            RvError::PinExpired => Self::pin("the token's PIN has expired"),
            RvError::UserPinNotInitialized => Self::pin("the token has no user PIN yet"),
            RvError::KeyFunctionNotPermitted => {
                Self::new("private_key", said, "the key must be allowed to sign (CKA_SIGN)")
            }
            RvError::MechanismInvalid | RvError::MechanismParamInvalid => {
                Self::new("private_key", said, "its policy forbids this way of signing: pkcs11-tool --list-mechanisms")
            }
            RvError::SessionCount => Self {
                key: "pkcs11_sessions",
                ..Self::lost(said, "the token has no session left: lower pkcs11_sessions")
            },
            _ if is_loss(*code) => Self::lost(said, "it is asked again"),
            _ => Self::new("private_key", said, ""),
        }
    }
}

/// Also the catch-alls: modules that lost their connection say CKR_GENERAL_ERROR or CKR_FUNCTION_FAILED.
fn is_loss(code: RvError) -> bool {
    matches!(
        code,
        RvError::CryptokiNotInitialized
            | RvError::DeviceError
            | RvError::DeviceMemory
            | RvError::DeviceRemoved
            | RvError::FunctionFailed
            | RvError::GeneralError
            | RvError::KeyHandleInvalid
            | RvError::ObjectHandleInvalid
            | RvError::OperationActive
            | RvError::OperationNotInitialized
            | RvError::SessionClosed
            | RvError::SessionHandleInvalid
            | RvError::SlotIdInvalid
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::UserNotLoggedIn
    )
}

/// `CKR_PIN_INCORRECT` for `PinIncorrect`: what manuals and search engines know.
fn code_name(code: RvError) -> String {
    with_underscores("CKR", &format!("{code:?}")).to_uppercase()
}

fn function_name(function: &cryptoki::context::Function) -> String {
    format!("C_{function:?}")
}

fn with_underscores(prefix: &str, camel_case: &str) -> String {
    let mut name = prefix.to_owned();
    for letter in camel_case.chars() {
        if letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter);
    }
    name
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn codes_are_named_as_in_the_standard_and_lead_to_a_remedy() {
        for (code, name, remedy) in [
            (RvError::PinIncorrect, "CKR_PIN_INCORRECT", Remedy::NewPin),
            (RvError::SessionHandleInvalid, "CKR_SESSION_HANDLE_INVALID to C_Sign", Remedy::Reconnect),
            (RvError::DeviceRemoved, "CKR_DEVICE_REMOVED", Remedy::Reconnect),
            (RvError::KeyFunctionNotPermitted, "CKR_KEY_FUNCTION_NOT_PERMITTED", Remedy::None),
            (RvError::DataLenRange, "CKR_DATA_LEN_RANGE", Remedy::None),
        ] {
            let error = TokenError::from(Error::Pkcs11(code, Function::Sign));
            assert!(error.message.contains(name), "{error}");
            assert_eq!(error.remedy, remedy, "{error}");
        }
    }
}
