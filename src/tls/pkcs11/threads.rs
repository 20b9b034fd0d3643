//! Threads for handshakes in which a token signs.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// A runtime of its own: signing blocks a thread of it and nothing else. The sockets stay with the runtime that made
/// them, so that a client who takes his time holds no thread.
#[derive(Debug)]
pub(in crate::tls) struct Threads(Option<Runtime>);

impl Threads {
    /// As many as signatures may be made at a time.
    pub(in crate::tls) fn start(count: usize) -> io::Result<Self> {
        static SETS: AtomicUsize = AtomicUsize::new(1);
        let set = SETS.fetch_add(1, Ordering::Relaxed);
        Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name(format!("token-{set}"))
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    /// Runs a handshake there; dropping the future ends it.
    pub(in crate::tls) async fn run<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let runtime = self.0.as_ref().expect("the runtime is taken by drop only");
        AbortOnDropHandle::new(runtime.spawn(handshake)).await.map_err(io::Error::other)?
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for a token isn't for the thread that happens to drop this, which may be one of a runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
