//! Configuration: from a TOML file to [`Config`], with diagnostics that name file, line, key and what is allowed.
//!
//! A file is read in one pass that collects every problem: the [`toml`] crate yields a tree with spans, the functions of
//! [`definition`] ask it for each key they know, and what nobody asked for is unknown. The same functions, run over
//! nothing, yield [`json_schema`].

mod definition;
mod diagnostic;
mod kind;
mod loaded;
mod reading;
mod settings;
mod table;
mod value;

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use toml::de::DeTable;

pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use loaded::{Loaded, changes};
pub use settings::*;
pub use value::{Refusal, network};

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
