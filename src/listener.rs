//! Accepting connections: bind, limits, back-off.
