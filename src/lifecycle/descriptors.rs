//! File descriptors: as many as the kernel lets us have, and a cap on connections that fits them.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that listeners, admin, logs, probes and the runtime need besides two a session; of fewer than twice as
/// many, half.
const RESERVED: u64 = 200;

/// Raises the soft limit to the hard one and returns how many connections fit into it, each with an upstream.
///
/// # Errors
/// Those of the kernel.
pub fn raise_limit() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(fitting(hard))
}

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
