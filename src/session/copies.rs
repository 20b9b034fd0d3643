//! Copies of a session's requests in flight, to be sent again. Pure.

use std::fmt;

use crate::buffer::{self, Spares};

/// Copies one behind the other in one buffer, which goes back to the worker when none is in use: a buffer for each request
/// costs more than the copy (measured, bench/README.md). They aren't wiped: that would cost as much as framing, and what holds
/// a password is kept elsewhere.
#[derive(Default)]
pub struct Copies {
    octets: Vec<u8>,
    in_use: usize,
}

/// Buffers a worker keeps while no session needs them, and octets each may hold: 16 searches, long ones too.
const SPARE_COUNT: usize = 32;
const MOST_SPARE: usize = 8 * 1024;

thread_local! {
    static SPARE: Spares<Vec<u8>> = const { Spares::new(SPARE_COUNT) };
}

impl Copies {
    /// Copies a request, which is never empty; returns where the copy begins.
    pub fn add(&mut self, request: &[u8]) -> usize {
        if self.octets.capacity() == 0 {
            self.octets = SPARE.with(Spares::lend).unwrap_or_default();
        }
        let start = self.octets.len();
        self.octets.extend_from_slice(request);
        self.in_use += request.len();
        start
    }

    /// The `length` octets of the copy that begins at `start`.
    pub fn get(&self, start: usize, length: usize) -> &[u8] {
        &self.octets[start..start + length]
    }

    /// Gives up a copy of `length` octets.
    #[inline]
    pub fn release(&mut self, length: usize) {
        self.in_use -= length;
        if self.in_use == 0 {
            *self = Self::default();
        }
    }

    /// Octets of memory they take beyond those in use. A buffer no larger than a spare one counts for nothing: most sessions
    /// have one for as long as a search takes.
    pub fn unused(&self) -> usize {
        if self.octets.capacity() > MOST_SPARE { self.octets.capacity() - self.in_use } else { 0 }
    }

    /// Whether there is more room among the copies in use than it is worth to take more memory for `length` octets.
    #[inline]
    pub fn have_room_inside(&self, length: usize) -> bool {
        self.octets.len() + length > self.octets.capacity() && self.octets.len() / 2 >= self.in_use.max(1)
    }

    /// Whether they take much more memory than what is left of them.
    #[inline]
    pub fn are_loose(&self) -> bool {
        self.octets.capacity() > MOST_SPARE && self.octets.capacity() / 4 > self.in_use
    }

    /// Moves them together and gives back memory that they don't need. `copies` are all in use, in the order in which they were
    /// made, each with where it begins, which is written anew, and its length.
    pub fn close_up<'a>(&mut self, copies: impl Iterator<Item = (&'a mut usize, usize)>) {
        let mut end = 0;
        for (start, length) in copies {
            // Else it would overwrite the next.
            debug_assert!(*start >= end);
            self.octets.copy_within(*start..*start + length, end);
            *start = end;
            end += length;
        }
        debug_assert_eq!(end, self.in_use);
        self.octets.truncate(end);
        if self.are_loose() {
            self.octets.shrink_to(MOST_SPARE.max(2 * end));
        }
    }
}

/// What is in them may be a secret.
impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copies({} octets)", self.in_use)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        buffer::leave(std::mem::take(&mut self.octets), &SPARE, MOST_SPARE);
    }
}
