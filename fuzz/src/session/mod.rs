//! Whole sessions, with a client and backends in memory, against an account of what they may and must do.

mod ledger;
mod pdu;
mod script;
mod setup;
mod world;

/// Plays what the fuzzer's octets tell; see `script` for what they mean.
pub fn play(input: &[u8]) {
    // Without tokio's budget, which would make pipes refuse to move after some operations without a yield.
    crate::clock::block_on(tokio::task::unconstrained(world::play(input)));
}
