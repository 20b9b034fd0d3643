//! `run` and `demo`: the proxy itself.

use std::path::Path;
use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

use super::check;
use super::demo::Demo;
use super::output::fail;
use crate::app::Proxy;
use crate::config::{self, Config};
use crate::{lifecycle, log};

/// Runs the proxy that `file` describes, until it is told to end.
pub fn run(file: &Path, without_admin: bool) -> ExitCode {
    let inherited = match lifecycle::Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => return fail(&error.to_string()),
    };
    let mut loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(found) => {
            eprint!("{found}");
            return ExitCode::FAILURE;
        }
    };
    if without_admin {
        loaded.leave_out_admin();
    }
    let (tls, found) = check::files(&loaded);
    let found = found.into_iter().chain(check::pool_files(&loaded));
    let found: config::Diagnostics = loaded.warnings.clone().into_iter().chain(found).collect();
    eprint!("{found}");
    if found.has_errors() {
        return ExitCode::FAILURE;
    }
    let log = match log::start(&loaded.config.log) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    if let Err(error) = approved_cryptography() {
        return fail(error);
    }
    lifecycle::fit_descriptors(&mut loaded.config.limits);
    // Passwords kept for replay and private keys must not end in a core dump.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "core dumps stay possible");
    }
    let runtime = match runtime(&loaded.config) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(async {
        let mut signals = match lifecycle::Signals::new() {
            Ok(signals) => signals,
            Err(error) => return fail(&format!("cannot receive signals: {error}")),
        };
        // Names may be long in resolving, and nobody is served yet.
        let started = tokio::select! {
            started = Proxy::start(loaded, tls, inherited, log) => started,
            () = signals.termination() => {
                tracing::info!("the start is given up");
                return ExitCode::SUCCESS;
            }
        };
        match started {
            Ok(proxy) => lifecycle::serve(&proxy, signals).await,
            Err(problems) => return fail(&problems.join("\n")),
        }
        ExitCode::SUCCESS
    });
    // A thread may be waiting for a token.
    runtime.shutdown_background();
    code
}

/// Runs the proxy in front of two embedded directories.
pub fn demo() -> ExitCode {
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(async {
        let signals = match lifecycle::Signals::new() {
            Ok(signals) => signals,
            Err(error) => return fail(&format!("cannot receive signals: {error}")),
        };
        let mut demo = match Demo::start() {
            Ok(demo) => demo,
            Err(error) => return fail(&format!("cannot start the directories: {error}")),
        };
        let config = demo.config();
        let log = match log::start(&config.log) {
            Ok(log) => log,
            Err(error) => return fail(&error),
        };
        let proxy = match Proxy::start_without_file(config, log).await {
            Ok(proxy) => proxy,
            Err(problems) => return fail(&problems.join("\n")),
        };
        if let Err(error) = demo.announce() {
            return fail(&error.to_string());
        }
        tokio::select! {
            () = lifecycle::serve(&proxy, signals) => {}
            () = demo.prompt() => proxy.drain(std::future::ready(())).await,
        }
        ExitCode::SUCCESS
    });
    // The prompt's thread may be waiting for standard input, for ever.
    runtime.shutdown_background();
    code
}

fn runtime(config: &Config) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(workers) = config.workers {
        builder.worker_threads(workers);
    }
    builder.enable_all().build()
}

/// In a FIPS build: that the module's self-tests have passed, and its name in the log.
fn approved_cryptography() -> Result<(), &'static str> {
    if cfg!(feature = "fips") {
        aws_lc_rs::try_fips_mode()?;
        tracing::info!(module = %crate::build_info::crypto_module(), "FIPS mode");
    }
    Ok(())
}
