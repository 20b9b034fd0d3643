//! Values written as text.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::{Kind, List, Written, list};
use crate::config::reading::Reading;
use crate::config::settings::PrivateKeySource;
use crate::config::value::{self, Refusal};

type Parse<T> = dyn Fn(&str) -> Result<T, Refusal>;

/// A text that a function turns into a value.
pub(in crate::config) struct Text<T> {
    expected: &'static str,
    parse: Box<Parse<T>>,
    show: fn(&T) -> String,
}

/// A text that `parse` understands; `expected` finishes the sentence "expected …".
pub(in crate::config) fn text<T>(
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, Refusal> + 'static,
    show: fn(&T) -> String,
) -> Text<T> {
    Text { expected, parse: Box::new(parse), show }
}

/// A text that stays one.
pub(in crate::config) fn string(expected: &'static str, parse: fn(&str) -> Result<String, Refusal>) -> Text<String> {
    text(expected, parse, String::clone)
}

/// A name people give.
pub(in crate::config) fn name() -> Text<String> {
    string("a text in quotes", value::name)
}

/// A host name.
pub(in crate::config) fn host() -> Text<String> {
    string("a host name", value::host_name)
}

/// An IP address and a port.
pub(in crate::config) fn address() -> Text<SocketAddr> {
    text("an IP address and a port, such as \"0.0.0.0:636\"", value::socket_address, ToString::to_string)
}

/// A list of networks.
pub(in crate::config) fn networks() -> List<Text<IpNet>> {
    list(text("a network such as \"10.0.0.0/16\"", value::network, ToString::to_string))
}

/// A list of object identifiers.
pub(in crate::config) fn oids() -> List<Text<String>> {
    list(string("an object identifier such as \"1.3.6.1.4.1.4203.1.11.1\"", value::object_identifier))
}

/// A duration above zero.
pub(in crate::config) fn duration() -> Text<Duration> {
    let parse = |text: &str| match value::duration(text) {
        Ok(Duration::ZERO) => Err(Refusal { message: "must be longer than zero".into(), help: None }),
        other => other,
    };
    text("a duration such as \"2s\"", parse, value::show_duration)
}

/// A duration; zero turns the thing off.
pub(in crate::config) fn duration_or_off() -> Text<Duration> {
    text("a duration such as \"2s\", or \"0s\" for off", value::duration, value::show_duration)
}

impl<T> Kind for Text<T> {
    type Value = T;

    fn read(&self, _: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<T> {
        let Some(text) = written.get_ref().as_str() else {
            return reading.mismatch(written, self.expected);
        };
        match (self.parse)(text) {
            Ok(value) => Some(value),
            Err(Refusal { message, help }) => reading.refuse(written, message, help),
        }
    }

    fn schema(&self) -> Json {
        json!({ "type": "string" })
    }

    fn show(&self, value: &T) -> Json {
        json!((self.show)(value))
    }
}

/// A number of bytes, at least so many.
pub(in crate::config) struct Size(pub(in crate::config) u64);

impl Kind for Size {
    type Value = usize;

    fn read(&self, _: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<usize> {
        let bytes = match written.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix())
                .map_err(|_| Refusal { message: "must be a number of bytes".into(), help: None }),
            DeValue::String(text) => value::size(text),
            _ => return reading.mismatch(written, "a size such as \"250 KiB\", or a number of bytes"),
        };
        match bytes {
            Ok(bytes) if (self.0..=Self::MOST).contains(&bytes) => usize::try_from(bytes).ok(),
            Ok(_) => {
                let range = format!("{} to {}", value::show_size(self.0), value::show_size(Self::MOST));
                reading.refuse(written, format!("must be a size of {range}"), None)
            }
            Err(Refusal { message, help }) => reading.refuse(written, message, help),
        }
    }

    fn schema(&self) -> Json {
        json!({ "anyOf": [
            { "type": "integer", "minimum": self.0 },
            { "type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB)$" },
        ]})
    }

    fn show(&self, value: &usize) -> Json {
        json!(value::show_size(*value as u64))
    }
}

impl Size {
    /// Fits `usize` on every machine this runs on, memory of none.
    const MOST: u64 = 1 << 40;
}

/// A PEM file, or a `pkcs11:` URI.
pub(in crate::config) struct KeySource;

impl Kind for KeySource {
    type Value = PrivateKeySource;

    fn read(&self, path: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<PrivateKeySource> {
        match written.get_ref().as_str() {
            Some(uri) if uri.starts_with(value::SCHEME) => {
                let key = text("a pkcs11: URI", value::pkcs11_uri, |key| key.uri.clone()).read(path, written, reading);
                key.map(|key| PrivateKeySource::Token(Box::new(key)))
            }
            _ => File.read(path, written, reading).map(PrivateKeySource::File),
        }
    }

    fn schema(&self) -> Json {
        File.schema()
    }

    fn show(&self, value: &PrivateKeySource) -> Json {
        match value {
            PrivateKeySource::File(path) => File.show(path),
            PrivateKeySource::Token(key) => json!(key.uri),
        }
    }
}

/// A file or folder, relative to the folder of the configuration file.
pub(in crate::config) struct File;

impl Kind for File {
    type Value = PathBuf;

    fn read(&self, _: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<PathBuf> {
        let Some(text) = written.get_ref().as_str() else {
            return reading.mismatch(written, "the path of a file");
        };
        if text.is_empty() {
            return reading.refuse(written, "must be the path of a file".into(), None);
        }
        value::file(text, reading.folder, reading.credentials).or_else(|| {
            let name = text.strip_prefix(value::CREDENTIALS).unwrap_or_default();
            let help = format!("systemd sets it for a unit with LoadCredential={name}:/path/of/the/file");
            reading.refuse(written, "CREDENTIALS_DIRECTORY is not set in the environment".into(), Some(help))
        })
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "minLength": 1 })
    }

    fn show(&self, value: &PathBuf) -> Json {
        json!(value.to_string_lossy())
    }
}
