//! Configuration: from a TOML file to [`Config`], with diagnostics that name file, line, key and what is allowed.
//!
//! A file is read in one pass that collects every problem: the `toml` crate yields a tree with spans, the functions of
//! `definition` ask it for each key they know, and what nobody asked for is unknown. The same functions, run over
//! nothing, yield [`json_schema`].

mod definition;
mod diagnostic;
mod kind;
mod loaded;
mod path;
mod reading;
mod settings;
mod table;
mod value;

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use toml::de::DeTable;

pub use definition::overlap;
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use loaded::{Loaded, changes};
pub use settings::*;
pub use value::file;

use diagnostic::Source;
use reading::Reading;
use table::Table;

/// Reads a configuration file.
///
/// # Errors
/// Everything that is wrong with it, errors and warnings, where at least one is an error.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    let bytes = std::fs::read(path).map_err(|error| {
        let message = format!("can't read this file: {error}");
        Diagnostic::of_file(path, Severity::Error, message, vec!["name it with --config FILE".into()])
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let span = error.utf8_error().valid_up_to()..error.utf8_error().valid_up_to() + 1;
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        Source { file: path.into(), text }.diagnostic(span, Severity::Error, "not UTF-8", Vec::new())
    })?;
    parse(&text, path)?.with_readable_files()
}

/// Reads the text of a configuration file; `file` is where it came from, and its folder is what relative paths start from.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file: &Path) -> Result<Loaded, Diagnostics> {
    parse_in(text, file, std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).as_deref())
}

/// The JSON Schema (draft 2020-12) of a configuration file.
pub fn json_schema() -> Json {
    let nothing = Source { file: PathBuf::new(), text: String::new() };
    let mut reading = Reading::new(&nothing, Path::new(""), None);
    let (_, mut schema) = Table::element(&mut reading, "", None, definition::config);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Configuration of ldaps-proxy");
    schema
}

/// [`parse`] without the environment.
fn parse_in(text: &str, file: &Path, credentials: Option<&Path>) -> Result<Loaded, Diagnostics> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source = Source { file: file.into(), text: text.into() };
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What the rest of such a file means is a guess: judging it would only hide these.
        let found = |error: &toml::de::Error| {
            let span = error.span().unwrap_or(0..0);
            source.diagnostic(span, Severity::Error, error.message(), Vec::new())
        };
        return Err(errors.iter().map(found).collect());
    }
    let mut reading = Reading::new(&source, file.parent().unwrap_or(Path::new("")), credentials);
    let (config, _) = Table::element(&mut reading, "", Some(tree.get_ref()), definition::config);
    let Reading { found, places, settings, .. } = reading;
    let found: Diagnostics = found.into_iter().collect();
    match config {
        Some(config) if !found.has_errors() => Ok(Loaded::new(config, found, source, places, settings)),
        _ => Err(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = include_str!("../../config/minimal.toml");

    fn parsed(text: &str) -> Loaded {
        parse_in(text, Path::new("/etc/ldaps-proxy/f.toml"), Some(Path::new("/run/credentials")))
            .expect("the file is right")
    }

    #[test]
    fn the_smallest_file_means_what_the_contract_says() {
        let config = parsed(SMALLEST).config;
        let [listener] = &config.listeners[..] else { panic!("one listener") };
        assert_eq!((listener.name.as_str(), listener.protocol), ("0.0.0.0:636", ListenerProtocol::Ldaps));
        assert_eq!(listener.policy, Policy::default());
        let tls = listener.tls.as_ref().expect("ldaps has TLS");
        assert_eq!(tls.default_certificate.certificate, Path::new("/etc/ldaps-proxy/certs/certificate.pem"));
        let backends = ["10.0.1.10:389", "10.0.2.10:389"].map(|address| BackendSource {
            address: BackendAddress::Socket(address.parse().expect("an address")),
            weight: 1,
            tier: 0,
            max_sessions: 0,
        });
        assert_eq!(*config.pools["simple-ad"], Pool::new("simple-ad", backends.to_vec()));
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.access_log, AccessLog::default());
        assert_eq!(config.log, Log::default());
    }

    #[test]
    fn systemd_hands_over_secrets_in_a_folder_of_the_environment() {
        let text = SMALLEST.replace("certs/private_key.pem", "${CREDENTIALS_DIRECTORY}/key");
        let key = |loaded: &Loaded| loaded.certificates()[0].1.private_key.clone();
        assert_eq!(key(&parsed(&text)).file(), Some(Path::new("/run/credentials/key")));
        let found = parse_in(&text, Path::new("f.toml"), None).expect_err("there is no such folder");
        assert!(found.to_string().contains("LoadCredential=key:"), "{found}");
    }

    #[test]
    fn a_restriction_refuses_tunnels_unless_the_file_says_otherwise() {
        let layer = |policy: &str| {
            let text = SMALLEST.replace("[tls]", &format!("[listener.policy]\n{policy}\n[tls]"));
            parsed(&text).config.listeners[0].policy.sasl_layer
        };
        assert_eq!(layer(""), SaslLayer::Tunnel);
        assert_eq!(layer("allow_unauthenticated = true"), SaslLayer::Tunnel);
        assert_eq!(layer("read_only = true"), SaslLayer::Refuse);
        assert_eq!(layer("allow_anonymous = false"), SaslLayer::Refuse);
        assert_eq!(layer("read_only = true\nsasl_layer = \"tunnel\""), SaslLayer::Tunnel);
    }

    #[test]
    fn the_port_follows_the_protocol_of_the_pool() {
        let text = SMALLEST
            .replace("\"10.0.1.10:389\", \"10.0.2.10:389\"]", "\"dc1.corp.example.com\"]\nprotocol = \"ldaps\"");
        let address = BackendAddress::Host { name: "dc1.corp.example.com".into(), port: 636 };
        assert_eq!(parsed(&text).config.pools["simple-ad"].backends[0].address, address);
    }

    #[test]
    fn numbers_may_be_written_in_any_way_toml_knows() {
        let text = format!(
            "{SMALLEST}\n[limits]\nmax_connections = 1_000\nhandshakes = 0x10\nrequest_size = 65536\nsearch_size = 0x400\n"
        );
        let limits = parsed(&text).config.limits;
        assert_eq!(
            [limits.max_connections, limits.handshakes, limits.request_size, limits.search_size],
            [1000, 16, 65536, 1024]
        );
        assert_eq!(limits.request_size_anonymous, 65536, "a default gives way to a smaller `request_size`");
    }
}
