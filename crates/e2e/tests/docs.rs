//! The documents against the programs and files that they are about.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rollcall_e2e::{binaries, configuration, source};

fn documents() -> Vec<PathBuf> {
    let mut documents = source::files("docs", &["md"]);
    documents.push(PathBuf::from("README.md"));
    documents
}

/// With UPDATE_DOCS=1 the document is written anew.
#[test]
fn the_document_of_all_keys_is_that_of_the_files() {
    let wanted = configuration::document();
    let path = source::root().join(configuration::DOCUMENT);
    if env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, &wanted).expect("the document can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let same = found
        .lines()
        .zip(wanted.lines())
        .take_while(|(one, other)| one == other)
        .count();
    assert!(
        found == wanted,
        "{} differs from the files under config/ from line {} on; run: UPDATE_DOCS=1 cargo test -p rollcall-e2e --test docs",
        configuration::DOCUMENT,
        same + 1
    );
}

/// Every command line of ours in a document is one that the program takes.
#[test]
fn commands_in_documents_exist() {
    let mut count = 0;
    for document in documents() {
        for line in commands(&source::read(&document)) {
            for words in ours(&line) {
                let (program, arguments) = words.split_first().expect("a program");
                let output = Command::new(binaries::path(program))
                    .args(arguments)
                    // Ends the parser once everything before it was understood.
                    .arg("--help")
                    .output()
                    .expect("the program can be started");
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{}: {line}\n{stderr}",
                    document.display()
                );
                count += 1;
            }
        }
    }
    assert!(count >= 5, "only {count} commands found");
}

/// The lines of ```sh blocks, without comments; continued ones as one.
fn commands(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut is_inside = false;
    let mut current = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_inside = !is_inside && line.trim() == "```sh";
            continue;
        }
        if !is_inside || line.trim_start().starts_with('#') {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => current.push_str(part),
            None => {
                current.push_str(line);
                lines.push(std::mem::take(&mut current));
            }
        }
    }
    lines
}

/// The words of each of our programs' calls in a line of shell.
fn ours(line: &str) -> Vec<Vec<String>> {
    let programs = [
        binaries::MASTER,
        binaries::SLAVE,
        binaries::CLI,
        binaries::BENCH,
    ];
    let mut calls = Vec::new();
    for mut words in calls_of(line) {
        if words.first().is_some_and(|word| word == "sudo") {
            words.remove(0);
        }
        let Some(first) = words.first_mut() else {
            continue;
        };
        let name = first.rsplit('/').next().unwrap_or_default();
        if programs.contains(&name) {
            *first = name.to_owned();
            calls.push(words);
        }
    }
    calls
}

/// Splits at blanks, pipes, `&` and `;`, with quotes as a shell has them; what follows `#` or a
/// redirection is left out.
fn calls_of(line: &str) -> Vec<Vec<String>> {
    let mut calls = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (_, Some(end)) if character == end => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(character),
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            ('>' | '<', None) => {
                word = None;
                let rest: String = characters.by_ref().collect();
                let rest = rest.trim_start_matches(['>', '&', ' ']);
                let next = rest.find([' ', '|', ';', '&']).map_or("", |at| &rest[at..]);
                calls.extend(calls_of(next));
                break;
            }
            ('|' | ';' | '&', None) => {
                calls.last_mut().expect("one call").extend(word.take());
                calls.push(Vec::new());
            }
            (' ' | '\t', None) => calls.last_mut().expect("one call").extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    calls.last_mut().expect("one call").extend(word);
    calls.retain(|words| !words.is_empty());
    calls
}

#[test]
fn lines_of_shell_are_taken_apart() {
    let calls = ours(
        "cargo build && target/release/rollcall up --check 'a=b | c' >x; sudo rollcall-master # no",
    );
    assert_eq!(
        calls,
        [
            vec!["rollcall", "up", "--check", "a=b | c"],
            vec!["rollcall-master"]
        ]
    );
    assert!(ours("journalctl -u rollcall-master | jq 'rollcall'").is_empty());
}

/// Links within the repository lead somewhere.
#[test]
fn links_lead_somewhere() {
    let mut broken = BTreeSet::new();
    for document in documents() {
        let text = source::read(&document);
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            // Web addresses, places in the same document, and what only looks like a link.
            if link.is_empty() || link.contains("://") || link.contains(['[', '{']) {
                continue;
            }
            let folder = source::root().join(document.parent().expect("a folder"));
            if !folder.join(link).exists() {
                broken.insert(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
