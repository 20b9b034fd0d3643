//! The command line: one file per command.

mod check;

pub use check::check;
