//! Whether a listener's policy lets a request through.
