//! Limits failed logins.
