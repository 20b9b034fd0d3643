//! A file that was read without an error, and what is still known of its text.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::diagnostic::{Diagnostic, Diagnostics, Severity, Source};
use super::reading::Places;
use super::settings::{CertificateFiles, Config};

/// A configuration with the file it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the file says.
    pub config: Config,
    /// What is doubtful in it.
    pub warnings: Diagnostics,
    source: Source,
    places: Places,
    settings: BTreeMap<String, Json>,
    without_admin: bool,
}

impl Loaded {
    pub(super) fn new(
        config: Config,
        warnings: Diagnostics,
        source: Source,
        places: Places,
        settings: BTreeMap<String, Json>,
    ) -> Self {
        Self { config, warnings, source, places, settings, without_admin: false }
    }

    /// The file, as it was named to us.
    pub fn file(&self) -> &Path {
        &self.source.file
    }

    /// Leaves `[admin]` and `[health]` to another process that runs from the same file.
    pub fn leave_out_admin(&mut self) {
        self.without_admin = true;
        (self.config.admin, self.config.health_address) = Default::default();
        self.settings.retain(|key, _| !key.starts_with("admin.") && !key.starts_with("health."));
    }

    /// Whether they were left out, which holds for every later reading of the file.
    pub fn is_without_admin(&self) -> bool {
        self.without_admin
    }

    /// A finding about the key at a path such as `tls.certificate` or `listener[1].tls.private_key` (counted from 0); where
    /// the key isn't written, it is placed at the table around it.
    pub fn report(
        &self,
        key: &str,
        severity: Severity,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Diagnostic {
        let help = Some(help.into()).filter(|help| !help.is_empty()).into_iter().collect();
        self.source.diagnostic(self.places.find(key), severity, message, help)
    }

    /// Every certificate with the path of its table: `tls`, `tls.additional[0]`, `listener[1].tls`; each once.
    pub fn certificates(&self) -> Vec<(String, &CertificateFiles)> {
        let mut found = BTreeMap::new();
        for (index, listener) in self.config.listeners.iter().enumerate() {
            let Some(tls) = &listener.tls else { continue };
            let path = self.tls_table(index);
            for (index, files) in tls.additional.iter().enumerate() {
                found.insert(format!("{path}.additional[{index}]"), files);
            }
            found.insert(path, &tls.default_certificate);
        }
        found.into_iter().collect()
    }

    /// The path of the table that says what the listener at this place, counted from 0, offers: its own, or `tls`.
    pub fn tls_table(&self, listener: usize) -> String {
        let own = format!("listener[{listener}].tls");
        if self.places.contains(&own) { own } else { "tls".into() }
    }

    /// Every setting in force, written or default, as it would be written, by the path of its key; null where it has neither.
    /// Holds no secret: those are in files of their own.
    pub fn settings(&self) -> &BTreeMap<String, Json> {
        &self.settings
    }

    /// The same, once a look into the files it names has found no mistake in the names.
    pub(super) fn with_readable_files(self) -> Result<Self, Diagnostics> {
        let keyless_bundle = |files: &CertificateFiles| {
            files.private_key.file() == Some(&files.certificate)
                && std::fs::read(&files.certificate)
                    .is_ok_and(|text| !String::from_utf8_lossy(&text).contains("PRIVATE KEY-----"))
        };
        let found: Vec<_> = (self.certificates().into_iter())
            .filter(|(_, files)| keyless_bundle(files))
            .map(|(path, _)| {
                let message = "the same file as `certificate`, and there is no private key in it";
                self.report(&format!("{path}.private_key"), Severity::Error, message, "")
            })
            .collect();
        if found.is_empty() { Ok(self) } else { Err(found.into_iter().chain(self.warnings).collect()) }
    }
}

/// What a running process can't change. No reason to refuse a file: all else in it applies.
const ONLY_AT_A_START: [&str; 1] = ["runtime.workers"];

/// What a reload changes: a line a key, such as `limits.idle_timeout: "1h" -> "30m"`. Listeners and pools go by name.
pub fn changes(old: &Loaded, new: &Loaded) -> Vec<String> {
    let (old, new) = (by_name(old), by_name(new));
    let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut lines = Vec::new();
    for (owner, key) in keys {
        let whole = |settings: &Settings| settings.keys().any(|(other, _)| other == owner);
        let line = match (whole(&old), whole(&new)) {
            (true, false) => format!("{owner}: removed"),
            (false, true) => format!("{owner}: added"),
            _ => {
                let id = (owner.clone(), key.clone());
                let [old, new] = [old.get(&id), new.get(&id)].map(|value| match value {
                    None | Some(Json::Null) => "none".into(),
                    Some(value) => value.to_string(),
                });
                if old == new {
                    continue;
                }
                let path = if owner.is_empty() { key.clone() } else { format!("{owner}.{key}") };
                let when = if ONLY_AT_A_START.contains(&&*path) { " (takes effect at the next start)" } else { "" };
                format!("{path}: {old} -> {new}{when}")
            }
        };
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines
}

/// Settings by the listener or pool they belong to, if any, and their key in it.
type Settings = BTreeMap<(String, String), Json>;

fn by_name(loaded: &Loaded) -> Settings {
    let split = |path: &str| -> (String, String) {
        if let Some((index, key)) = path.strip_prefix("listener[").and_then(|rest| rest.split_once("].")) {
            let listener = index.parse().ok().and_then(|index: usize| loaded.config.listeners.get(index));
            return (format!("listener {:?}", listener.map_or(index, |listener| &listener.name)), key.into());
        }
        match path.strip_prefix("pools.").and_then(|rest| rest.split_once('.')) {
            Some((pool, key)) => (format!("pools.{pool}"), key.into()),
            None => (String::new(), path.into()),
        }
    };
    loaded.settings.iter().map(|(path, value)| (split(path), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const TWO: &str = r#"
[[listener]]
address = "127.0.0.1:636"
trusted_networks = ["10.0.0.0/16"]
pool = "one"
[[listener]]
name = "second"
address = "127.0.0.1:3269"
trusted_networks = ["10.0.0.0/16"]
pool = "one"
[listener.tls]
certificate = "own.pem"
private_key = "own.key"
[tls]
certificate = "shared.pem"
private_key = "shared.key"
[[tls.additional]]
certificate = "more.pem"
private_key = "more.key"
[pools.one]
backends = ["10.0.1.10"]
"#;

    fn loaded(text: &str) -> Loaded {
        parse(text, Path::new("f.toml")).expect("the file is right")
    }

    #[test]
    fn every_certificate_is_named_by_its_table_once() {
        let loaded = loaded(TWO);
        let certificates = loaded.certificates();
        let shown: Vec<_> =
            certificates.iter().map(|(path, files)| (path.as_str(), files.certificate.to_str())).collect();
        assert_eq!(
            shown,
            [
                ("listener[1].tls", Some("own.pem")),
                ("tls", Some("shared.pem")),
                ("tls.additional[0]", Some("more.pem"))
            ]
        );
    }

    #[test]
    fn a_finding_stands_at_its_key_or_at_the_table_around_it() {
        let loaded = loaded(TWO);
        for (key, line, column) in [
            ("tls.certificate", 15, 15),
            ("tls.additional[0].private_key", 19, 15),
            ("listener[1].tls.private_key", 13, 15),
            ("listener[1].tls.certificate_chain", 11, 1),
            ("listener[0].trusted_networks_file", 2, 1),
        ] {
            let found = loaded.report(key, Severity::Warning, "look", "");
            assert_eq!((found.line, found.column), (line, column), "{key}");
        }
    }

    #[test]
    fn changes_are_told_by_key_and_name() {
        let old = loaded(TWO);
        assert_eq!(changes(&old, &old), <[String; 0]>::default());
        let new = TWO
            .replace("own.pem", "new.pem")
            .replace("[pools.one]", "[limits]\nidle_timeout = \"30m\"\nmax_connections = 9000\n[pools.one]")
            .replace("[[listener]]\naddress = \"127.0.0.1:636\"", "[[listener]]\naddress = \"127.0.0.2:636\"");
        assert_eq!(
            changes(&old, &loaded(&new)),
            [
                "limits.idle_timeout: \"1h\" -> \"30m\"",
                "listener \"127.0.0.1:636\": removed",
                "listener \"127.0.0.2:636\": added",
                "listener \"second\".tls.certificate: \"own.pem\" -> \"new.pem\"",
            ]
        );
    }

    #[test]
    fn what_is_left_to_another_process_has_not_changed() {
        let address = |table, port| format!("[{table}]\naddress = \"127.0.0.1:{port}\"\n");
        let text = |port| format!("{TWO}{}{}", address("admin", port), address("health", port + 1));
        let [mut old, mut new] = [1, 3].map(|port| loaded(&text(port)));
        assert_eq!(changes(&old, &new).len(), 2);
        old.leave_out_admin();
        new.leave_out_admin();
        assert_eq!(changes(&old, &new), <[String; 0]>::default());
        assert_eq!(new.config, loaded(TWO).config);
    }

    #[test]
    fn a_listener_that_moves_in_the_file_has_not_changed() {
        let (first, rest) = TWO.split_once("[[listener]]\nname").expect("two listeners");
        let (second, rest) = rest.split_once("[tls]").expect("a table after them");
        let moved = format!("[[listener]]\nname{second}{first}[tls]{rest}");
        assert_eq!(changes(&loaded(TWO), &loaded(&moved)), <[String; 0]>::default());
    }
}
