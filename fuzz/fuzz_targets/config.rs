//! Configuration files and lists of networks: any text is either understood or refused with findings that point into it.

#![no_main]

use std::path::Path;

use ldaps_proxy::config::{self, Diagnostics, Severity};
use ldaps_proxy::trust::parse_list;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| {
    let Ok(text) = str::from_utf8(octets) else { return };
    match config::parse(text, Path::new("/etc/ldaps-proxy/ldaps-proxy.toml")) {
        Err(found) => {
            assert!(found.has_errors(), "refused without a reason");
            points_into(&found, text);
        }
        Ok(loaded) => {
            assert!(!loaded.warnings.has_errors());
            points_into(&loaded.warnings, text);
            assert!(!loaded.config.listeners.is_empty() && !loaded.settings().is_empty());
            assert!(config::changes(&loaded, &loaded).is_empty(), "nothing has changed");
            for (path, _) in loaded.certificates() {
                let found = loaded.report(&format!("{path}.certificate"), Severity::Warning, "look", "");
                points_into(&Diagnostics::from(found), text);
            }
        }
    }
    if let Err(errors) = parse_list(text) {
        assert!(!errors.is_empty());
        for error in errors {
            assert!((1..=text.lines().count()).contains(&error.line), "{error:?}");
        }
    }
});

/// Each finding stands at a place that exists, and can be shown.
fn points_into(found: &Diagnostics, text: &str) {
    let lines = text.split('\n').count();
    for finding in found.iter() {
        assert!((1..=lines).contains(&finding.line), "line {} of {lines}", finding.line);
        assert!(finding.column >= 1 && !finding.message.is_empty());
        assert!(finding.to_string().contains(&finding.message));
    }
}
