//! What is wrong, or will be, with a certificate and the files around it.

use std::fmt;

/// One thing an operator should know about the `[tls]` table, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it keeps the listener from starting.
    pub severity: Severity,
    /// The entry of `[[tls.additional]]` it is about, from 0; `None` is `[tls]` itself.
    pub additional: Option<usize>,
    /// The key of that table it is about.
    pub key: &'static str,
    /// What was found, in one sentence without a full stop.
    pub message: String,
    /// What to do: where possible a command line to paste.
    pub help: String,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// No TLS can be served from these files.
    Error,
    /// Served, but some client refuses it, or soon will, or a key is exposed.
    Warning,
}

impl Finding {
    pub(super) fn error(key: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Error, additional: None, key, message: message.into(), help: help.into() }
    }

    pub(super) fn warning(key: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key, message, help) }
    }

    /// Whether it keeps the listener from starting.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.additional {
            Some(index) => write!(f, "tls.additional[{index}].{}: {}; {}", self.key, self.message, self.help),
            None => write!(f, "{}: {}; {}", self.key, self.message, self.help),
        }
    }
}
