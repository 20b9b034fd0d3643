//! `ldaps-proxy check`: says what is wrong with a configuration before `run` does.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Diagnostic, Diagnostics, ListenerProtocol, Loaded};

/// Prints everything found in the file to standard error, and a summary of a good one to standard output.
///
/// `further` looks at what the file only names: certificates, lists of networks and, with `--probe`, the backends. It is
/// asked only where the file itself is right. Warnings don't change the exit code.
pub fn check(file: &Path, further: impl FnOnce(&Loaded) -> Vec<Diagnostic>) -> ExitCode {
    let (found, summary) = match config::load(file) {
        Ok(loaded) => {
            let found: Diagnostics = loaded.warnings.clone().into_iter().chain(further(&loaded)).collect();
            (found, summary(&loaded))
        }
        Err(found) => (found, String::new()),
    };
    eprint!("{found}");
    let (errors, warnings) = found.counts();
    if found.has_errors() {
        eprintln!("{}: {errors} error(s), {warnings} warning(s)", file.display());
        return ExitCode::FAILURE;
    }
    println!("{}: configuration OK, {warnings} warning(s)", file.display());
    print!("{summary}");
    ExitCode::SUCCESS
}

/// Who is served on which address from which backends.
fn summary(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let mut text = String::new();
    for listener in &config.listeners {
        let protocol = match listener.protocol {
            ListenerProtocol::Ldaps => "ldaps",
            ListenerProtocol::Ldap => "ldap",
        };
        let networks = listener.trusted_networks.len();
        let more = if listener.trusted_networks_file.is_some() { " and those of a file" } else { "" };
        let backends = config.pools.get(&listener.pool).map_or(0, |pool| pool.backends.len());
        writeln!(
            text,
            "  {protocol} on {}, {networks} trusted network(s){more}, to pool {} of {backends} backend(s)",
            listener.address, listener.pool,
        )
        .expect("writing to a String doesn't fail");
    }
    text
}
