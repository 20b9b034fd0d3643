//! A cursor over one table: the keys asked of it are the keys it may have.
//!
//! The functions of [`definition`](super::definition) ask a [`Table`] for each key by name, meaning and kind. Run over a file,
//! that yields the settings, and every key nobody asked for is unknown; run over nothing, it yields the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Severity;
use super::kind::{Kind, Written};
use super::path::{quoted, tables_with, title, without_indexes};
use super::reading::{Reading, nearest};

/// One table of the file, or the place where one could be.
pub(super) struct Table<'d, 'r, 's> {
    reading: &'r mut Reading<'s>,
    /// Such as `listener[0].policy`; empty for the whole file.
    path: String,
    state: State<'d>,
    known: Vec<Known>,
    /// Keys that should be there, and what belongs in them.
    missing: Vec<(String, String)>,
}

/// Whether a table is there.
#[derive(Clone, Copy)]
enum State<'d> {
    /// It is written.
    Written(&'d DeTable<'d>),
    /// It isn't, and every key has its default.
    Default,
    /// It isn't, and the thing it describes doesn't exist: it is read for its keys only.
    Absent,
}

/// A key that was asked for.
struct Known {
    name: &'static str,
    required: bool,
    schema: Json,
}

impl<'d, 'r, 's> Table<'d, 'r, 's> {
    /// Reads the table at a path, the file itself at the empty one; without entries, yields its schema only.
    pub(super) fn element<T>(
        reading: &'r mut Reading<'s>,
        path: &str,
        entries: Option<&'d DeTable<'d>>,
        read: impl FnOnce(&mut Table<'d, '_, 's>) -> T,
    ) -> (T, Json) {
        Table::read(reading, path.into(), entries.map_or(State::Absent, State::Written), read)
    }

    fn read<T>(
        reading: &'r mut Reading<'s>,
        path: String,
        state: State<'d>,
        read: impl FnOnce(&mut Table<'d, '_, 's>) -> T,
    ) -> (T, Json) {
        let mut table = Table { reading, path, state, known: Vec::new(), missing: Vec::new() };
        let value = read(&mut table);
        (value, table.finish())
    }

    /// A key with what it means, one sentence; say next whether it must be there.
    pub(super) fn key<'t>(&'t mut self, name: &'static str, meaning: &'static str) -> Key<'t, 'd, 'r, 's> {
        Key { table: self, name, meaning }
    }

    /// A table all of whose keys may be left out.
    pub(super) fn table<T>(
        &mut self,
        name: &'static str,
        meaning: &str,
        read: impl FnOnce(&mut Table<'d, '_, 's>) -> T,
    ) -> T {
        let state = match (self.entries(name, &self.path_of(name)), self.state) {
            (Some(entries), _) => State::Written(entries),
            (None, State::Absent) => State::Absent,
            (None, _) => State::Default,
        };
        let (value, schema) = Table::read(self.reading, self.path_of(name), state, read);
        self.declare(name, meaning, false, schema);
        value
    }

    /// A table whose absence means something; `None` where it is absent.
    pub(super) fn optional_table<T>(
        &mut self,
        name: &'static str,
        meaning: &str,
        read: impl FnOnce(&mut Table<'d, '_, 's>) -> T,
    ) -> Option<T> {
        let entries = self.entries(name, &self.path_of(name));
        let (value, schema) = Table::element(self.reading, &self.path_of(name), entries, read);
        self.declare(name, meaning, false, schema);
        entries.is_some().then_some(value)
    }

    /// `[[name]]`: any number of tables of one kind.
    pub(super) fn tables<T>(
        &mut self,
        name: &'static str,
        meaning: &str,
        mut read: impl FnMut(&mut Table<'d, '_, 's>) -> T,
    ) -> Vec<T> {
        let path = self.path_of(name);
        let (_, element) = Table::element(self.reading, &path, None, &mut read);
        self.declare(name, meaning, false, json!({ "type": "array", "items": element }));
        let Some(written) = self.written(name) else { return Vec::new() };
        let Some(elements) = written.get_ref().as_array() else {
            let help = format!("write [[{}]], with double brackets", without_indexes(&path));
            return self
                .reading
                .refuse(written, "there may be several of these tables".into(), Some(help))
                .unwrap_or_default();
        };
        let mut values = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.reading.place(&path, element.span());
            match element.get_ref().as_table() {
                Some(entries) => values.push(Table::element(self.reading, &path, Some(entries), &mut read).0),
                None => self.reading.mismatch(element, "a table").unwrap_or_default(),
            }
        }
        values
    }

    /// `[name.FREE]`: tables of one kind under names the operator chooses.
    pub(super) fn named_tables<T>(
        &mut self,
        name: &'static str,
        meaning: &str,
        mut read: impl FnMut(&str, &mut Table<'d, '_, 's>) -> T,
    ) -> BTreeMap<String, T> {
        let path = self.path_of(name);
        let (_, element) = Table::element(self.reading, &path, None, |table| read("", table));
        self.declare(name, meaning, false, json!({ "type": "object", "additionalProperties": element }));
        let mut values = BTreeMap::new();
        for (key, written) in self.entries(name, &format!("{path}.NAME")).into_iter().flatten() {
            let path = format!("{path}.{}", quoted(key.get_ref()));
            self.reading.place(&path, written.span());
            match written.get_ref().as_table() {
                Some(entries) => {
                    let read = |table: &mut Table<'d, '_, 's>| read(key.get_ref(), table);
                    values
                        .insert(key.get_ref().to_string(), Table::element(self.reading, &path, Some(entries), read).0);
                }
                None => self.reading.mismatch(written, "a table").unwrap_or_default(),
            }
        }
        values
    }

    /// Whether the key is written.
    pub(super) fn has(&self, name: &str) -> bool {
        matches!(self.state, State::Written(entries) if entries.contains_key(name))
    }

    /// The path of this table.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Reports something wrong with the key, at its value.
    pub(super) fn error(&mut self, name: &str, message: impl Into<String>, help: impl Into<String>) {
        self.report(name, Severity::Error, message.into(), help.into());
    }

    /// Reports something doubtful about the key, at its value.
    pub(super) fn warn(&mut self, name: &str, message: impl Into<String>, help: impl Into<String>) {
        self.report(name, Severity::Warning, message.into(), help.into());
    }

    /// Warns of a key that is written and changes nothing.
    pub(super) fn no_effect(&mut self, name: &str, without: &str) {
        if self.has(name) {
            self.warn(name, format!("`{name}` has no effect without {without}"), "");
        }
    }

    /// A table that was asked for must be there; `help` says what belongs in it.
    pub(super) fn demand(&mut self, name: &'static str, help: &str) {
        self.known.iter_mut().filter(|known| known.name == name).for_each(|known| known.required = true);
        if !self.has(name) {
            self.missing(name, help);
        }
    }

    /// This table lacks the key; `help` says what belongs there.
    pub(super) fn missing(&mut self, name: &str, help: &str) {
        self.missing.push((name.into(), help.into()));
    }

    /// Reports something about the key at a path from the top of the file.
    pub(super) fn report_at(&mut self, path: &str, severity: Severity, message: String, help: String) {
        if matches!(self.state, State::Written(_)) {
            let help = Some(help).filter(|help| !help.is_empty()).into_iter().collect();
            self.reading.report(self.reading.places.find(path), severity, message, help);
        }
    }

    fn report(&mut self, name: &str, severity: Severity, message: String, help: String) {
        self.report_at(&self.path_of(name), severity, message, help);
    }

    fn declare(&mut self, name: &'static str, meaning: &str, required: bool, mut schema: Json) {
        schema["description"] = json!(meaning);
        self.known.push(Known { name, required, schema });
    }

    /// The value of the key where it is written; its place is remembered.
    fn written(&mut self, name: &str) -> Option<&'d Written<'d>> {
        let State::Written(entries) = self.state else { return None };
        let written = entries.get(name)?;
        self.reading.place(&self.path_of(name), written.span());
        Some(written)
    }

    /// The keys of the table at the key where it is written; `header` is the path such a table has.
    fn entries(&mut self, name: &str, header: &str) -> Option<&'d DeTable<'d>> {
        let written = self.written(name)?;
        match written.get_ref() {
            DeValue::Table(entries) => Some(entries),
            DeValue::Array(elements) if elements.iter().any(|element| element.get_ref().is_table()) => {
                let help = format!("write {}, with single brackets", title(header));
                self.reading.refuse(written, "double brackets are for tables that are numbered".into(), Some(help))
            }
            _ => self.reading.mismatch(written, "a table"),
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    /// Reports the keys nobody asked for and those that are missing, and describes all there are.
    fn finish(mut self) -> Json {
        if let State::Written(entries) = self.state {
            for (key, _) in entries {
                if self.known.iter().all(|known| known.name != key.get_ref()) {
                    self.unknown(key);
                }
            }
        }
        for (name, help) in std::mem::take(&mut self.missing) {
            let message = format!("{} lacks the key `{name}`", title(&self.path));
            self.report_at(&self.path.clone(), Severity::Error, message, help);
        }
        let required: Vec<_> = self.known.iter().filter(|key| key.required).map(|key| key.name).collect();
        let properties: Map<_, _> = self.known.into_iter().map(|key| (key.name.into(), key.schema)).collect();
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    }

    fn unknown(&mut self, key: &Spanned<Cow<'_, str>>) {
        let mut help = Vec::new();
        if let Some(meant) = nearest(key.get_ref(), self.known.iter().map(|known| known.name)) {
            // It isn't missing, it is misspelt: one finding is enough.
            self.missing.retain(|(name, _)| name != meant);
            help.push(format!("did you mean `{meant}`?"));
        } else if let tables @ [_, ..] = &tables_with(key.get_ref())[..] {
            help.push(format!("`{}` belongs in {}", key.get_ref(), tables.join(" or ")));
        }
        let known: Vec<_> = self.known.iter().map(|known| known.name).collect();
        help.push(format!("allowed here: {}", known.join(", ")));
        let message = format!("unknown key `{}` in {}", key.get_ref().escape_debug(), title(&self.path));
        self.reading.report(key.span(), Severity::Error, message, help);
    }
}

/// A key that is being asked for.
pub(super) struct Key<'t, 'd, 'r, 's> {
    table: &'t mut Table<'d, 'r, 's>,
    name: &'static str,
    meaning: &'static str,
}

impl Key<'_, '_, '_, '_> {
    /// It may be left out; `None` where it is, or is wrong.
    pub(super) fn optional<K: Kind>(self, kind: K) -> Option<K::Value> {
        self.take(false, kind)
    }

    /// It must be there; `None` where it isn't, or is wrong.
    pub(super) fn required<K: Kind>(self, kind: K) -> Option<K::Value> {
        if !self.table.has(self.name) {
            self.table.missing(self.name, self.meaning);
        }
        self.take(true, kind)
    }

    /// It has a default.
    pub(super) fn default<K: Kind>(mut self, kind: K, default: K::Value) -> K::Value {
        let mut schema = kind.schema();
        schema["default"] = kind.show(&default);
        self.table.declare(self.name, self.meaning, false, schema);
        let value = self.read(&kind).unwrap_or(default);
        self.in_force(kind.show(&value));
        value
    }

    fn take<K: Kind>(mut self, required: bool, kind: K) -> Option<K::Value> {
        self.table.declare(self.name, self.meaning, required, kind.schema());
        let value = self.read(&kind);
        self.in_force(value.as_ref().map_or(Json::Null, |value| kind.show(value)));
        value
    }

    fn read<K: Kind>(&mut self, kind: &K) -> Option<K::Value> {
        let written = self.table.written(self.name)?;
        kind.read(&self.table.path_of(self.name), written, self.table.reading)
    }

    fn in_force(self, value: Json) {
        if !matches!(self.table.state, State::Absent) {
            self.table.reading.settings.insert(self.table.path_of(self.name), value);
        }
    }
}
