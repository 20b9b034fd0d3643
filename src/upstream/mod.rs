//! One live connection to a backend, and how it is opened.

mod connector;
mod pdu;
mod start_tls;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

#[cfg(fuzzing)]
pub use connector::Dial;
pub use connector::{Connector, is_our_own, is_refusal};
pub use pdu::read_pdu;
pub use stream::Stream;

use crate::pool::{Backend, Opening, Seat};

/// A live connection to a backend and the seat it holds there.
#[derive(Debug)]
pub struct Upstream {
    /// The bytes.
    pub stream: Stream,
    /// How long it took until there was a seat (`max_sessions`) and a turn to connect.
    pub queued: Duration,
    seat: Seat,
    opening: Option<Opening>,
    answered: bool,
}

impl Upstream {
    pub(crate) fn new(stream: Stream, seat: Seat, opening: Option<Opening>) -> Self {
        Self { stream, queued: Duration::ZERO, seat, opening, answered: false }
    }

    /// The backend has answered, so it has accepted the connection: the next one may be opened.
    pub(crate) fn heard(&mut self) {
        self.opening = None;
        self.answered = true;
    }

    /// Whether it has.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered
    }

    /// The backend at the other end.
    pub fn backend(&self) -> &Arc<Backend> {
        self.seat.backend()
    }
}
