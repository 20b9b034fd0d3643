//! `ldaps-proxy check`: says what is wrong with a configuration before `run` does.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::access_log;
use crate::admin;
use crate::config::{
    self, AccessLogOutput, Diagnostic, Diagnostics, ListenerProtocol, Loaded, PrivateKeySource, Severity,
};
use crate::discovery::Discovery;
use crate::health;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::tls::{self, Served, UnixTime};
use crate::trust::TrustSource;
use crate::upstream::Connector;

/// Where `LogsDirectory=` makes what a unit asks for.
const LOGS_DIRECTORIES: &str = "/var/log";
/// What the packaged unit makes when it starts.
const RUNTIME_DIRECTORY: &str = "/run/ldaps-proxy";

/// Prints everything found in the file, and in the files it names, to standard error, and a summary of a good one to
/// standard output. With `probe` it also resolves names and asks every backend. Warnings don't change the exit code.
pub fn check(file: &Path, probe: bool) -> ExitCode {
    let further = |loaded: &Loaded| {
        let (_, mut found) = files(loaded);
        found.extend(pool_files(loaded));
        if probe {
            found.extend(ask_tokens(loaded));
            found.extend(ask_backends(loaded));
        }
        found
    };
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

/// What the listeners offer, ready to serve, and what is wrong with the files that a configuration names: certificates, keys
/// and what else stands in `[tls]`, lists of networks, the access log.
pub(super) fn files(loaded: &Loaded) -> (Served, Vec<Diagnostic>) {
    let mut found = Vec::new();
    let served = Served::load(&loaded.config, &Served::default(), UnixTime::now(), |listener, finding| {
        let table = loaded.tls_table(listener);
        let part = finding.additional.map_or_else(String::new, |index| format!(".additional[{index}]"));
        let severity = if finding.is_error() { Severity::Error } else { Severity::Warning };
        found.push(loaded.report(&format!("{table}{part}.{}", finding.key), severity, finding.message, finding.help));
    });
    for (index, listener) in loaded.config.listeners.iter().enumerate() {
        if let Err(error) = TrustSource::open(listener) {
            let key = format!("listener[{index}].trusted_networks_file");
            found.push(loaded.report(&key, Severity::Error, error.to_string(), ""));
        }
    }
    found.extend(token_file(loaded));
    found.extend(access_log_file(loaded));
    found.extend(admin_socket(loaded));
    (served, found)
}

/// The file of the access log. A folder where units have theirs may come with the start.
fn access_log_file(loaded: &Loaded) -> Option<Diagnostic> {
    let AccessLogOutput::File(path) = &loaded.config.access_log.output else { return None };
    let error = access_log::try_file(path).err()?;
    let (severity, help) = match path.parent() {
        Some(folder) if folder.starts_with(LOGS_DIRECTORIES) && !folder.exists() => {
            (Severity::Warning, "it must be when the proxy starts: LogsDirectory= in the unit makes this folder")
        }
        _ => (Severity::Error, "it must be a file, or its folder one, that the service may write"),
    };
    Some(loaded.report("access_log.path", severity, error.to_string(), help))
}

/// Where the admin socket will be. Its folder may come with the service.
fn admin_socket(loaded: &Loaded) -> Option<Diagnostic> {
    let path = loaded.config.admin.socket.as_ref()?;
    let (severity, message, help) = match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => return None,
        Ok(_) => (Severity::Error, "this is there and no socket".to_owned(), "name another place, or remove it"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())?;
            if folder == Path::new(RUNTIME_DIRECTORY) {
                return None;
            }
            let message = format!("the folder {} isn't there", folder.display());
            (Severity::Warning, message, "it must be when the proxy starts: RuntimeDirectory= in the unit makes one")
        }
        // Who asks may see less than the service does.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return None,
        Err(error) => (Severity::Error, error.to_string(), ""),
    };
    Some(loaded.report("admin.socket", severity, message, help))
}

/// The admin token is read for each change, so that its file may come later.
fn token_file(loaded: &Loaded) -> Option<Diagnostic> {
    let admin = &loaded.config.admin;
    let file = admin.token_file.as_ref().filter(|_| admin.address.is_some())?;
    let error = admin::read_token(file).err()?;
    let message = format!("changes over TCP are refused as long as this file can't be read: {error}");
    Some(loaded.report("admin.token_file", Severity::Warning, message, "put the token into its first line"))
}

/// What is wrong with the files that pools name: for TLS to their backends, and the passwords of their probes.
pub(super) fn pool_files(loaded: &Loaded) -> impl Iterator<Item = Diagnostic> {
    loaded.config.pools.iter().flat_map(move |(name, settings)| {
        let unusable = Connector::new(settings).err().map(|finding| {
            loaded.report(&format!("pools.{name}.{}", finding.key), Severity::Error, finding.message, finding.help)
        });
        let probes = [("health", Some(&settings.health.cheap)), ("health.deep", settings.health.deep.as_ref())];
        let passwords = probes
            .into_iter()
            .filter_map(move |(table, probe)| password_file(loaded, &format!("pools.{name}.{table}"), probe?));
        unusable.into_iter().chain(passwords)
    })
}

/// The password of a probe is read for each of them, so that its file may come later.
fn password_file(loaded: &Loaded, table: &str, probe: &config::Probe) -> Option<Diagnostic> {
    let file = probe.password_file.as_ref().filter(|_| health::has_account(probe))?;
    let error = health::read_password(file).err()?;
    let message = format!("the probe's account can't log in as long as this file can't be read: {error}");
    let help = "put the password into it, readable for the service";
    Some(loaded.report(&format!("{table}.password_file"), Severity::Warning, message, help))
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

/// What keeps tokens from signing for their certificates.
fn ask_tokens(loaded: &Loaded) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (table, files) in loaded.certificates() {
        let PrivateKeySource::Token(key) = &files.private_key else { continue };
        match tls::try_token(files) {
            Ok(()) => println!("  {} signs for {}", key.uri, files.certificate.display()),
            Err(finding) => {
                let key = format!("{table}.{}", finding.key);
                found.push(loaded.report(&key, Severity::Error, finding.message, finding.help));
            }
        }
    }
    found
}

/// What is wrong with reaching the backends: names that don't resolve, servers that don't answer as they should.
fn ask_backends(loaded: &Loaded) -> Vec<Diagnostic> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![loaded.report("pools", Severity::Error, error.to_string(), "")],
    };
    runtime.block_on(async {
        let mut found = Vec::new();
        for settings in loaded.config.pools.values() {
            ask_pool(loaded, settings, &mut found).await;
        }
        found
    })
}

async fn ask_pool(loaded: &Loaded, settings: &Arc<config::Pool>, found: &mut Vec<Diagnostic>) {
    let name = &settings.name;
    let mut wrong = |message: String, help: &str| {
        found.push(loaded.report(&format!("pools.{name}.backends"), Severity::Error, message, help));
    };
    let mut discovery = Discovery::new(settings);
    for failure in discovery.refresh().await {
        wrong(format!("{} does not resolve: {}", failure.name, failure.reason), "");
    }
    let connector = match Connector::new(settings) {
        Ok(connector) => connector,
        // That is told already, at its key.
        Err(_) => return,
    };
    let (events, _nobody) = mpsc::channel(1);
    let pool = Arc::new(Pool::new(Arc::clone(settings), connector, Metrics::new(), events));
    pool.admit(&discovery.endpoints());
    for backend in pool.backends().iter() {
        match health::ask_once(&pool, backend).await {
            Ok(()) => println!("  {} of pool {name} answers", backend.name()),
            Err(reason) => {
                wrong(format!("{}: {reason}", backend.name()), "see that it runs and that this host may reach it");
            }
        }
    }
}
