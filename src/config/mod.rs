//! Configuration: from a TOML file to [`Config`], with diagnostics that name file, line, key and what is allowed.

mod settings;

pub use settings::*;
