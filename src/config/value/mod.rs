//! The values of a configuration file that are written as text: pure functions from text to type and back.

mod address;
mod directory;
mod pkcs11_uri;
mod quantity;

use std::path::{Path, PathBuf};

pub(super) use address::*;
pub(super) use directory::*;
pub(super) use pkcs11_uri::*;
pub(super) use quantity::*;

use crate::log;

/// Why a text is not the value it should be, and what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct Refusal {
    /// One sentence without a full stop; the text itself is shown beside it.
    pub(in crate::config) message: String,
    /// What to write instead.
    pub(in crate::config) help: Option<String>,
}

impl Refusal {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// What systemd's `LoadCredential=` hands over lies in a folder whose name only the environment tells.
pub(super) const CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}/";

/// The path of a file, from the `folder` that relative ones start from or from that of the `credentials`; `None` for one among
/// credentials where there are none.
pub fn file(text: &str, folder: &Path, credentials: Option<&Path>) -> Option<PathBuf> {
    match text.strip_prefix(CREDENTIALS) {
        None => Some(folder.join(text)),
        Some(name) => Some(credentials?.join(name)),
    }
}

/// A level, or levels per module: `info`, `info,ldaps_proxy::health=debug`.
pub(super) fn log_level(text: &str) -> Result<String, Refusal> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',').map(str::trim) {
        let (target, level) =
            directive.rsplit_once('=').map_or((None, directive), |(target, level)| (Some(target), level));
        if target.is_some_and(|target| target.trim().is_empty()) {
            return Err(Refusal::new("a module is missing before `=`"));
        }
        if !LEVELS.contains(&level) {
            let refusal = Refusal::new(format!("\"{level}\" is not a level"));
            return Err(
                refusal.help(format!("one of {}, or such as \"info,ldaps_proxy::health=debug\"", LEVELS.join(", ")))
            );
        }
    }
    // The log itself has the last word, so that what is taken here is never refused at the start.
    log::parse(text).map_err(|_| Refusal::new("not a level").help("such as \"info,ldaps_proxy::health=debug\""))?;
    Ok(text.into())
}

/// A text that isn't empty and has no control characters: it ends up in labels and on terminals.
pub(super) fn name(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.chars().any(char::is_control) {
        Err(Refusal::new("must be a text of at least one character, without control characters"))
    } else {
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is said of a wrong value.
    pub(super) fn refusal<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        let refusal = result.expect_err("the value is wrong");
        format!("{} | {}", refusal.message, refusal.help.unwrap_or_default())
    }

    #[test]
    fn levels() {
        assert!(log_level("info,ldaps_proxy::health=debug").is_ok());
        assert!(log_level("info, ldaps_proxy=debug ").is_ok());
        assert!(refusal(log_level("info,/=debug")).contains("not a level"));
        assert!(refusal(log_level("inof")).contains("\"inof\" is not a level"));
        assert!(refusal(log_level("=debug")).contains("before `=`"));
        assert!(log_level("").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (network(&text), socket_address(&text), backend_address(&text, 389), duration(&text), size(&text));
            let _ = (distinguished_name(&text), subtree(&text), filter(&text), log_level(&text), sasl_mechanism(&text));
        }
    }
}
