//! Result codes and their names (RFC 4511 §4.1.9 and Appendix A, RFC 3909, RFC 4528, RFC 4533).

use std::fmt;

/// The resultCode of a response, as received: backends use codes no library knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResultCode(pub u32);

impl ResultCode {
    /// 0
    pub const SUCCESS: Self = Self(0);
    /// 1
    pub const OPERATIONS_ERROR: Self = Self(1);
    /// 2
    pub const PROTOCOL_ERROR: Self = Self(2);
    /// 3
    pub const TIME_LIMIT_EXCEEDED: Self = Self(3);
    /// 8
    pub const STRONGER_AUTH_REQUIRED: Self = Self(8);
    /// 10
    pub const REFERRAL: Self = Self(10);
    /// 13
    pub const CONFIDENTIALITY_REQUIRED: Self = Self(13);
    /// 14
    pub const SASL_BIND_IN_PROGRESS: Self = Self(14);
    /// 32
    pub const NO_SUCH_OBJECT: Self = Self(32);
    /// 49
    pub const INVALID_CREDENTIALS: Self = Self(49);
    /// 50
    pub const INSUFFICIENT_ACCESS_RIGHTS: Self = Self(50);
    /// 51
    pub const BUSY: Self = Self(51);
    /// 52
    pub const UNAVAILABLE: Self = Self(52);
    /// 53
    pub const UNWILLING_TO_PERFORM: Self = Self(53);

    /// 80
    pub const OTHER: Self = Self(80);

    /// The RFC's camelCase name, or `other`.
    pub fn name(self) -> &'static str {
        crate::metrics::result_name(self.0)
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}
