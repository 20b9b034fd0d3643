//! Result codes and their names (RFC 4511 §4.1.9 and Appendix A, RFC 3909, RFC 4370, RFC 4528, RFC 4533).

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

    /// Codes that have a name of their own, with that name, ascending. 76 is of the VLV draft that AD follows.
    pub const NAMED: [(Self, &'static str); 47] = [
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
        (Self(76), "virtualListViewError"),
        (Self(80), "other"),
        (Self(118), "canceled"),
        (Self(119), "noSuchOperation"),
        (Self(120), "tooLate"),
        (Self(121), "cannotCancel"),
        (Self(122), "assertionFailed"),
        (Self(123), "authorizationDenied"),
        (Self(4096), "e-syncRefreshRequired"),
    ];

    /// The RFC's camelCase name, or `other`.
    pub fn name(self) -> &'static str {
        let position = Self::NAMED.binary_search_by_key(&self, |(code, _)| *code);
        position.map_or("other", |position| Self::NAMED[position].1)
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_so_that_they_can_be_searched() {
        assert!(ResultCode::NAMED.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn every_code_has_a_name() {
        assert_eq!(ResultCode(0).name(), "success");
        assert_eq!(ResultCode(49).name(), "invalidCredentials");
        assert_eq!(ResultCode(80).name(), "other");
        for unassigned in [9, 15, 22, 70, 72, 81, 94, 97, 124, 4097, u32::MAX] {
            assert_eq!(ResultCode(unassigned).name(), "other", "{unassigned}");
        }
    }
}
