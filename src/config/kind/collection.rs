//! Values made of values.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value as Json, json};

use super::{Kind, Written};
use crate::config::diagnostic::Severity;
use crate::config::reading::Reading;

/// A list of values, each once.
pub(in crate::config) struct List<K> {
    element: K,
    least: usize,
    repeated: Severity,
}

/// A list in which a repeated value is only superfluous.
pub(in crate::config) fn list<K: Kind>(element: K) -> List<K> {
    List { element, least: 0, repeated: Severity::Warning }
}

impl<K> List<K> {
    /// At least one value, and none twice.
    pub(in crate::config) fn of_distinct(self) -> Self {
        Self { least: 1, repeated: Severity::Error, ..self }
    }

    /// At least one value.
    pub(in crate::config) fn of_some(self) -> Self {
        Self { least: 1, ..self }
    }
}

impl<K: Kind> Kind for List<K> {
    type Value = Vec<K::Value>;

    /// Leaves out the elements that are wrong, so that the rest of the file can still be judged.
    fn read(&self, path: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<Vec<K::Value>> {
        let Some(elements) = written.get_ref().as_array() else {
            return reading.mismatch(written, "a list in square brackets");
        };
        if elements.len() < self.least {
            return reading.refuse(written, "must not be empty".into(), None);
        }
        let mut seen = HashSet::new();
        let mut values = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{path}[{index}]");
            reading.place(&path, element.span());
            let Some(value) = self.element.read(&path, element, reading) else { continue };
            let identity = self.element.identity(&value);
            let repeated = format!("{identity} is in the list already");
            if seen.insert(identity) {
                values.push(value);
            } else {
                reading.report(element.span(), self.repeated, repeated, vec![]);
            }
        }
        Some(values)
    }

    fn schema(&self) -> Json {
        json!({ "type": "array", "items": self.element.schema(), "minItems": self.least })
    }

    fn show(&self, value: &Vec<K::Value>) -> Json {
        value.iter().map(|value| self.element.show(value)).collect()
    }
}

/// A table of free keys, each with a text.
pub(in crate::config) struct Pairs;

impl Kind for Pairs {
    type Value = BTreeMap<String, String>;

    fn read(&self, path: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<Self::Value> {
        let Some(table) = written.get_ref().as_table() else {
            return reading
                .mismatch(written, "a table of attributes and values, such as { isSynchronized = \"TRUE\" }");
        };
        let mut pairs = BTreeMap::new();
        for (key, value) in table.iter() {
            reading.place(&format!("{path}.{}", key.get_ref()), value.span());
            match value.get_ref().as_str() {
                Some(text) => drop(pairs.insert(key.get_ref().to_string(), text.to_owned())),
                None => reading.mismatch(value, "a text in quotes").unwrap_or_default(),
            }
        }
        Some(pairs)
    }

    fn schema(&self) -> Json {
        json!({ "type": "object", "additionalProperties": { "type": "string" } })
    }

    fn show(&self, value: &Self::Value) -> Json {
        json!(value)
    }
}
