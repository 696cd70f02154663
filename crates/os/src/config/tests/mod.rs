mod bad_files;

use std::collections::BTreeMap;
use std::path::PathBuf;

use garde::Validate;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Faults, Reported, choose_file, load, load_with, to_toml, within};
use crate::exit::{Exit, ExitError};
use crate::units::{Bytes, Duration};

const DEFAULTS: &str = r#"
name = ""
interval = "10s"
check = []

[labels]

[connection]
masters = ["127.0.0.1:7412"]
mode = "pooled"
port = 7412

[connection.retry]
min = "250ms"
factor = 2.0

[spool]
bytes_max = "64 MiB"
sync = true
"#;

#[derive(Debug, PartialEq, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[garde(skip)]
    name: String,
    #[garde(custom(within(Duration::from_secs(1), Duration::from_secs(3600))))]
    interval: Duration,
    #[garde(skip)]
    labels: BTreeMap<String, String>,
    #[garde(dive)]
    connection: Connection,
    #[garde(dive)]
    spool: Spool,
    #[garde(dive)]
    check: Vec<Check>,
}

#[derive(Debug, PartialEq, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct Connection {
    #[garde(length(min = 1))]
    masters: Vec<String>,
    #[garde(skip)]
    mode: Mode,
    #[garde(range(min = 1))]
    port: u16,
    #[garde(skip)]
    source_address: Option<String>,
    #[garde(dive)]
    retry: Retry,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Pooled,
    PerMessage,
}

#[derive(Debug, PartialEq, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct Retry {
    #[garde(range(min = Duration::from_millis(1)))]
    min: Duration,
    #[garde(range(min = 1.0, max = 10.0))]
    factor: f64,
}

#[derive(Debug, PartialEq, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct Spool {
    #[garde(range(max = Bytes::new(1 << 40)))]
    bytes_max: Bytes,
    #[garde(skip)]
    sync: bool,
}

#[derive(Debug, PartialEq, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct Check {
    #[garde(skip)]
    name: String,
    #[garde(length(min = 1))]
    command: Vec<String>,
    #[garde(range(min = Duration::from_secs(1)))]
    interval: Option<Duration>,
    #[garde(skip)]
    mode: Option<Mode>,
}

struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: impl AsRef<[u8]>) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slave.toml");
    std::fs::write(&path, text).unwrap();
    File {
        _folder: folder,
        path,
    }
}

/// What the error tells, without its heading and the temporary folder's name.
fn told(file: &File, error: &ConfigError) -> Vec<String> {
    let origin = format!("{}", file.path.display());
    error
        .faults()
        .iter()
        .map(|fault| fault.to_string().replace(&origin, "slave.toml"))
        .collect()
}

#[track_caller]
fn assert_faults(text: &str, expected: &[&str]) {
    let file = file(text);
    let error = load::<Raw>(DEFAULTS, Some(&file.path)).expect_err("the file has faults");
    assert_eq!(told(&file, &error), expected, "{text}");
}

fn defaults() -> Raw {
    load(DEFAULTS, None).unwrap()
}

#[test]
fn without_a_file_the_document_is_the_configuration() {
    let raw = defaults();
    assert_eq!(raw.interval, Duration::from_secs(10));
    assert_eq!(raw.connection.masters, ["127.0.0.1:7412"]);
    assert_eq!(raw.connection.retry.min, Duration::from_millis(250));
    assert_eq!(raw.spool.bytes_max, Bytes::new(64 << 20));
    assert_eq!(raw.check, []);
}

#[test]
fn the_file_is_laid_over_key_by_key_and_arrays_are_replaced() {
    let file = file(
        r#"
interval = "1m 30s"
connection.masters = ["a:1", "b:2"]
[connection.retry]
factor = 3.0
[labels]
"site.row[3]" = "west"
[[check]]
name = "disk"
command = ["check_disk", "-w", "10%"]
[[check]]
name = "load"
command = ["check_load"]
interval = "5m"
"#,
    );
    let raw: Raw = load(DEFAULTS, Some(&file.path)).unwrap();
    assert_eq!(raw.interval, Duration::from_secs(90));
    assert_eq!(raw.connection.masters, ["a:1", "b:2"]);
    assert_eq!(raw.connection.mode, Mode::Pooled);
    assert_eq!(raw.connection.retry.min, Duration::from_millis(250));
    assert_eq!(raw.connection.retry.factor, 3.0);
    assert_eq!(raw.labels["site.row[3]"], "west");
    assert_eq!(raw.check.len(), 2);
    assert_eq!(raw.check[1].interval, Some(Duration::from_secs(300)));
    assert_eq!(raw.spool, defaults().spool);
}

#[test]
fn faults_of_all_kinds_come_in_the_order_of_the_file() {
    let file = file(
        r#"intervall = "1s"
interval = "2h"

[connection]
mode = "pool"
port = true

[[check]]
name = "a"
command = ["a"]

[[check]]
name = "b"

[[check]]
name = "a"
command = ["c"]
"#,
    );
    let error = load_with::<Raw, ()>(DEFAULTS, Some(&file.path), duplicate_names).unwrap_err();
    assert_eq!(
        told(&file, &error),
        [
            r#"slave.toml:1:1: intervall: unknown key "intervall"; did you mean "interval"?"#,
            "slave.toml:2:12: interval: out of range: 2h is not within 1s to 1h",
            r#"slave.toml:5:8: connection.mode: unknown value "pool"; did you mean "pooled"?"#,
            "slave.toml:6:8: connection.port: wrong type: found true, expected a whole number from 0 to 65535",
            r#"slave.toml:12:1: check[1]: missing key "command""#,
            r#"slave.toml:16:8: check[2].name: the name "a" is taken by an earlier check"#,
        ]
    );
    let text = error.to_string();
    assert!(
        text.starts_with("the configuration has 6 faults:\n/"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 7);
    assert_eq!(ExitError::from(error).exit, Exit::Config);
}

fn duplicate_names(raw: Raw, faults: &mut Faults<'_>) -> Result<(), Reported> {
    let mut reported = None;
    for (index, check) in raw.check.iter().enumerate() {
        if raw.check[..index]
            .iter()
            .any(|earlier| earlier.name == check.name)
        {
            reported = Some(faults.add(
                &format!("check[{index}].name"),
                format!("the name {:?} is taken by an earlier check", check.name),
            ));
        }
    }
    reported.map_or(Ok(()), Err)
}

#[test]
fn the_resolving_stage_places_its_faults() {
    let file = file("[labels]\n\"site.row[3]\" = \"\"\nsite = \"\"\n[connection]\nport = 1\n");
    let error = load_with::<Raw, ()>(DEFAULTS, Some(&file.path), |_, faults| {
        faults.add("name", "the host's name is no valid name");
        faults.add("connection.mode", "not with this port");
        Err(faults.add("labels.site.row[3]", "empty"))
    })
    .unwrap_err();
    assert_eq!(
        told(&file, &error),
        [
            r#"slave.toml:2:17: labels."site.row[3]": empty"#,
            // The file does not set the mode: the table around it is the nearest place.
            "slave.toml:4:1: connection.mode: not with this port",
            "slave.toml: name: the host's name is no valid name",
        ]
    );
    let error = load_with::<Raw, ()>(DEFAULTS, None, |_, faults| Err(faults.add("name", "bad")))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the configuration has a fault:\nbuilt-in defaults: name: bad"
    );
}

#[test]
fn a_fault_told_by_the_resolving_stage_is_never_swallowed() {
    let result = load_with::<Raw, Raw>(DEFAULTS, None, |raw, faults| {
        faults.add("name", "bad");
        Ok(raw)
    });
    assert_eq!(result.unwrap_err().faults().len(), 1);
}

#[test]
fn columns_are_counted_in_characters() {
    assert_faults(
        "labels = { \"größe\" = 1 }\n",
        &["slave.toml:1:22: labels.\"größe\": wrong type: found the number 1, expected a string"],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    let error = load::<Raw>(DEFAULTS, Some(&path)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read the configuration file {}: No such file or directory (os error 2); \
             give --config an existing file, or leave it out to run on the defaults",
            path.display()
        )
    );
    assert_eq!(ExitError::from(error).exit, Exit::Config);
    let error = load::<Raw>(DEFAULTS, Some(folder.path())).unwrap_err();
    assert!(error.to_string().ends_with("not a folder"), "{error}");
}

#[test]
fn only_a_usual_file_that_is_not_there_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let [there, missing] = ["there.toml", "missing.toml"].map(|name| folder.path().join(name));
    std::fs::write(&there, "").unwrap();
    assert_eq!(choose_file(None, &there), Some(there.as_path()));
    assert_eq!(choose_file(None, &missing), None);
    assert_eq!(choose_file(Some(&missing), &there), Some(missing.as_path()));
    // Like a folder that may not be entered, which root would enter.
    let behind_a_file = there.join("slave.toml");
    assert_eq!(
        choose_file(None, &behind_a_file),
        Some(behind_a_file.as_path())
    );
}

#[test]
fn a_file_that_is_not_utf8_says_where() {
    let file = file(b"name = \"a\"\n# caf\xe9\n");
    let error = load::<Raw>(DEFAULTS, Some(&file.path)).unwrap_err();
    assert_eq!(
        told(&file, &error),
        ["slave.toml:2:6: the file is not UTF-8 from here on: save it as UTF-8"]
    );
}

#[test]
fn defaults_that_do_not_fit_the_program_are_a_bug() {
    for broken in [
        DEFAULTS.replace("port = 7412", "prot = 7412"),
        DEFAULTS.replace("port = 7412", ""),
        DEFAULTS.replace("port = 7412", "port ="),
    ] {
        let file = file("interval = \"5s\"\n");
        let error = load::<Raw>(&broken, Some(&file.path)).unwrap_err();
        assert!(matches!(error, ConfigError::Defaults(_)), "{error}");
        assert_eq!(ExitError::from(error).exit, Exit::Internal);
    }
}

#[test]
fn a_file_of_nothing_but_faults_ends() {
    let lines: String = (0..500)
        .map(|number| format!("key{number} = 1\n"))
        .collect();
    for text in [lines, "= ]\n".repeat(10_000)] {
        let file = file(text);
        let mut resolved = false;
        let error = load_with::<Raw, ()>(DEFAULTS, Some(&file.path), |_, _| {
            resolved = true;
            Ok(())
        })
        .unwrap_err();
        assert!(!resolved, "the reading stops early");
        assert_eq!(error.faults().len(), 100);
        assert!(error.faults().is_sorted_by_key(|fault| fault.position));
    }
}

#[test]
fn a_printed_configuration_reads_back_as_itself() {
    let file = file("interval = \"90m\"\n[[check]]\nname = \"a\"\ncommand = [\"a\"]\n");
    let error = load::<Raw>(DEFAULTS, Some(&file.path)).unwrap_err();
    assert_eq!(error.faults().len(), 1, "90m is out of range: {error}");
    std::fs::write(
        &file.path,
        "interval = \"45m\"\n[spool]\nbytes_max = 12345\n[[check]]\nname = \"a\"\ncommand = [\"a\"]\n",
    )
    .unwrap();
    let raw: Raw = load(DEFAULTS, Some(&file.path)).unwrap();
    let printed = to_toml(&raw).unwrap();
    let again = load::<Raw>(&printed, None).unwrap();
    assert_eq!(again, raw, "{printed}");
}

/// A file with one of everything.
const RICH: &str = r#"name = "web-1"
interval = "1m 30s"
labels = { site = "west", "a.b" = "c" }

[connection]
masters = ["a:1", "b:2"]
retry.factor = 2.5

[[check]]
name = "disk"
command = ["check_disk", "-w", "10%"]
mode = "per-message"

[[check]]
name = "load"
command = ["check_load"]
interval = "5m"
"#;

proptest::proptest! {
    /// Whatever a slip of the fingers makes of a file, it is read or its faults are told.
    #[test]
    fn a_damaged_file_neither_hangs_nor_panics(
        slips in proptest::collection::vec(
            (0..RICH.len(), 0..4_usize, "[a-z0-9=\\[\\]{}\"'., \\n\u{e9}]{0,3}"), 1..6),
    ) {
        let mut text = RICH.to_owned();
        for (start, length, inserted) in slips {
            let start = start.min(text.len());
            let end = (start + length).min(text.len());
            if text.is_char_boundary(start) && text.is_char_boundary(end) {
                text.replace_range(start..end, &inserted);
            }
        }
        let file = file(&text);
        match load::<Raw>(DEFAULTS, Some(&file.path)) {
            Ok(_) => {}
            Err(ConfigError::Faulty(faults)) => {
                assert!(!faults.is_empty());
                assert!(faults.iter().all(|fault| fault.position.is_some()), "{faults:?}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
