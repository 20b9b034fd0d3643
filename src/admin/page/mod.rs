//! The status page: rendered here, readable without JavaScript, renewed by a small script.

use std::collections::BTreeMap;

use askama::Template;

use super::model::{BackendState, Status, Top};

/// The page's style.
pub(super) const CSS: &str = include_str!("status.css");
/// The page's script.
pub(super) const JAVASCRIPT: &str = include_str!("status.js");

/// A certificate that expires within this is marked.
const NEAR_EXPIRY_DAYS: u64 = 45;
const DAY: u64 = 24 * 3600;

/// The page for this status, with buttons where changes are allowed.
pub(super) fn render(status: &Status, changes_allowed: bool) -> String {
    Page { status, changes_allowed }.render().expect("a template writes to a string, which takes everything")
}

#[derive(Template)]
#[template(path = "status.html")]
struct Page<'a> {
    status: &'a Status,
    changes_allowed: bool,
}

impl Page<'_> {
    fn verdict(&self) -> &'static str {
        if self.status.snapshot.draining {
            "draining"
        } else if self.status.snapshot.not_ready.is_empty() {
            "ready"
        } else {
            "not ready"
        }
    }

    fn verdict_class(&self) -> &'static str {
        match self.verdict() {
            "ready" if self.usable() == self.status.snapshot.backends.len() => "good",
            "ready" => "warn",
            _ => "bad",
        }
    }

    fn summary(&self) -> String {
        let snapshot = &self.status.snapshot;
        let verdict = match self.verdict() {
            "not ready" => format!("Not ready: {}", snapshot.not_ready.join("; ")),
            "draining" => "Draining".into(),
            _ => "Ready".into(),
        };
        format!("{verdict}. {} of {} backends usable.", self.usable(), snapshot.backends.len())
    }

    fn usable(&self) -> usize {
        let usable = |state| matches!(state, BackendState::Unknown | BackendState::Up | BackendState::Degraded);
        self.status.snapshot.backends.iter().filter(|backend| usable(backend.state)).count()
    }

    /// Whether an operator has left it in service.
    fn serves(&self, state: &BackendState) -> bool {
        !matches!(state, BackendState::Draining | BackendState::Disabled)
    }

    fn since(&self, at: &u64) -> String {
        if *at == 0 { "–".into() } else { duration(self.status.now.saturating_sub(*at)) }
    }

    fn expiry(&self, not_after: &u64) -> String {
        match not_after.checked_sub(self.status.now) {
            Some(left) => format!("in {} days", left / DAY),
            None => format!("{} ago", duration(self.status.now - not_after)),
        }
    }

    fn expiry_class(&self, not_after: &u64) -> &'static str {
        match not_after.checked_sub(self.status.now) {
            None => "expired",
            Some(left) if left < NEAR_EXPIRY_DAYS * DAY => "near",
            Some(_) => "valid",
        }
    }

    fn rate(&self, per_second: &f64) -> String {
        if *per_second < 10.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
    }

    fn milliseconds(&self, milliseconds: impl std::borrow::Borrow<Option<f64>>) -> String {
        match *milliseconds.borrow() {
            None => "–".into(),
            Some(milliseconds) if milliseconds < 10.0 => format!("{milliseconds:.2} ms"),
            Some(milliseconds) => format!("{milliseconds:.0} ms"),
        }
    }

    /// Title, what a row is about, rows.
    fn busiest(&self) -> [(&'static str, &'static str, &[Top]); 2] {
        let status = self.status;
        [("Clients", "Address", &status.top_clients), ("Bind names", "Name", &status.top_bind_names)]
    }

    /// Title, what a row is about, rows.
    fn counts(&self) -> [(&'static str, &'static str, &BTreeMap<String, u64>); 3] {
        let status = self.status;
        [
            ("Refusals", "Reason", &status.refusals),
            ("Failovers", "Kind", &status.failovers),
            ("TLS handshakes", "Version", &status.tls_versions),
        ]
    }
}

/// The two largest units: `3 d 4 h`, `59 s`.
pub(crate) fn duration(seconds: u64) -> String {
    let units = [(DAY, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(units.len() - 1);
    let (size, unit) = units[first];
    match units.get(first + 1) {
        Some((next, next_unit)) if seconds % size >= *next => {
            format!("{} {unit} {} {next_unit}", seconds / size, seconds % size / next)
        }
        _ => format!("{} {unit}", seconds / size),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Backend, Certificate, Failure, Probe, Snapshot};
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn status() -> Status {
        Status {
            now: NOW,
            snapshot: Snapshot {
                started: NOW - 90,
                backends: vec![
                    Backend { name: "10.0.1.10:389".into(), state: BackendState::Up, ..Backend::default() },
                    Backend {
                        name: "10.0.2.10:389".into(),
                        state: BackendState::Down,
                        reason: "3 probes failed: connection refused".into(),
                        probes: vec![Probe { failure: Some("connection refused".into()), ..Probe::default() }],
                        ..Backend::default()
                    },
                ],
                certificates: vec![Certificate { not_after: NOW + 10 * DAY, ..Certificate::default() }],
                ..Snapshot::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn the_page_tells_what_an_operator_asks_first() {
        let page = render(&status(), false);
        for text in
            ["Ready. 1 of 2 backends usable.", "10.0.2.10:389", "3 probes failed: connection refused", "in 10 days"]
        {
            assert!(page.contains(text), "{text} in\n{page}");
        }
        assert!(!page.contains("<button"), "a read-only page has no buttons");
    }

    #[test]
    fn buttons_offer_the_opposite_of_what_is() {
        let mut status = status();
        status.snapshot.backends[1].state = BackendState::Draining;
        let page = render(&status, true);
        assert!(page.contains(r#"data-action="drain" data-backend="10.0.1.10:389""#));
        assert!(page.contains(r#"data-action="enable" data-backend="10.0.2.10:389""#));
    }

    #[test]
    fn what_clients_say_is_text_and_never_markup() {
        let mut status = status();
        let hostile = "<script>alert('x')</script>\"'&";
        status.top_bind_names = vec![Top { who: hostile.into(), ..Top::default() }];
        status.snapshot.recent_failures = vec![Failure { detail: hostile.into(), ..Failure::default() }];
        status.snapshot.backends[0].name = hostile.into();
        let page = render(&status, true);
        assert!(!page.contains("<script>alert"));
        assert!(!page.contains("alert('x')"));
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let table = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (90_061, "1 d 1 h"),
            (86_460, "1 d"),
        ];
        for (seconds, text) in table {
            assert_eq!(duration(seconds), text);
        }
    }
}
