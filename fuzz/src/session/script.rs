//! What happens in one session, read from the fuzzer's octets.
//!
//! Four octets of settings, then steps: an octet that says which, and its arguments. Octets of either side come as they
//! are (`00 LENGTH LENGTH …` from the client, `01 LENGTH LENGTH …` from the backend, little-endian), so that recorded
//! traffic is a script; the other steps make whole PDUs from few octets, which gets the fuzzer deep into a session.

use std::time::Duration;

use ldaps_proxy::session::Command;

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    ClientSends(&'a [u8]),
    BackendSends(&'a [u8]),
    /// The client asks for an operation.
    Ask {
        kind: u8,
        id: u8,
        flavour: u8,
    },
    /// The backend answers one of the operations it has, or does something else that servers do.
    Answer {
        which: u8,
        flavour: u8,
        code: u8,
    },
    BackendCloses,
    /// The next connections to backends are refused.
    Refuse(u8),
    Advance(Duration),
    Tell(Command),
    ClientHalfCloses,
    ClientReads(bool),
    BackendReads(bool),
    /// Both sides write this many octets at once from now on.
    Chunk(usize),
}

/// Walks a script.
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// The settings' octets and the steps.
    pub fn new(input: &'a [u8]) -> Option<([u8; 4], Self)> {
        let (settings, rest) = input.split_first_chunk()?;
        Some((*settings, Self { rest }))
    }

    fn octet(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn octets(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_le_bytes([self.octet()?, self.octet()?]));
        let (octets, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        Some(octets)
    }
}

impl<'a> Iterator for Script<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        const COMMANDS: [Command; 6] =
            [Command::Drain, Command::Move, Command::Leave, Command::Kill, Command::Distrust, Command::Stop];
        Some(match self.octet()? % 12 {
            0 => Step::ClientSends(self.octets()?),
            1 => Step::BackendSends(self.octets()?),
            2 => Step::Ask { kind: self.octet()?, id: self.octet()?, flavour: self.octet()? },
            3 => Step::Answer { which: self.octet()?, flavour: self.octet()?, code: self.octet()? },
            4 => Step::BackendCloses,
            5 => Step::Refuse(self.octet()? % 4),
            6 => Step::Advance(Duration::from_millis(1 << (self.octet()? % 24))),
            7 => Step::Tell(COMMANDS[usize::from(self.octet()?) % COMMANDS.len()]),
            8 => Step::ClientHalfCloses,
            9 => Step::ClientReads(self.octet()? % 2 == 1),
            10 => Step::BackendReads(self.octet()? % 2 == 1),
            _ => Step::Chunk(1 + usize::from(self.octet()?)),
        })
    }
}
