//! Rules of the workspace that no compiler checks.

use std::fs;

use rollcall_e2e::source;

/// What may lie at the top, besides what git ignores.
const TOP: [&str; 14] = [
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".git",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "config",
    "crates",
    "docs",
    "systemd",
];
const LINES_MAX: usize = 500;

#[test]
fn nothing_else_lies_at_the_top() {
    let ignored = source::read(".gitignore");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let entries = fs::read_dir(source::root()).expect("the root of the workspace");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let foreign: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !TOP.contains(&&**name) && !ignored.contains(&&**name))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[test]
fn files_are_short() {
    let long: Vec<_> = source::files("crates", &["rs", "proto", "toml"])
        .into_iter()
        .map(|path| (source::read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "over {LINES_MAX} lines: {long:#?}");
}

#[test]
fn there_is_no_unsafe_code() {
    let root = source::read("Cargo.toml");
    assert!(root.contains("unsafe_code = \"forbid\""), "the lint is on");
    for path in source::files("crates", &["toml"]) {
        let text = source::read(&path);
        if path.ends_with("Cargo.toml") {
            assert!(
                text.contains("[lints]\nworkspace = true"),
                "{}",
                path.display()
            );
        }
    }
    // A crate's own attribute could not switch it off; a look costs nothing.
    let keywords =
        ["{", "fn ", "impl ", "trait ", "extern "].map(|next| format!("{} {next}", "unsafe"));
    for path in source::files("crates", &["rs"]) {
        let text = source::program_text(&path);
        let found = keywords.iter().find(|keyword| text.contains(&***keyword));
        assert!(found.is_none(), "{found:?} in {}", path.display());
    }
}

#[test]
fn nothing_is_left_to_do() {
    let words =
        ["TO", "FIX"].map(|word| format!("{word}{}", if word == "TO" { "DO" } else { "ME" }));
    for folder in ["crates", "config", "docs", "systemd"] {
        for path in source::files(folder, &["rs", "proto", "toml", "md", "service"]) {
            if path.ends_with("rules.rs") {
                continue;
            }
            let text = source::read(&path);
            let found = words.iter().find(|word| text.contains(&***word));
            assert!(found.is_none(), "{found:?} in {}", path.display());
        }
    }
}
