//! File descriptors: as many as the kernel lets us have, and a cap on connections that fits them.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Limits;

/// Descriptors that listeners, admin, logs, probes and the runtime need besides two a session; of fewer than twice as
/// many, half.
const RESERVED: u64 = 200;

/// Raises the soft limit to the hard one, and lowers the cap on connections where it doesn't fit. For each configuration
/// that is read.
pub fn fit_descriptors(limits: &mut Limits) {
    match raise_limit() {
        Ok(descriptors) => {
            let allowed = fitting(descriptors);
            if allowed < limits.max_connections {
                tracing::warn!(
                    asked = limits.max_connections,
                    allowed,
                    "limits.max_connections is lowered: each connection takes two file descriptors; raise LimitNOFILE"
                );
                limits.max_connections = allowed;
            }
        }
        Err(error) => tracing::warn!(%error, "the limit on file descriptors is unknown"),
    }
}

/// The limit, raised as far as may be.
fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many connections they are enough for, each with an upstream.
fn fitting(descriptors: u64) -> usize {
    let left = descriptors - RESERVED.min(descriptors / 2);
    usize::try_from(left / 2).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_a_connection_and_some_for_all_else() {
        assert_eq!(fitting(20_480), 10_140);
        assert_eq!(fitting(1024), 412);
        assert_eq!(fitting(128), 32, "few are better than none");
        assert!(fitting(u64::MAX) > 1 << 60, "RLIM_INFINITY");
    }
}
