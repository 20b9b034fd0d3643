//! Reading a file once: what is found, where each key stands, and which settings are in force.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value as Json;

use super::diagnostic::{Diagnostic, Severity, Source};
use super::kind::Written;

/// The state of reading one file.
pub(super) struct Reading<'s> {
    pub(super) source: &'s Source,
    /// The folder relative paths start from.
    pub(super) folder: &'s Path,
    /// `$CREDENTIALS_DIRECTORY`
    pub(super) credentials: Option<&'s Path>,
    pub(super) found: Vec<Diagnostic>,
    pub(super) places: Places,
    /// Every setting in force, written or default, by the path of its key; null where there is neither.
    pub(super) settings: BTreeMap<String, Json>,
}

impl<'s> Reading<'s> {
    pub(super) fn new(source: &'s Source, folder: &'s Path, credentials: Option<&'s Path>) -> Self {
        let (found, places, settings) = Default::default();
        Self { source, folder, credentials, found, places, settings }
    }

    pub(super) fn report(
        &mut self,
        span: Range<usize>,
        severity: Severity,
        message: impl Into<String>,
        help: Vec<String>,
    ) {
        self.found.push(self.source.diagnostic(span, severity, message, help));
    }

    /// Remembers where the value of the key at `path` stands.
    pub(super) fn place(&mut self, path: &str, span: Range<usize>) {
        self.places.0.insert(path.into(), span);
    }

    /// Reports a value of another type than `expected`.
    pub(super) fn mismatch<T>(&mut self, written: &Written<'_>, expected: &str) -> Option<T> {
        let found = match written.get_ref().type_str() {
            "integer" => "a number",
            "float" => "a number with a fraction",
            "boolean" => "true or false",
            "datetime" => "a date",
            "array" => "a list",
            "table" => "a table",
            _ => "a text",
        };
        self.refuse(written, format!("expected {expected}, found {found}"), None)
    }

    /// Reports a value that is wrong.
    pub(super) fn refuse<T>(&mut self, written: &Written<'_>, message: String, help: Option<String>) -> Option<T> {
        self.report(written.span(), Severity::Error, message, help.into_iter().collect());
        None
    }
}

/// Where the keys of a file stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(BTreeMap<String, Range<usize>>);

impl Places {
    /// The place of the key at `path`, such as `listener[1].tls.certificate`; of the nearest table around it where it
    /// isn't written; the start of the file where there is none.
    pub(super) fn find(&self, path: &str) -> Range<usize> {
        let around = path.rmatch_indices(['.', '[']).map(|(index, _)| &path[..index]);
        std::iter::once(path).chain(around).find_map(|path| self.0.get(path)).cloned().unwrap_or(0..0)
    }

    /// Whether the key at `path` is written.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

/// The candidate that `text` is most likely a misspelling of.
pub(super) fn nearest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    const LIKE_ENOUGH: f64 = 0.8;
    let text = text.to_ascii_lowercase();
    candidates
        .map(|candidate| (strsim::jaro_winkler(&text, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
        .reduce(|best, other| if other.0 > best.0 { other } else { best })
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_written_is_placed_at_the_table_around_it() {
        let places = Places([("tls".into(), 5..10), ("listener[1]".into(), 20..30)].into());
        assert_eq!(places.find("tls"), 5..10);
        assert_eq!(places.find("tls.certificate"), 5..10);
        assert_eq!(places.find("tls.additional[0].private_key"), 5..10);
        assert_eq!(places.find("listener[1].tls.certificate"), 20..30);
        assert_eq!(places.find("pools"), 0..0);
    }

    #[test]
    fn the_nearest_word_is_a_plausible_one() {
        let keys = ["certificate", "private_key", "certificate_chain", "trusted_networks"];
        for (text, expected) in [
            ("certficate", Some("certificate")),
            ("cert", Some("certificate")),
            ("private-key", Some("private_key")),
            ("TrustedNetworks", Some("trusted_networks")),
            ("color", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, keys.into_iter()), expected, "{text}");
        }
    }
}
