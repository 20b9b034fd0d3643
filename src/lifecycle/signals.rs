//! The signals a proxy obeys.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM, SIGINT
    Terminate,
    /// SIGHUP
    Reload,
    /// SIGUSR1
    Reopen,
}

/// The process's signals, in the order they come. From when this is made, none of them kills the process: make it before
/// anything can be asked to end.
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hang_up: Stream,
    user: Stream,
}

impl Signals {
    /// Takes them over. To be called within the runtime.
    ///
    /// # Errors
    /// Signals that can't be received.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Terminate,
            _ = self.hang_up.recv() => Signal::Reload,
            _ = self.user.recv() => Signal::Reopen,
        }
    }

    /// Waits for a SIGTERM or SIGINT. Other signals are kept for [`next`](Self::next).
    pub async fn termination(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
