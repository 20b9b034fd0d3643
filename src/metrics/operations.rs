//! `ldaps_proxy_operations_total`: a table of counters, one per operation and result.

use prometheus::{IntCounter, IntCounterVec};

use super::families::counter_of;
use crate::ldap::OperationKind;

/// Every combination is registered at the start, so that recording is two indexes and an atomic add.
#[derive(Debug, Clone)]
pub struct Operations {
    /// `[kind][position in RESULTS, or OTHER]`
    table: Box<[Box<[IntCounter]>]>,
}

impl Operations {
    pub(super) fn new(family: &IntCounterVec) -> Self {
        let row = |kind: OperationKind| -> Box<[IntCounter]> {
            if !has_response(kind) {
                return Box::new([counter_of(family, &[kind.as_str(), result_name(0)])]);
            }
            let names = RESULTS.iter().map(|(_, name)| *name).chain([OTHER]);
            names.map(|name| counter_of(family, &[kind.as_str(), name])).collect()
        };
        Self { table: OperationKind::ALL.into_iter().map(row).collect() }
    }

    /// Counts an operation that ended with this LDAP result code; unbind and abandon, which have none, end with 0.
    pub fn record(&self, kind: OperationKind, result: u32) {
        let row = &self.table[kind as usize];
        row[position(result).min(row.len() - 1)].inc();
    }

    /// How many operations of this kind ended with this result code (codes without a name count together).
    pub fn total(&self, kind: OperationKind, result: u32) -> u64 {
        let row = &self.table[kind as usize];
        row[position(result).min(row.len() - 1)].get()
    }

    /// How many operations of all kinds ended with a code that `counts`; codes without a name count as 80.
    pub(super) fn sum(&self, counts: impl Fn(u32) -> bool) -> u64 {
        let results = RESULTS.iter().map(|(code, _)| *code);
        // `other` is one counter under two positions: 80's and the last.
        self.table
            .iter()
            .flat_map(|row| results.clone().zip(row))
            .filter(|(code, _)| counts(*code))
            .map(|(_, counter)| counter.get())
            .sum()
    }
}

/// Whether a result speaks of the server or the proxy rather than of what the user asked.
pub(super) fn is_server_trouble(code: u32) -> bool {
    matches!(code, 1..=3 | 8 | 51..=54 | 80)
}

/// Whether a request of this kind gets a final response (RFC 4511 §4.3, §4.11: these two don't).
pub const fn has_response(kind: OperationKind) -> bool {
    !matches!(kind, OperationKind::Unbind | OperationKind::Abandon)
}

/// The camelCase name of a result code in RFC 4511 §4.1.9 or the later RFC that assigned it; else `other`.
pub fn result_name(code: u32) -> &'static str {
    RESULTS.get(position(code)).map_or(OTHER, |(_, name)| name)
}

const OTHER: &str = "other";

/// Ascending by code. RFC 4511 §4.1.9; 76 from the VLV draft that AD follows; 118–121 RFC 3909 and RFC 4511's registry;
/// 122 RFC 4528; 123 RFC 4370; 4096 RFC 4533.
const RESULTS: &[(u32, &str)] = &[
    (0, "success"),
    (1, "operationsError"),
    (2, "protocolError"),
    (3, "timeLimitExceeded"),
    (4, "sizeLimitExceeded"),
    (5, "compareFalse"),
    (6, "compareTrue"),
    (7, "authMethodNotSupported"),
    (8, "strongerAuthRequired"),
    (10, "referral"),
    (11, "adminLimitExceeded"),
    (12, "unavailableCriticalExtension"),
    (13, "confidentialityRequired"),
    (14, "saslBindInProgress"),
    (16, "noSuchAttribute"),
    (17, "undefinedAttributeType"),
    (18, "inappropriateMatching"),
    (19, "constraintViolation"),
    (20, "attributeOrValueExists"),
    (21, "invalidAttributeSyntax"),
    (32, "noSuchObject"),
    (33, "aliasProblem"),
    (34, "invalidDNSyntax"),
    (36, "aliasDereferencingProblem"),
    (48, "inappropriateAuthentication"),
    (49, "invalidCredentials"),
    (50, "insufficientAccessRights"),
    (51, "busy"),
    (52, "unavailable"),
    (53, "unwillingToPerform"),
    (54, "loopDetect"),
    (64, "namingViolation"),
    (65, "objectClassViolation"),
    (66, "notAllowedOnNonLeaf"),
    (67, "notAllowedOnRDN"),
    (68, "entryAlreadyExists"),
    (69, "objectClassModsProhibited"),
    (71, "affectsMultipleDSAs"),
    (76, "virtualListViewError"),
    (80, "other"),
    (118, "canceled"),
    (119, "noSuchOperation"),
    (120, "tooLate"),
    (121, "cannotCancel"),
    (122, "assertionFailed"),
    (123, "authorizationDenied"),
    (4096, "e-syncRefreshRequired"),
];

/// The position of a code in [`RESULTS`], or its length.
fn position(code: u32) -> usize {
    if code == 0 {
        return 0;
    }
    RESULTS.binary_search_by_key(&code, |(known, _)| *known).unwrap_or(RESULTS.len())
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::super::{families, names};
    use super::*;

    #[test]
    fn results_ascend_so_that_they_can_be_searched() {
        assert!(RESULTS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn every_code_has_a_name() {
        assert_eq!(result_name(0), "success");
        assert_eq!(result_name(49), "invalidCredentials");
        assert_eq!(result_name(52), "unavailable");
        assert_eq!(result_name(80), "other");
        for unassigned in [9, 15, 22, 70, 72, 81, 94, 97, 124, 4097, u32::MAX] {
            assert_eq!(result_name(unassigned), "other", "{unassigned}");
        }
    }

    #[test]
    fn an_operation_is_counted_under_its_kind_and_result() {
        let operations = Operations::new(&families::counters(&Registry::new(), names::OPERATIONS));
        operations.record(OperationKind::Search, 0);
        operations.record(OperationKind::Search, 52);
        operations.record(OperationKind::Search, 52);
        operations.record(OperationKind::Bind, 7777);
        operations.record(OperationKind::Unbind, 0);
        assert_eq!(operations.total(OperationKind::Search, 0), 1);
        assert_eq!(operations.total(OperationKind::Search, 52), 2);
        assert_eq!(operations.total(OperationKind::Bind, 0), 0);
        assert_eq!(operations.total(OperationKind::Bind, 80), 1);
        assert_eq!(operations.total(OperationKind::Unbind, 0), 1);
        assert_eq!(operations.total(OperationKind::Abandon, 0), 0);
    }
}
