//! The command line: one file per command.

pub mod admin_client;
pub mod check;
pub mod demo;
pub mod healthcheck;
mod output;
pub mod sessions;
pub mod status;
pub mod steer;
