//! Which operations are told: all that failed or were slow, and some of the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::record::OperationRecord;
use crate::config;
use crate::ldap::ResultCode;
use crate::metrics::has_response;

pub(super) struct Selection {
    sample: u64,
    slower_than: Option<Duration>,
    /// Operations that neither failed nor were slow, so far.
    ordinary: AtomicU64,
}

impl Selection {
    pub(super) fn new(settings: &config::AccessLog) -> Self {
        Self { sample: settings.sample.into(), slower_than: settings.slower_than, ordinary: AtomicU64::new(0) }
    }

    /// Whether this operation is told. Every `sample`th ordinary one is, the first among them.
    pub(super) fn takes(&self, record: &OperationRecord<'_>) -> bool {
        self.sample == 1
            || has_failed(record)
            || self.slower_than.is_some_and(|slow| record.timing.total > slow)
            || (self.sample > 0 && self.ordinary.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.sample))
    }
}

/// A result that isn't one of an operation that went well (compareFalse, compareTrue, referral and saslBindInProgress
/// are), or none where there should be one.
fn has_failed(record: &OperationRecord<'_>) -> bool {
    match record.result {
        Some(ResultCode(code)) => !matches!(code, 0 | 5 | 6 | 10 | 14),
        None => has_response(record.operation),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::OnceCell;
    use std::time::SystemTime;

    use super::*;
    use crate::access_log::{RequestPart, Timing, Who};
    use crate::buffer::Lent;
    use crate::ldap::OperationKind;

    fn selection(sample: u32, slower_than: Option<Duration>) -> Selection {
        Selection::new(&config::AccessLog { sample, slower_than, ..config::AccessLog::default() })
    }

    fn takes(selection: &Selection, operation: OperationKind, result: Option<u32>, total: Duration) -> bool {
        let written = &OnceCell::new();
        let who =
            Who { session: 1, client: ([10, 0, 0, 1], 1).into(), listener: "l", tls: None, bound_as: None, written };
        let request = RequestPart {
            written: Lent::default(),
            #[cfg(feature = "otlp")]
            attributes: Vec::new(),
        };
        selection.takes(&OperationRecord {
            time: SystemTime::UNIX_EPOCH,
            who,
            message_id: 1,
            operation,
            request: &request,
            backend: None,
            result: result.map(ResultCode),
            sub_code: None,
            refusal: None,
            entries: 0,
            references: 0,
            bytes_in: 0,
            bytes_out: 0,
            retries: 0,
            timing: Timing { total, ..Timing::default() },
        })
    }

    const FAST: Duration = Duration::from_millis(1);
    const SLOW: Duration = Duration::from_secs(2);

    #[test]
    fn by_default_everything_is_told() {
        let selection = selection(1, None);
        assert!((0..5).all(|_| takes(&selection, OperationKind::Search, Some(0), FAST)));
    }

    #[test]
    fn what_failed_or_was_slow_is_told_always() {
        let selection = selection(0, Some(Duration::from_secs(1)));
        for (operation, result, total, told) in [
            (OperationKind::Search, Some(0), FAST, false),
            (OperationKind::Search, Some(0), SLOW, true),
            (OperationKind::Bind, Some(49), FAST, true),
            (OperationKind::Bind, Some(14), FAST, false),
            (OperationKind::Compare, Some(6), FAST, false),
            (OperationKind::Search, Some(52), FAST, true),
            (OperationKind::Search, None, FAST, true),
            (OperationKind::Unbind, None, FAST, false),
            (OperationKind::Abandon, None, FAST, false),
        ] {
            assert_eq!(takes(&selection, operation, result, total), told, "{operation} {result:?} {total:?}");
        }
    }

    #[test]
    fn of_the_others_one_in_so_many_is_told() {
        let selection = selection(3, None);
        let told: Vec<_> = (0..7).map(|_| takes(&selection, OperationKind::Search, Some(0), FAST)).collect();
        assert_eq!(told, [true, false, false, true, false, false, true]);
    }
}
