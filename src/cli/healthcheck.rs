//! `healthcheck`: an exit code for Docker's HEALTHCHECK and for scripts.

use std::process::ExitCode;

use super::admin_client::{AdminArgs, AdminClient};
use super::output::{fail, print};

/// The options of `healthcheck`.
#[derive(Debug, Clone, clap::Args)]
pub struct HealthcheckArgs {
    /// Ask only whether the process is alive, not whether it can serve
    #[arg(long)]
    pub alive: bool,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Exits 0 if the proxy is ready (or alive), else says why not and exits 1.
pub fn run(args: &HealthcheckArgs) -> ExitCode {
    let path = if args.alive { "/healthz" } else { "/readyz" };
    match AdminClient::new(&args.admin).and_then(|client| client.probe(path)) {
        Ok((true, answer)) => print(&format!("{answer}\n")),
        Ok((false, reasons)) => fail(&reasons),
        Err(error) => fail(&error),
    }
}
