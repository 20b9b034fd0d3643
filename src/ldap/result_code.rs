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

    /// Codes that have a name of their own, with that name. Everything else is `other`.
    pub const NAMED: [(Self, &'static str); 43] = [
        (Self(0), "success"),
        (Self(1), "operationsError"),
        (Self(2), "protocolError"),
        (Self(3), "timeLimitExceeded"),
        (Self(4), "sizeLimitExceeded"),
        (Self(5), "compareFalse"),
        (Self(6), "compareTrue"),
        (Self(7), "authMethodNotSupported"),
        (Self(8), "strongerAuthRequired"),
        (Self(10), "referral"),
        (Self(11), "adminLimitExceeded"),
        (Self(12), "unavailableCriticalExtension"),
        (Self(13), "confidentialityRequired"),
        (Self(14), "saslBindInProgress"),
        (Self(16), "noSuchAttribute"),
        (Self(17), "undefinedAttributeType"),
        (Self(18), "inappropriateMatching"),
        (Self(19), "constraintViolation"),
        (Self(20), "attributeOrValueExists"),
        (Self(21), "invalidAttributeSyntax"),
        (Self(32), "noSuchObject"),
        (Self(33), "aliasProblem"),
        (Self(34), "invalidDNSyntax"),
        (Self(36), "aliasDereferencingProblem"),
        (Self(48), "inappropriateAuthentication"),
        (Self(49), "invalidCredentials"),
        (Self(50), "insufficientAccessRights"),
        (Self(51), "busy"),
        (Self(52), "unavailable"),
        (Self(53), "unwillingToPerform"),
        (Self(54), "loopDetect"),
        (Self(64), "namingViolation"),
        (Self(65), "objectClassViolation"),
        (Self(66), "notAllowedOnNonLeaf"),
        (Self(67), "notAllowedOnRDN"),
        (Self(68), "entryAlreadyExists"),
        (Self(69), "objectClassModsProhibited"),
        (Self(71), "affectsMultipleDSAs"),
        (Self(80), "other"),
        (Self(118), "canceled"),
        (Self(119), "noSuchOperation"),
        (Self(122), "assertionFailed"),
        (Self(4096), "e-syncRefreshRequired"),
    ];

    /// The RFC's camelCase name, or `other`.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(code, _)| *code == self).map_or("other", |(_, name)| name)
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}
