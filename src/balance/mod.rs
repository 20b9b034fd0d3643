//! Choosing a backend: one small pure file per policy.
