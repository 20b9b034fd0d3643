//! `ldaps_proxy_operations_total`: a table of counters, one per operation and result.

use prometheus::{IntCounter, IntCounterVec};

use super::families::{add, counter_of};
use crate::ldap::{OperationKind, ResultCode};

/// Every combination is registered at the start, so that recording is two indexes and an atomic add.
#[derive(Debug, Clone)]
pub struct Operations {
    /// `[kind][position in ResultCode::NAMED]`
    table: Box<[Box<[IntCounter]>]>,
}

impl Operations {
    pub(super) fn new(family: &IntCounterVec) -> Self {
        let row = |kind: OperationKind| -> Box<[IntCounter]> {
            if !has_response(kind) {
                return Box::new([counter_of(family, &[kind.as_str(), ResultCode::SUCCESS.name()])]);
            }
            ResultCode::NAMED.iter().map(|(_, name)| counter_of(family, &[kind.as_str(), name])).collect()
        };
        Self { table: OperationKind::ALL.into_iter().map(row).collect() }
    }

    /// Counts operations that ended with this LDAP result code; unbind and abandon, which have none, end with 0.
    pub fn record(&self, kind: OperationKind, result: u32, count: usize) {
        let row = &self.table[kind as usize];
        add(&row[position(result).min(row.len() - 1)], count as u64);
    }

    /// How many operations of this kind ended with this result code (codes without a name count together).
    pub fn total(&self, kind: OperationKind, result: u32) -> u64 {
        let row = &self.table[kind as usize];
        row[position(result).min(row.len() - 1)].get()
    }

    /// How many operations of all kinds ended with a code that `counts`; codes without a name count as 80.
    pub(super) fn sum(&self, counts: impl Fn(u32) -> bool) -> u64 {
        let results = ResultCode::NAMED.iter().map(|(code, _)| code.0);
        self.table
            .iter()
            .flat_map(|row| results.clone().zip(row))
            .filter(|(code, _)| counts(*code))
            .map(|(_, counter)| counter.get())
            .sum()
    }
}

/// Whether a result speaks of the server or the proxy rather than of what the user asked.
pub const fn is_server_trouble(code: u32) -> bool {
    matches!(code, 1..=3 | 8 | 51..=54 | 80)
}

/// Whether a request of this kind gets a final response (RFC 4511 §4.3, §4.11: these two don't).
pub const fn has_response(kind: OperationKind) -> bool {
    !matches!(kind, OperationKind::Unbind | OperationKind::Abandon)
}

/// The position of a code in [`ResultCode::NAMED`]; of `other` for a code without a name.
fn position(code: u32) -> usize {
    if code == ResultCode::SUCCESS.0 {
        return 0;
    }
    let find = |code| ResultCode::NAMED.binary_search_by_key(&code, |(known, _)| known.0);
    find(code).or_else(|_| find(ResultCode::OTHER.0)).expect("80 has a name")
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::super::{families, names};
    use super::*;

    #[test]
    fn an_operation_is_counted_under_its_kind_and_result() {
        let operations = Operations::new(&families::counters(&Registry::new(), names::OPERATIONS));
        operations.record(OperationKind::Search, 0, 1);
        operations.record(OperationKind::Search, 52, 1);
        operations.record(OperationKind::Search, 52, 1);
        operations.record(OperationKind::Bind, 7777, 1);
        operations.record(OperationKind::Unbind, 0, 1);
        assert_eq!(operations.total(OperationKind::Search, 0), 1);
        assert_eq!(operations.total(OperationKind::Search, 52), 2);
        assert_eq!(operations.total(OperationKind::Bind, 0), 0);
        assert_eq!(operations.total(OperationKind::Bind, 80), 1);
        assert_eq!(operations.total(OperationKind::Unbind, 0), 1);
        assert_eq!(operations.total(OperationKind::Abandon, 0), 0);
    }
}
