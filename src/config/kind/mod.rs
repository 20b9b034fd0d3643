//! The kinds of value a key can take: each reads what is written, describes itself to the schema, and writes back.

mod collection;
mod text;

use std::fmt::Display;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::DeValue;

use super::reading::{Reading, nearest};

pub(in crate::config) use collection::{List, Pairs, list};
pub(in crate::config) use text::*;

/// A value with its place in the file.
pub(in crate::config) type Written<'d> = Spanned<DeValue<'d>>;

/// One kind of value.
pub(in crate::config) trait Kind {
    type Value;

    /// The value of the key at `path`; `None` once what is wrong with it has been reported.
    fn read(&self, path: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<Self::Value>;

    /// Its JSON Schema.
    fn schema(&self) -> Json;

    /// The value as it would be written in the file.
    fn show(&self, value: &Self::Value) -> Json;

    /// What may stand only once in a list.
    fn identity(&self, value: &Self::Value) -> Json {
        self.show(value)
    }
}

/// `true` or `false`.
pub(in crate::config) struct Flag;

impl Kind for Flag {
    type Value = bool;

    fn read(&self, _: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<bool> {
        let value = written.get_ref().as_bool();
        value.or_else(|| reading.mismatch(written, "true or false"))
    }

    fn schema(&self) -> Json {
        json!({ "type": "boolean" })
    }

    fn show(&self, value: &bool) -> Json {
        json!(value)
    }
}

/// A whole number within a range.
pub(in crate::config) struct Number<T> {
    range: RangeInclusive<u64>,
    number: PhantomData<T>,
}

/// A whole number of the range.
pub(in crate::config) fn number<T>(range: RangeInclusive<u64>) -> Number<T> {
    Number { range, number: PhantomData }
}

/// A whole number; 0 turns the thing off.
pub(in crate::config) fn count<T>() -> Number<T> {
    number(0..=1_000_000)
}

impl<T: TryFrom<u64> + Display + Copy> Kind for Number<T> {
    type Value = T;

    fn read(&self, _: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<T> {
        let (least, most) = (self.range.start(), self.range.end());
        let Some(digits) = written.get_ref().as_integer() else {
            return reading.mismatch(written, &format!("a whole number of {least} to {most}"));
        };
        let number = u64::from_str_radix(digits.as_str(), digits.radix()).ok();
        let number = number.filter(|number| self.range.contains(number)).and_then(|number| T::try_from(number).ok());
        number.or_else(|| reading.refuse(written, format!("must be a whole number of {least} to {most}"), None))
    }

    fn schema(&self) -> Json {
        json!({ "type": "integer", "minimum": self.range.start(), "maximum": self.range.end() })
    }

    fn show(&self, value: &T) -> Json {
        value.to_string().parse().unwrap_or(Json::Null)
    }
}

/// One word of several.
pub(in crate::config) struct Choice<T: 'static>(pub(in crate::config) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Value = T;

    fn read(&self, _: &str, written: &Written<'_>, reading: &mut Reading<'_>) -> Option<T> {
        let Some(text) = written.get_ref().as_str() else {
            return reading.mismatch(written, &format!("one of {}", self.words()));
        };
        let found = self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.or_else(|| {
            let help = match nearest(text, self.0.iter().map(|(word, _)| *word)) {
                Some(word) => format!("did you mean \"{word}\"? allowed: {}", self.words()),
                None => format!("allowed: {}", self.words()),
            };
            reading.refuse(
                written,
                format!("\"{}\" is not one of the words allowed here", text.escape_debug()),
                Some(help),
            )
        })
    }

    fn schema(&self) -> Json {
        json!({ "enum": self.0.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
    }

    fn show(&self, value: &T) -> Json {
        self.0.iter().find(|(_, choice)| choice == value).map_or(Json::Null, |(word, _)| json!(word))
    }
}

impl<T> Choice<T> {
    fn words(&self) -> String {
        self.0.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
    }
}
