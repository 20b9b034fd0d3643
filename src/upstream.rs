//! One live connection to a backend.
