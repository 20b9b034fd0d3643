//! The data path never imports what acts on it.

use std::fs;
use std::path::{Path, PathBuf};

const DATA_PATH: [&str; 9] =
    ["balance", "ldap", "listener", "policy", "pool", "proxy_protocol.rs", "session", "throttle", "upstream"];
const CONTROL_SIDE: [&str; 5] = ["admin", "app", "discovery", "health", "lifecycle"];

#[test]
fn the_data_path_does_not_know_the_control_side() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: Vec<_> = DATA_PATH.iter().flat_map(|room| rust_files(&source.join(room))).collect();
    assert!(files.len() > 30, "only {} files were looked at", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        for room in CONTROL_SIDE {
            assert!(!text.contains(&format!("crate::{room}")), "{} imports {room}", file.display());
        }
    }
}

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    paths
        .flat_map(|path| if path.extension().is_some_and(|x| x != "rs") { Vec::new() } else { rust_files(&path) })
        .collect()
}
