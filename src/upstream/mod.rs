//! One live connection to a backend, and how it is opened.

mod connector;
mod pdu;
mod start_tls;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use connector::Connector;
#[cfg(fuzzing)]
pub use connector::Dial;
pub use pdu::read_pdu;
pub use stream::Stream;

use crate::pool::{Backend, Seat};

/// A live connection to a backend and the seat it holds there.
#[derive(Debug)]
pub struct Upstream {
    /// The bytes.
    pub stream: Stream,
    seat: Seat,
}

impl Upstream {
    pub(crate) fn new(stream: Stream, seat: Seat) -> Self {
        Self { stream, seat }
    }

    /// The backend at the other end.
    pub fn backend(&self) -> &Arc<Backend> {
        self.seat.backend()
    }
}
