//! The repository's own files.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the workspace.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

/// The text of a file, by its path from the root of the workspace.
///
/// # Panics
/// If it can't be read.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => panic!("can't read {}: {error}", path.display()),
    }
}

/// All files below a folder with one of these endings, sorted; paths are from the root of the
/// workspace. Build products are left out.
///
/// # Panics
/// If a folder can't be read.
pub fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => panic!("can't read {}: {error}", folder.display()),
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let ending = path.extension().and_then(|ending| ending.to_str());
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with(".git") {
                    folders.push(path);
                }
            } else if ending.is_some_and(|ending| endings.contains(&ending)) {
                found.push(path.strip_prefix(&root).unwrap_or(&path).to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The Rust files of all crates that are part of the programs: no tests, no build scripts.
pub fn program_files() -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        let is_test = path.components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs")
        });
        path.components().any(|part| part.as_os_str() == "src")
            && !path.starts_with("crates/e2e")
            && !is_test
    };
    let mut files = files("crates", &["rs"]);
    files.retain(is_program);
    files
}

/// A Rust file without the tests at its end and without comments that take a whole line.
pub fn program_text(path: &Path) -> String {
    let text = read(path);
    let program = match text.split_once("#[cfg(test)]\nmod tests {") {
        Some((program, _)) => program,
        None => &text,
    };
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let lines: Vec<_> = program.lines().filter(is_code).collect();
    lines.join("\n")
}
