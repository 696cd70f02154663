//! The shipped configuration files and a set of bad ones, with the real programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rollcall_e2e::{binaries, source};
use rollcall_os::units;
use toml::{Table, Value};

const DAEMONS: [(&str, &str); 2] = [
    (binaries::MASTER, "config/master.toml"),
    (binaries::SLAVE, "config/slave.toml"),
];
const EXIT_CONFIG: i32 = 78;

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binaries::path(program));
    command.current_dir(folder).args(arguments);
    command.output().expect("the program can be started")
}

fn check(program: &str, folder: &Path, file: &str) -> String {
    let output = run(program, folder, &["--config", file, "--check"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), &*stderr),
        (Some(0), ""),
        "{program} --check of {file}"
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// `--check` of a shipped file prints the same values, and its output is a configuration that comes
/// to the same again.
#[test]
fn shipped_files_load_and_come_out_as_they_are() {
    for (program, file) in DAEMONS {
        let printed = check(program, &source::root(), file);
        let shipped = flat(&source::read(file).parse().expect("TOML"));
        let mut resolved = flat(&printed.parse().expect("TOML"));
        if shipped
            .get("name")
            .is_some_and(|name| name.as_str() == Some(""))
        {
            let name = resolved
                .insert("name".to_owned(), "".into())
                .expect("the host's name");
            assert_ne!(name.as_str(), Some(""), "an empty name comes to the host's");
        }
        let same = |key: &String| match (shipped.get(key), resolved.get(key)) {
            (Some(one), Some(other)) => meaning(one) == meaning(other),
            // An empty list of tables is not printed.
            (Some(Value::Array(list)), None) => list.is_empty(),
            _ => false,
        };
        let keys = shipped.keys().chain(resolved.keys());
        let different: Vec<_> = keys.filter(|key| !same(key)).collect();
        assert!(
            different.is_empty(),
            "{file} and --check differ in {different:?}:\n{printed}"
        );

        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("again.toml"), &printed).expect("a file");
        assert_eq!(check(program, folder.path(), "again.toml"), printed);
        // Without any key it is the defaults, which are the shipped file.
        fs::write(folder.path().join("empty.toml"), "").expect("a file");
        assert_eq!(check(program, folder.path(), "empty.toml"), printed);
    }
}

/// Values by their dotted keys.
fn flat(table: &Table) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                let below = flat(inner).into_iter();
                values.extend(below.map(|(below, value)| (format!("{key}.{below}"), value)));
            }
            value => {
                values.insert(key.clone(), value.clone());
            }
        }
    }
    values
}

/// The same duration and the same number can be written in several ways.
fn meaning(value: &Value) -> String {
    match value {
        Value::String(text) => match text.parse::<units::Duration>() {
            Ok(duration) => format!("{:?}", duration.get()),
            Err(_) => text.clone(),
        },
        Value::Float(number) => number.to_string(),
        value => value.to_string(),
    }
}

/// Each file in `bad-config` is refused with exactly the words beside it.
#[test]
fn bad_files_are_refused_with_all_their_faults() {
    let folder = source::root().join("crates/e2e/tests/bad-config");
    let mut count = 0;
    for path in source::files("crates/e2e/tests/bad-config", &["toml"]) {
        let file = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        let program = match file.split_once('-') {
            Some(("master", _)) => binaries::MASTER,
            Some(("slave", _)) => binaries::SLAVE,
            _ => panic!("{file}: begins neither with master- nor with slave-"),
        };
        let expected = source::read(path.with_extension("expected"));
        for mode in [&["--config", file, "--check"][..], &["--config", file]] {
            let output = run(program, &folder, mode);
            assert_eq!(String::from_utf8_lossy(&output.stderr), expected, "{file}");
            assert_eq!(output.status.code(), Some(EXIT_CONFIG), "{file}");
            assert!(output.stdout.is_empty(), "{file}: it has gone on to log");
        }
        count += 1;
    }
    assert!(count >= 8, "only {count} files found");
}

#[test]
fn a_missing_file_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    for (program, _) in DAEMONS {
        let output = run(program, folder.path(), &["--config", "absent.toml"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_CONFIG), "{stderr}");
        assert!(stderr.contains("absent.toml: No such file"), "{stderr}");
        assert!(
            stderr.contains("give --config an existing file"),
            "{stderr}"
        );
    }
}

#[test]
fn every_program_tells_its_version_and_refuses_unknown_options() {
    for program in [
        binaries::MASTER,
        binaries::SLAVE,
        binaries::CLI,
        binaries::BENCH,
    ] {
        let output = run(program, &source::root(), &["--version"]);
        let expected = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        let output = run(program, &source::root(), &["--no-such-option"]);
        assert_eq!(output.status.code(), Some(2), "{program}");
    }
}
