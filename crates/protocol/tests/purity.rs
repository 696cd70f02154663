//! The protocol has no I/O and no clock. `#![no_std]` makes the compiler see to it in this crate's
//! own code; here it is held that nothing brings them in through the back door.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every normal dependency, direct or not, with the features that it may have. None of these
/// features gives a crate access to the standard library.
const ALLOWED: &[(&str, &[&str])] = &[
    ("rollcall-protocol", &[]),
    ("bytes", &[]),
    ("jiff", &["alloc"]),
    ("jiff-core", &["alloc"]),
    ("portable-atomic", &["require-cas"]),
    ("portable-atomic-util", &["alloc"]),
    ("prost", &["derive"]),
    ("serde", &["alloc", "derive", "serde_derive"]),
    ("serde_core", &["alloc", "result"]),
    ("thiserror", &[]),
];

#[test]
fn no_dependency_brings_the_standard_library() {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in dependencies().lines() {
        let mut words = line.split('|');
        let name = words.next().expect("cargo tree prints names");
        let name = name.split(' ').next().expect("a name").to_owned();
        let features = words.next().expect("cargo tree prints features");
        let features = features.trim_end_matches(" (*)").split(',');
        let features = features.filter(|feature| !feature.is_empty());
        found
            .entry(name)
            .or_default()
            .extend(features.map(str::to_owned));
    }
    assert!(found.contains_key("prost"), "cargo tree printed {found:?}");
    for (name, features) in found {
        let allowed = ALLOWED.iter().find(|(allowed, _)| *allowed == name);
        let Some((_, allowed)) = allowed else {
            panic!("{name} is a new dependency: if it is no_std, list it here");
        };
        for feature in features {
            assert!(
                allowed.contains(&feature.as_str()),
                "{name} has the feature \"{feature}\": if it is no_std, list it here"
            );
        }
    }
}

/// What is linked into this crate: neither its tests and build script nor procedural macros, which
/// run on the host, and with the features that it asks for itself.
fn dependencies() -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--package", "rollcall-protocol"])
        .args(["--edges", "normal,no-proc-macro", "--target", "all"])
        .args(["--prefix", "none", "--format", "{p}|{f}"])
        .args(["--offline", "--locked"])
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree failed: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_crate_is_no_std_and_stays_so() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let root = fs::read_to_string(source.join("lib.rs")).expect("lib.rs");
    let lines: Vec<&str> = root.lines().map(str::trim).collect();
    assert!(lines.contains(&"#![no_std]"), "lib.rs must be no_std");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let links = links_to_std(&text);
        assert!(links.is_empty(), "{}: {links:?}", file.display());
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Lines that would give code access to std outside tests, with their numbers.
fn links_to_std(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut before = "";
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.contains("extern crate std") && before != "#[cfg(test)]" {
            found.push((number + 1, line.to_owned()));
        }
        before = line;
    }
    found
}

#[test]
fn a_link_to_std_is_seen() {
    assert!(links_to_std("#[cfg(test)]\nextern crate std;").is_empty());
    assert_eq!(
        links_to_std("extern crate alloc;\nextern crate std;").len(),
        1
    );
    assert_eq!(
        links_to_std("#[cfg(feature = \"x\")]\n  pub extern crate std as s;").len(),
        1
    );
}
