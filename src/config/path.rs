//! The path of a key, `listener[0].policy.read_only`, and the header a table has in the file, `[listener.policy]`.

use serde_json::Value as Json;

/// How a table is written as a header: `[[listener]]`, `[listener.policy]`.
pub(super) fn title(path: &str) -> String {
    if path.is_empty() {
        return "the file's top level".into();
    }
    let header = without_indexes(path);
    if path.ends_with(']') { format!("[[{header}]]") } else { format!("[{header}]") }
}

/// The path without its indexes.
pub(super) fn without_indexes(path: &str) -> String {
    path.split('[').map(|part| part.split_once(']').map_or(part, |(_, after)| after)).collect()
}

/// A free key as it stands in a path and in a header.
pub(super) fn quoted(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !key.is_empty() && key.bytes().all(bare) { key.into() } else { format!("{key:?}") }
}

/// The headers of the tables that may have this key.
pub(super) fn tables_with(key: &str) -> Vec<String> {
    fn search(key: &str, path: String, schema: &Json, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if name == key {
                found.push(title(&path));
            }
            let path = if path.is_empty() { name.clone() } else { format!("{}.{name}", path.trim_end_matches("[0]")) };
            search(key, path.clone(), property, found);
            search(key, format!("{path}[0]"), &property["items"], found);
            search(key, format!("{path}.NAME"), &property["additionalProperties"], found);
        }
    }
    let mut found = Vec::new();
    search(key, String::new(), &super::json_schema(), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_written_as_in_the_file() {
        for (path, header) in [
            ("", "the file's top level"),
            ("limits", "[limits]"),
            ("listener[0]", "[[listener]]"),
            ("listener[12].policy", "[listener.policy]"),
            ("listener[0].tls.additional[3]", "[[listener.tls.additional]]"),
        ] {
            assert_eq!(title(path), header);
        }
        assert_eq!(quoted("simple-ad"), "simple-ad");
        assert_eq!(quoted("a.b"), "\"a.b\"");
    }

    #[test]
    fn a_key_is_found_in_every_table_that_has_it() {
        assert_eq!(tables_with("rise"), ["[pools.NAME.health.deep]", "[pools.NAME.health]"]);
        assert_eq!(tables_with("trusted_networks"), ["[[listener]]"]);
        assert_eq!(tables_with("nothing"), <[&str; 0]>::default());
    }
}
