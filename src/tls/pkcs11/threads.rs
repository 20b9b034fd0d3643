//! Threads for handshakes in which a token signs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// A runtime of its own: signing blocks a thread of it and nothing else. Handshakes come here for what is computed only,
/// and wait, for a thread as for their client, where they came from: what waits in a runtime whose threads are all blocked
/// can't even be dropped.
#[derive(Debug)]
pub(in crate::tls) struct Threads {
    runtime: Option<Runtime>,
    free: Arc<Semaphore>,
}

impl Threads {
    /// As many as signatures may be made at a time.
    pub(in crate::tls) fn start(count: usize) -> io::Result<Self> {
        static SETS: AtomicUsize = AtomicUsize::new(1);
        let set = SETS.fetch_add(1, Ordering::Relaxed);
        let runtime = Builder::new_multi_thread().worker_threads(count).thread_name(format!("token-{set}")).build()?;
        Ok(Self { runtime: Some(runtime), free: Arc::new(Semaphore::new(count)) })
    }

    /// Computes it there once a thread is free. Dropping the future gives up the wait; a thread that has begun is taken until
    /// it is done.
    pub(in crate::tls) async fn run<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let thread = Arc::clone(&self.free).acquire_owned().await.expect("nobody closes it");
        let computing = async move {
            let _taken = thread;
            compute()
        };
        self.runtime
            .as_ref()
            .expect("the runtime is taken by drop only")
            .spawn(computing)
            .await
            .map_err(io::Error::other)?
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for a token isn't for the thread that happens to drop this, which may be one of a runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
