//! File descriptors: as many as the kernel lets us have, and a cap on connections that fits them.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that listeners, admin, logs, probes and the runtime need besides two a session.
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
    Ok(usize::try_from(hard.saturating_sub(RESERVED) / 2).unwrap_or(usize::MAX))
}
