//! One runtime a thread, without a network, whose clock stands still unless it is told to go on.

use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers for IO needs nothing from the system");
}

/// Runs `future`. The clock moves only where the future waits for nothing but time.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}
