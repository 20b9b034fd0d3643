//! `first-available`: the first usable backend in the order written.

use super::{Candidate, Draw, Policy};

#[derive(Debug)]
pub(super) struct FirstAvailable;

impl Policy for FirstAvailable {
    fn choose(&self, _: &[Candidate], _: Draw) -> usize {
        0
    }
}
