//! Against real shell scripts.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::check::output::BYTES_MAX;

/// More than any of these tests may take.
const LONG: Duration = Duration::from_secs(20);

/// A shell script in a folder of its own, which it finds as `$DIR`.
pub(crate) struct Script {
    pub(crate) folder: TempDir,
    pub(crate) program: Program,
}

impl Script {
    pub(crate) fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("script");
        fs::write(&file, text).unwrap();
        let environment = [
            ("PATH", "/usr/bin:/bin".to_owned()),
            ("DIR", folder.path().display().to_string()),
        ];
        let program = Program {
            argv: vec!["/bin/sh".to_owned(), file.display().to_string()],
            environment: environment
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            timeout: LONG,
        };
        Self { folder, program }
    }

    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.program.timeout = timeout;
        self
    }

    /// Waits until the script has written a process id and a line feed to `file`.
    pub(crate) async fn pid(&self, file: &str) -> u32 {
        let path = self.folder.path().join(file);
        let written = until(|| {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| text.ends_with('\n'))
        });
        written.await.trim().parse().unwrap()
    }
}

/// Asks `probe` until it has an answer.
pub(crate) async fn until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let answered = async {
        loop {
            if let Some(answer) = probe() {
                return answer;
            }
            ticks.tick().await;
        }
    };
    timeout(LONG, answered)
        .await
        .expect("it should have come about")
}

/// Gone, or a zombie that only its new parent has to collect.
pub(crate) async fn dies(pid: u32) {
    until(|| {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        let is_alive = stat.is_ok_and(|stat| !stat.contains(") Z "));
        (!is_alive).then_some(())
    })
    .await;
}

async fn run_to_end(script: &Script) -> Run {
    let (run, remains) = timeout(LONG, run(&script.program, &CancellationToken::new()))
        .await
        .unwrap();
    assert!(remains.is_none());
    run
}

fn code(run: &Run) -> Option<i32> {
    match &run.ended {
        Ended::Exited(status) => status.code(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let run = run_to_end(&Script::new("echo out; echo err >&2; exit 2")).await;
    assert_eq!(code(&run), Some(2));
    assert_eq!(
        (run.stdout.as_slice(), run.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
}

#[tokio::test]
async fn the_child_gets_its_environment_the_root_folder_and_no_input() {
    let script = Script::new("pwd; cat; env | sed 's/=.*//' | sort | tr '\\n' ' '");
    let run = run_to_end(&script).await;
    // The shell adds PWD (and some shells OLDPWD, SHLVL and _) by itself.
    let output = String::from_utf8(run.stdout).unwrap();
    let (folder, names) = output.split_once('\n').unwrap();
    assert_eq!(folder, "/");
    let own: Vec<_> = names
        .split(' ')
        .filter(|name| !["", "OLDPWD", "PWD", "SHLVL", "_"].contains(name))
        .collect();
    assert_eq!(own, ["DIR", "PATH"]);
}

#[tokio::test]
async fn a_signal_is_told() {
    let run = run_to_end(&Script::new("kill -9 $$")).await;
    assert!(matches!(run.ended, Ended::Exited(status) if status.signal() == Some(9)));
}

#[tokio::test]
async fn what_is_not_there_is_not_started() {
    let mut script = Script::new("");
    script.program.argv = vec!["/no/such/plugin".to_owned()];
    let run = run_to_end(&script).await;
    assert!(matches!(run.ended, Ended::Failed(error) if error.kind() == io::ErrorKind::NotFound));
}

#[tokio::test]
async fn a_bare_name_is_looked_up_in_the_path_of_the_check() {
    let mut script = Script::new("");
    script.program.argv = vec!["true".to_owned()];
    assert_eq!(code(&run_to_end(&script).await), Some(0));
    let nowhere = script.folder.path().display().to_string();
    script
        .program
        .environment
        .insert("PATH".to_owned(), nowhere);
    let run = run_to_end(&script).await;
    assert!(matches!(run.ended, Ended::Failed(_)), "{run:?}");
}

#[tokio::test]
async fn output_is_capped_but_read_to_its_end() {
    let script = Script::new("yes 'label=1234' | head -c 1000001; exit 1");
    let run = run_to_end(&script).await;
    assert_eq!(code(&run), Some(1), "a full pipe would have blocked it");
    assert!(run.stdout.len() <= BYTES_MAX && run.stdout.len() > BYTES_MAX - 100);
    assert!(run.stdout.ends_with(b"label=1234"), "no half figure");
}

/// By then a script has got to where it waits, on a busy machine too.
const BEGUN: Duration = Duration::from_secs(1);

#[tokio::test]
async fn the_whole_group_is_ended_on_timeout() {
    let script =
        Script::new("sleep 1000 & echo $! > $DIR/pid; echo begun; wait").with_timeout(BEGUN);
    let run = run_to_end(&script).await;
    assert!(matches!(run.ended, Ended::TimedOut(after) if after == script.program.timeout));
    assert_eq!(run.stdout, b"begun\n");
    dies(script.pid("pid").await).await;
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_after_the_grace() {
    let script = Script::new("trap '' TERM; echo $$ > $DIR/pid; while :; do sleep 1; done")
        .with_timeout(BEGUN);
    let begun = Instant::now();
    let run = run_to_end(&script).await;
    assert!(matches!(run.ended, Ended::TimedOut(_)));
    assert!(begun.elapsed() >= BEGUN + TERM_GRACE);
    dies(script.pid("pid").await).await;
}

#[tokio::test]
async fn sigterm_may_be_used_to_tidy_up() {
    let script =
        Script::new("trap 'echo tidied; exit 0' TERM; sleep 1000 & wait").with_timeout(BEGUN);
    let begun = Instant::now();
    let run = run_to_end(&script).await;
    assert!(matches!(run.ended, Ended::TimedOut(_)));
    assert_eq!(run.stdout, b"tidied\n");
    assert!(
        begun.elapsed() < BEGUN + TERM_GRACE,
        "there was nothing to wait for"
    );
}

#[tokio::test]
async fn what_a_plugin_leaves_behind_is_ended_and_not_waited_for() {
    let script = Script::new("sleep 1000 & echo $! > $DIR/pid; echo fine");
    let run = run_to_end(&script).await;
    assert_eq!(
        (code(&run), run.stdout.as_slice()),
        (Some(0), &b"fine\n"[..])
    );
    dies(script.pid("pid").await).await;
}

#[tokio::test]
async fn who_has_left_the_group_does_not_hold_up_the_result() {
    let script = Script::new(
        "setsid sh -c 'echo $$ > $DIR/pid; exec sleep 1000' & while [ ! -s $DIR/pid ]; do sleep 0.01; done; echo fine",
    );
    let run = run_to_end(&script).await;
    assert_eq!(
        (code(&run), run.stdout.as_slice()),
        (Some(0), &b"fine\n"[..])
    );
    let stray = i32::try_from(script.pid("pid").await).unwrap();
    let stray = rustix::process::Pid::from_raw(stray).unwrap();
    rustix::process::kill_process(stray, Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_cancelled_run_ends_its_group() {
    let script = Script::new("sleep 1000 & echo $! > $DIR/pid; wait");
    let cancel = CancellationToken::new();
    let cancelling = async {
        let pid = script.pid("pid").await;
        cancel.cancel();
        pid
    };
    let ((run, remains), pid) = tokio::join!(run(&script.program, &cancel), cancelling);
    assert!(matches!(run.ended, Ended::Cancelled));
    assert!(remains.is_none());
    dies(pid).await;
}

#[tokio::test]
async fn a_child_that_is_stopped_together_with_the_agent_is_cancelled() {
    let script = Script::new("kill -TERM $$");
    let cancel = CancellationToken::new();
    let stopping = async {
        sleep(Duration::from_millis(300)).await;
        cancel.cancel();
    };
    let ((with_agent, _), ()) = tokio::join!(run(&script.program, &cancel), stopping);
    assert!(matches!(with_agent.ended, Ended::Cancelled));
    let alone = run_to_end(&script).await;
    assert!(matches!(alone.ended, Ended::Exited(status) if status.signal() == Some(15)));
}

#[tokio::test]
async fn nothing_is_started_after_the_cancel() {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let (run, remains) = run(&Script::new("").program, &cancel).await;
    assert!(matches!(run.ended, Ended::Cancelled));
    assert!(remains.is_none(), "it has begun to start");
}

#[tokio::test]
async fn a_dropped_run_kills_its_group() {
    let script = Script::new("trap '' TERM; sleep 1000 & echo $! > $DIR/pid; wait");
    let cancel = CancellationToken::new();
    let pid = tokio::select! {
        pid = script.pid("pid") => pid,
        _ = run(&script.program, &cancel) => panic!("it should still run"),
    };
    dies(pid).await;
}
