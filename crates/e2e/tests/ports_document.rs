//! `docs/ports.md`: the tests that it names are there, its commands work, its sysctls exist, and the
//! lab says what it shows.

use std::env;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use rollcall_e2e::{Master, Namespace, binaries, source};

const DOCUMENT: &str = "docs/ports.md";
/// Where output stands in the document.
const BLOCK: &str = "```text\n";
const BLOCK_ENDS: &str = "```\n";
/// Sysctls of older and newer kernels, and of modules that need not be loaded.
const NOT_EVERYWHERE: [&str; 4] = [
    "net.ipv4.tcp_tw_recycle",
    "net.ipv4.tcp_tw_reuse_delay",
    "net.ipv4.tcp_migrate_req",
    "net.netfilter.nf_conntrack_max",
];

/// What stands between backquotes, outside of blocks.
fn code_spans(text: &str) -> Vec<&str> {
    let outside = text.split("```").step_by(2);
    outside
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .collect()
}

/// `file::function` in a span, if it is one of the end-to-end tests.
fn as_test(span: &str) -> Option<(&str, &str)> {
    let (file, function) = span.split_once("::")?;
    let is_word = |word: &str| {
        let mut characters = word.chars();
        characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    (is_word(file) && is_word(function)).then_some((file, function))
}

fn is_there(file: &str, function: &str) -> bool {
    let test = format!("#[test]\nfn {function}()");
    // A file, or the folder of a test in several.
    let paths = [
        PathBuf::from(format!("crates/e2e/tests/{file}.rs")),
        PathBuf::from(format!("crates/e2e/tests/{file}")),
    ];
    let all = source::files("crates/e2e/tests", &["rs"]);
    let mut files = all
        .iter()
        .filter(|path| paths.iter().any(|wanted| path.starts_with(wanted)));
    files.any(|path| source::read(path).contains(&test))
}

#[test]
fn each_row_names_a_test_that_is_there() {
    let text = source::read(DOCUMENT);
    let absent: Vec<_> = code_spans(&text)
        .into_iter()
        .filter_map(as_test)
        .filter(|(file, function)| !is_there(file, function))
        .collect();
    assert!(absent.is_empty(), "{absent:#?}");
    let mut rows = 0;
    let mut has_tests = false;
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        match cells[..] {
            [] | [_] => has_tests = false,
            [.., "Test", ""] => has_tests = true,
            [.., last, ""] if has_tests && !last.starts_with("---") => {
                rows += 1;
                let named = code_spans(last).into_iter().find_map(as_test);
                assert!(named.is_some(), "no test in the row: {line}");
            }
            _ => {}
        }
    }
    assert!(rows >= 20, "only {rows} rows found");
}

#[test]
fn the_sysctls_exist() {
    let text = source::read(DOCUMENT);
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c)));
    let names = words.map(|word| word.trim_end_matches('.'));
    let absent: Vec<_> = names
        .filter(|name| name.starts_with("net.") && !NOT_EVERYWHERE.contains(name))
        .filter(|name| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            !Path::new(&path).exists()
        })
        .collect();
    assert!(absent.is_empty(), "{absent:?}");
}

/// The lines of ```sh blocks.
fn commands(text: &str) -> Vec<&str> {
    let blocks = text.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|block| Some(block.split_once("```")?.0));
    blocks.flat_map(str::lines).collect()
}

/// Each command is run, in a network namespace and with a master on the usual ports.
#[test]
fn the_commands_work() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the commands of docs/ports.md") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master
        .config
        .set("listen.addresses", vec!["127.0.0.1:7412"])
        .set("listen.datagram", vec!["127.0.0.1:7412"])
        .set("http.address", "127.0.0.1:7413");
    namespace.run(|| master.start());
    let mut count = 0;
    for line in commands(&source::read(DOCUMENT)) {
        // The workspace's own tests are run by whoever runs this one.
        if line.contains("cargo ") {
            continue;
        }
        count += 1;
        if let Some(setting) = line.strip_prefix("sysctl -w ") {
            let (name, value) = setting.split_once('=').expect("a value");
            namespace.set(name, value);
            continue;
        }
        let line = line.replace("--count 1000000", "--count 1000");
        let output = namespace.run(|| shell(&line, folder.path()));
        assert!(output.status.success(), "{line}: {output:?}");
    }
    assert!(count >= 5, "only {count} commands found");
}

fn shell(line: &str, folder: &Path) -> Output {
    let programs = binaries::path(binaries::CLI);
    let programs = programs.parent().expect("a folder").display();
    let path = env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .env("PATH", format!("{programs}:{path}"))
        .current_dir(folder);
    command.output().expect("a shell")
}

/// The document shows what the lab prints. Its results are this kernel's and this run's, and are not
/// compared; with UPDATE_DOCS=1 the document gets those of this run.
#[test]
fn the_lab_is_shown_as_it_is() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the lab of docs/ports.md") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let output = namespace.run(|| shell("rollcall lab --all", folder.path()));
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let programs = binaries::path(binaries::CLI);
    let programs = programs.parent().expect("a folder").display();
    let printed = printed.replace(&format!("{programs}/"), "");
    // A step, the cure, a note; not what stands above the first experiment.
    assert_shown("## The lab", &printed, |step| {
        ["0. ", "CURE ", "note "]
            .iter()
            .any(|begin| step.starts_with(begin))
    });
}

/// The same for the doctor, at a host whose ports have run out.
#[test]
fn the_doctor_is_shown_as_it_is() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the doctor of docs/ports.md") else {
        return;
    };
    namespace.set("net.ipv4.ip_local_port_range", "40000 40099");
    namespace.set("net.ipv4.tcp_tw_reuse", "0");
    let folder = tempfile::tempdir().expect("a folder");
    let output = namespace.run(|| {
        let listener = TcpListener::bind("127.0.0.1:7412").expect("a port of our own");
        for _ in 0..100 {
            let client = TcpStream::connect("127.0.0.1:7412").expect("a port that is left");
            let (mut server, _) = listener.accept().expect("a connection");
            drop(client);
            server.read_to_end(&mut Vec::new()).expect("its end");
        }
        drop(listener);
        shell("rollcall doctor", folder.path())
    });
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    // A host may have findings of its own, and settings of its kernel.
    assert_shown(
        "## The doctor",
        &without_what_is_in_order(&printed),
        |step| {
            step.starts_with("critical ")
                || step.starts_with("warning net.ipv0.ip_local_port_range")
        },
    );
}

/// Without the findings that are "ok".
fn without_what_is_in_order(printed: &str) -> String {
    let mut is_ok = false;
    let mut kept = String::new();
    for line in printed.lines() {
        if !line.starts_with(' ') {
            is_ok = line.starts_with("ok ");
        }
        if !is_ok {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// What is printed is what the first block of text below `heading` shows, as far as it does not
/// depend on the host. With UPDATE_DOCS=1 the document is written anew.
#[track_caller]
fn assert_shown(heading: &str, printed: &str, is_the_same_everywhere: fn(&str) -> bool) {
    const UPDATE: &str = "UPDATE_DOCS=1 cargo test -p rollcall-e2e --test ports_document";
    // Two tests may want to write.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock();
    let text = source::read(DOCUMENT);
    let at = text.find(heading).expect("the heading");
    let begin = at + text[at..].find(BLOCK).expect("a block") + BLOCK.len();
    let end = begin + text[begin..].find(BLOCK_ENDS).expect("its end");
    if env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        let text = [&text[..begin], printed, &text[end..]].concat();
        fs::write(source::root().join(DOCUMENT), text).expect("the document can be written");
        return;
    }
    let (printed, shown) = (steps(printed), steps(&text[begin..end]));
    let is_missing = |step: &&String| is_the_same_everywhere(step) && !printed.contains(step);
    let missing: Vec<_> = shown.iter().filter(is_missing).collect();
    assert!(
        missing.is_empty(),
        "no more so: {missing:#?}; run: {UPDATE}"
    );
    let is_missing = |step: &&String| is_the_same_everywhere(step) && !shown.contains(step);
    let missing: Vec<_> = printed.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "not shown: {missing:#?}; run: {UPDATE}");
}

/// The paragraphs that are no results of the lab, without their numbers and however they are wrapped.
fn steps(text: &str) -> Vec<String> {
    let mut steps: Vec<String> = Vec::new();
    let mut is_result = false;
    for line in text.lines() {
        let is_continued = line.starts_with("       ");
        if line.trim_start().starts_with("-> ") {
            is_result = true;
        } else if !line.starts_with("          ") {
            is_result = false;
        }
        if is_result {
            continue;
        }
        let words = line.split_whitespace().map(|word| {
            let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
            word.chars().map(digits).collect::<String>()
        });
        let words = words.collect::<Vec<_>>().join(" ");
        match steps.last_mut() {
            Some(step) if is_continued => {
                step.push(' ');
                step.push_str(&words);
            }
            _ => steps.push(words),
        }
    }
    steps
}
