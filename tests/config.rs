//! Configuration files, right and wrong, and what is said of them.
//!
//! Each file under `fixtures/config/` says on its first line what it is about; beside it stands, as `.expected`, what is
//! printed. `UPDATE_EXPECTED=1 cargo test --test config` writes those anew: read the difference before it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use ldaps_proxy::config::{self, Diagnostics, Loaded, Severity};
use proptest::prelude::*;
use serde_json::{Value, json};

const MINIMAL: &str = include_str!("../config/minimal.toml");
const FULL: &str = include_str!("../config/full.toml");

#[test]
fn wrong_files_are_refused_with_what_stands_beside_them() {
    for file in fixtures("invalid") {
        let found = parse(&file).expect_err("the file is wrong");
        assert!(found.has_errors());
        compare(&file, &found);
    }
}

#[test]
fn right_files_are_taken_with_the_warnings_that_stand_beside_them() {
    for file in fixtures("valid") {
        let loaded = parse(&file).unwrap_or_else(|found| panic!("{}:\n{found}", file.display()));
        compare(&file, &loaded.warnings);
    }
}

#[test]
fn the_smallest_file_works_as_it_stands() {
    let loaded = config::parse(MINIMAL, Path::new("minimal.toml")).expect("the file is right");
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
}

#[test]
fn the_full_file_works_as_it_stands_and_with_every_key_written() {
    let loaded = config::parse(FULL, Path::new("full.toml")).expect("the file is right");
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    if let Err(found) = config::parse(&every_key_written(), Path::new("full.toml")) {
        panic!("{found}");
    }
}

/// What the full file says changes nothing but what it has to say.
#[test]
fn the_full_file_has_the_settings_of_the_smallest() {
    let [full, minimal] =
        [FULL, MINIMAL].map(|text| config::parse(text, Path::new("f.toml")).expect("the file is right"));
    assert_eq!(config::changes(&minimal, &full), ["admin.address: \"127.0.0.1:9636\" -> none"]);
}

#[test]
fn the_full_file_has_every_key_with_its_default_and_its_meaning() {
    let schema = keys_of_schema();
    let written = keys_of_full_file();
    assert_eq!(schema.keys().collect::<BTreeSet<_>>(), written.keys().collect());
    for (key, (value, meaning)) in written {
        let expected = &schema[&key];
        if let Some(default) = expected.get("default") {
            assert_eq!(&value, default, "{key}");
        }
        // The keys of a backend stand in one line, which tells of the list.
        if !key.contains("[]") {
            assert_eq!(expected["description"], json!(meaning), "{key}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_told_like_any_other_mistake() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("f.toml");
    let told = |expected: &str| {
        let found = config::load(&file).expect_err("the file is wrong").to_string();
        assert!(found.starts_with(&format!("{}:{expected}", file.display())), "{found}");
    };
    told("1:1: error: can't read this file: ");
    fs::write(&file, b"[log]\nlevel = \"\xff\"\n").expect("the folder is writable");
    told("2:10: error: not UTF-8\n");
}

#[test]
fn one_file_may_hold_certificate_and_key_but_then_it_must() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("the folder is writable");
    write("f.toml", &MINIMAL.replace("private_key.pem", "certificate.pem"));
    fs::create_dir(folder.path().join("certs")).expect("the folder is writable");
    let load = || config::load(&folder.path().join("f.toml"));

    write("certs/certificate.pem", "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n");
    assert!(load().is_ok());
    write("certs/certificate.pem", "-----BEGIN CERTIFICATE-----\n");
    let found = load().expect_err("there is no key").to_string();
    assert!(found.contains(":12:15: error: the same file as `certificate`"), "{found}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let found = config::parse("\u{feff}[lgo]\n", Path::new("f.toml")).expect_err("the file is wrong");
    assert!(found.to_string().contains("f.toml:1:2: error: unknown key `lgo`"), "{found}");
}

#[test]
fn depth_does_not_break_the_reader() {
    for text in
        ["a=".to_owned() + &"[".repeat(100_000), "a=".to_owned() + &"{a=".repeat(100_000), "a.".repeat(100_000) + "b=1"]
    {
        assert!(config::parse(&text, Path::new("f.toml")).is_err());
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_in_good_order(text in "(?s).{0,200}") {
        in_good_order(&text)?;
    }

    #[test]
    fn toml_of_any_content_is_refused_in_good_order(
        lines in prop::collection::vec("(\\[\\[?(listener|pools|tls|[a-z.\"ü]{1,8})\\]?\\]|(address|pool|backends|[a-z]{1,5}) = (1|\"[^\"\\\\]{0,9}\"|\\[\"é\", 2\\]|\\{ a = 1 \\}))", 0..12)
    ) {
        in_good_order(&lines.join("\n"))?;
    }

    #[test]
    fn a_file_that_was_cut_and_pasted_is_judged_in_good_order(
        (from, to, at) in (0..FULL.len(), 0..FULL.len(), 0..FULL.len()),
        paste in ".{0,12}",
    ) {
        prop_assume!([from, to, at].iter().all(|index| FULL.is_char_boundary(*index)));
        let (from, to) = (from.min(to), from.max(to).min(from.min(to) + 80));
        let text = if at < from {
            [&FULL[..at], &paste, &FULL[at..from], &FULL[to..]].concat()
        } else {
            [&FULL[..from], &paste, &FULL[to..]].concat()
        };
        in_good_order(&text)?;
    }
}

/// Whatever is found stands inside the text, in its order, and is printed as one place, one line and one caret line.
fn in_good_order(text: &str) -> Result<(), TestCaseError> {
    let found = match config::parse(text, Path::new("f.toml")) {
        Ok(Loaded { warnings, .. }) => warnings,
        Err(found) => found,
    };
    let lines: Vec<_> = text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').collect();
    let mut last = (1, 1);
    for found in found.iter() {
        let place = (found.line, found.column);
        prop_assert!(place >= last);
        last = place;
        prop_assert!((1..=lines.len()).contains(&found.line), "{found}");
        prop_assert!((1..=lines[found.line - 1].chars().count() + 1).contains(&found.column), "{found}");
        let severity = if found.severity == Severity::Error { "error" } else { "warning" };
        let shown = found.to_string();
        prop_assert!(shown.starts_with(&format!("f.toml:{}:{}: {severity}: ", found.line, found.column)), "{shown}");
        prop_assert_eq!(shown.lines().count(), 3 + found.help.len(), "{}", shown);
        prop_assert!(shown.lines().nth(2).is_some_and(|line| line.trim_end().ends_with('^')), "{shown}");
    }
    Ok(())
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(kind);
    let entries = fs::read_dir(&folder).expect("the fixtures are there").map(|entry| entry.expect("readable").path());
    let files: Vec<_> = entries.filter(|file| file.extension().is_some_and(|extension| extension == "toml")).collect();
    assert!(!files.is_empty(), "no fixtures in {}", folder.display());
    files
}

fn parse(file: &Path) -> Result<Loaded, Diagnostics> {
    let text = fs::read_to_string(file).expect("a fixture is text");
    config::parse(&text, Path::new(file.file_name().expect("a file has a name")))
}

fn compare(file: &Path, found: &Diagnostics) {
    let beside = file.with_extension("expected");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&beside, found.to_string()).expect("the fixtures are writable");
    }
    let expected = fs::read_to_string(&beside).unwrap_or_else(|error| panic!("{}: {error}", beside.display()));
    assert_eq!(found.to_string(), expected, "{}", file.display());
}

/// The full file with the keys that are commented out: a key follows `#` at once, a comment after a space.
fn every_key_written() -> String {
    let lines = FULL.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n").replace("${CREDENTIALS_DIRECTORY}/", "")
}

/// The value and the meaning of each key of the full file, by its path: `pools.NAME.health.rise`.
fn keys_of_full_file() -> BTreeMap<String, (Value, String)> {
    let mut keys = BTreeMap::new();
    let mut table = String::new();
    for line in every_key_written().lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']']).replace("simple-ad", "NAME");
            continue;
        }
        let name = line.split_once(" = ").map(|(name, _)| name).expect("a key and its value");
        let meaning = line.rsplit_once("  # ").map(|(_, meaning)| meaning).expect("a comment says what the key means");
        let value: BTreeMap<String, Value> = toml::from_str(line).expect("a line of TOML");
        for element in value[name].as_array().into_iter().flatten().filter_map(Value::as_object) {
            keys.extend(
                element.iter().map(|(key, value)| (format!("{table}.{name}[].{key}"), (value.clone(), meaning.into()))),
            );
        }
        let earlier = keys.insert(format!("{table}.{name}"), (value[name].clone(), meaning.into()));
        assert_eq!(earlier, None, "{table}.{name} is written twice");
    }
    keys
}

/// The schema of each key that isn't a table, by the same path.
fn keys_of_schema() -> BTreeMap<String, Value> {
    fn walk(path: String, schema: &Value, keys: &mut BTreeMap<String, Value>) {
        let named = format!("{path}.NAME");
        let tables = [(&path, schema), (&path, &schema["items"]), (&named, &schema["additionalProperties"])];
        let (path, table) = match tables.into_iter().find(|(_, table)| table["properties"].is_object()) {
            Some((path, table)) => (path.clone(), table),
            None => {
                keys.insert(path.clone(), schema.clone());
                (format!("{path}[]"), &schema["items"]["anyOf"][1])
            }
        };
        for (name, property) in table["properties"].as_object().into_iter().flatten() {
            walk(if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, property, keys);
        }
    }
    let mut keys = BTreeMap::new();
    walk(String::new(), &config::json_schema(), &mut keys);
    assert!(keys.len() > 100);
    keys
}
