//! What the documents say, the code does: their configurations are parsed, their links lead somewhere, and the table of
//! dependencies is Cargo.toml's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ldaps_proxy::config;

/// What a block that shows one table needs around it to be a whole configuration, by the key's table.
const LISTENER: &str =
    "[[listener]]\naddress = \"127.0.0.1:636\"\ntrusted_networks = [\"127.0.0.0/8\"]\npool = \"simple-ad\"\n";
const TLS: &str = "[tls]\ncertificate = \"certificate.pem\"\nprivate_key = \"private_key.pem\"\n";
const POOL: &str = "[pools.simple-ad]\nbackends = [\"127.0.0.1:389\"]\n";

#[test]
fn every_toml_block_is_a_configuration() {
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        for block in toml_blocks(&text) {
            seen += 1;
            if let Err(found) = config::parse(&completed(&block), Path::new("/etc/ldaps-proxy/ldaps-proxy.toml")) {
                panic!("{}:\n{block}\n{found}", document.display());
            }
        }
    }
    assert!(seen >= 5, "only {seen} blocks were found");
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        let folder = document.parent().expect("a document is in a folder");
        for target in links(&text).filter(|target| !target.contains("://")) {
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { document.clone() } else { folder.join(path) };
            assert!(file.exists(), "{} links to {target}", document.display());
            if !anchor.is_empty() {
                let there = fs::read_to_string(&file).expect("a document with headings");
                assert!(anchors(&there).contains(anchor), "{} links to {target}", document.display());
            }
        }
    }
    assert!(seen >= 20, "only {seen} links were found");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("a manifest");
    let table = read("ARCHITECTURE.md");
    let table = table.split("## Dependencies").nth(1).expect("the section");
    let said: BTreeSet<_> = table
        .lines()
        .filter_map(|row| row.strip_prefix("| "))
        .filter_map(|row| row.split(" |").next())
        .flat_map(|names| names.split(", "))
        .filter(|name| *name != "crate")
        .map(str::to_owned)
        .collect();
    let unix = &manifest["target"]["cfg(unix)"]["dependencies"];
    let used: BTreeSet<_> = [&manifest["dependencies"], unix]
        .iter()
        .flat_map(|table| table.as_table().expect("a table").keys().cloned())
        .collect();
    assert_eq!(said, used);
}

fn completed(block: &str) -> String {
    let mut whole = String::new();
    for (table, text) in [("[[listener]]", LISTENER), ("[tls]", TLS), ("[pools.simple-ad]", POOL)] {
        if !block.lines().any(|line| line.starts_with(table)) {
            whole.push_str(text);
        }
    }
    whole + block
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let markdown = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).expect("a folder");
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.extension().is_some_and(|x| x == "md"))
    };
    let found: Vec<_> = ["", "docs", "certs", "tests", "bench"].into_iter().flat_map(markdown).collect();
    assert!(found.len() > 10, "only {} documents were found", found.len());
    found
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("it is in the repository")
}

/// The fenced blocks marked `toml`, without the indentation of their fence.
fn toml_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(fence) = lines.next() {
        if fence.trim() == "```toml" {
            let indent = fence.len() - fence.trim_start().len();
            let inside = lines.by_ref().take_while(|line| line.trim() != "```");
            blocks.push(inside.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect());
        }
    }
    blocks
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains(char::is_whitespace))
}

/// What headings are called in links, as GitHub does it.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .collect::<String>();
            kept.replace(' ', "-")
        })
        .collect()
}
