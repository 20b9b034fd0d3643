//! The command line: one file per command.

pub mod admin_client;
pub mod check;
pub mod demo;
mod generate;
pub mod healthcheck;
mod output;
pub mod run;
pub mod sessions;
pub mod status;
pub mod steer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The LDAPS front door for AWS Simple AD: terminates TLS, admits trusted networks, fails over between directories
#[derive(Debug, Parser)]
#[command(name = "ldaps-proxy", version = crate::build_info::version(), arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Leave [admin] and [health] to another process that runs from the same file
        #[arg(long)]
        without_admin: bool,
    },
    /// Check the configuration and the certificates it names
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Also resolve names and ask every backend
        #[arg(long)]
        probe: bool,
    },
    /// Run in front of two embedded directories, with a self-signed certificate
    Demo,
    /// Show the state of a running proxy
    Status(status::StatusArgs),
    /// List the sessions of a running proxy
    Sessions(sessions::SessionsArgs),
    /// Take a backend out of service and wait until its sessions have left
    Drain(steer::DrainArgs),
    /// Take a backend back into service
    Enable(steer::EnableArgs),
    /// End a session
    Kill(steer::KillArgs),
    /// Reload the configuration and the certificates
    Reload(steer::ReloadArgs),
    /// Change the log level of a running proxy
    LogLevel(steer::LogLevelArgs),
    /// Exit 0 if a running proxy is ready
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Print the JSON Schema of the configuration file
    #[command(hide = true)]
    ConfigSchema,
    /// Print the manual page
    #[command(hide = true)]
    Man,
    /// Print a completion script
    #[command(hide = true)]
    Completions {
        /// The shell it is for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/ldaps-proxy/ldaps-proxy.toml")]
    config: PathBuf,
}

/// Does what the arguments say. The exit code: 0 fine, 1 failed, 2 usage (by clap).
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { file, without_admin } => run::run(&file.config, without_admin),
        Command::Check { file, probe } => check::check(&file.config, probe),
        Command::Demo => run::demo(),
        Command::Status(arguments) => status::run(&arguments),
        Command::Sessions(arguments) => sessions::run(&arguments),
        Command::Drain(arguments) => steer::drain(&arguments),
        Command::Enable(arguments) => steer::enable(&arguments),
        Command::Kill(arguments) => steer::kill(&arguments),
        Command::Reload(arguments) => steer::reload(&arguments),
        Command::LogLevel(arguments) => steer::log_level(&arguments),
        Command::Healthcheck(arguments) => healthcheck::run(&arguments),
        Command::Man => generate::man(),
        Command::Completions { shell } => generate::completions(shell),
        Command::ConfigSchema => output::print(&format!("{:#}\n", crate::config::json_schema())),
    }
}
