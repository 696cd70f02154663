//! What a finished plugin said, by the Nagios plugin API.
//!
//! The exit code is the state. The first line is the text; what follows `|` is performance data,
//! on that line and, after the long text, on all lines from the next `|` on:
//!
//! ```text
//! TEXT | 'label'=1s;2;3
//! long text
//! more long text | 'other'=4%
//! 'third'=5B
//! ```

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rollcall_protocol::wire::Health;

use super::child::{Ended, Run};
use super::finding::Finding;
use super::perfdata::{self, Perfdata};

/// Judges a run of the check `name`; `None` for one that was cancelled, which is no result.
pub(crate) fn judge(name: &str, run: &Run) -> Option<Finding> {
    let (text, perfdata) = read(&run.stdout, &run.stderr);
    if perfdata.malformed > 0 {
        tracing::debug!(
            event = "check_perfdata_malformed",
            check = name,
            malformed = perfdata.malformed,
            "items of the plugin's performance data could not be read and were left out"
        );
    }
    let (state, text) = match &run.ended {
        Ended::Cancelled => return None,
        Ended::Exited(status) => by_status(*status, text),
        Ended::TimedOut(after) => (
            Health::Unknown,
            with_output(&format!("timed out after {after:?} and was ended"), &text),
        ),
        Ended::Failed(error) => (Health::Unknown, format!("can't be run: {error}")),
    };
    Some(Finding {
        state,
        text,
        metrics: perfdata.metrics,
    })
}

fn by_status(status: ExitStatus, text: String) -> (Health, String) {
    let state = match status.code() {
        Some(0) => Health::Ok,
        Some(1) => Health::Warning,
        Some(2) => Health::Critical,
        Some(3) => Health::Unknown,
        Some(code) => {
            let reason = match code {
                126 => "exit code 126 (by the shell's custom: not executable)".to_owned(),
                127 => "exit code 127 (by the shell's custom: command not found)".to_owned(),
                code => format!("exit code {code} is none of 0 to 3"),
            };
            return (Health::Unknown, with_output(&reason, &text));
        }
        None => {
            let signal = status.signal().unwrap_or_default();
            let reason = format!("ended by signal {signal}");
            return (Health::Unknown, with_output(&reason, &text));
        }
    };
    if text.is_empty() {
        return (state, "(no output)".to_owned());
    }
    (state, text)
}

fn with_output(reason: &str, output: &str) -> String {
    if output.is_empty() {
        return reason.to_owned();
    }
    format!("{reason}: {output}")
}

/// The text and the performance data. Where standard output has no text, the first line of
/// standard error stands in: that is where an interpreter says what is wrong with a script.
fn read(stdout: &[u8], stderr: &[u8]) -> (String, Perfdata) {
    let stdout = String::from_utf8_lossy(stdout);
    let (text, perfdata) = split(&stdout);
    if !text.is_empty() {
        return (text.to_owned(), perfdata::parse(&perfdata));
    }
    let stderr = String::from_utf8_lossy(stderr);
    let instead = stderr.lines().map(str::trim).find(|line| !line.is_empty());
    let text = instead.unwrap_or_default().to_owned();
    (text, perfdata::parse(&perfdata))
}

/// The first line's text, and all performance data in one line.
fn split(output: &str) -> (&str, String) {
    let mut lines = output.trim_start().lines();
    let first = lines.next().unwrap_or_default();
    let (text, first_data) = first.split_once('|').unwrap_or((first, ""));
    let mut perfdata = first_data.to_owned();
    let mut in_long_text = true;
    for line in lines {
        let data = if in_long_text {
            let Some((_, data)) = line.split_once('|') else {
                continue;
            };
            in_long_text = false;
            data
        } else {
            line
        };
        perfdata.push(' ');
        perfdata.push_str(data);
    }
    (text.trim(), perfdata)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    fn run(ended: Ended, stdout: &str, stderr: &str) -> Run {
        Run {
            ended,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    fn exited(code: i32) -> Ended {
        // The wait status of an exit (wait(2)).
        Ended::Exited(ExitStatus::from_raw(code << 8))
    }

    fn state_and_text(ended: Ended, stdout: &str, stderr: &str) -> (Health, String) {
        let found = judge("test", &run(ended, stdout, stderr)).unwrap();
        (found.state, found.text)
    }

    #[test]
    fn exit_codes_are_states() {
        for (code, state) in [
            (0, Health::Ok),
            (1, Health::Warning),
            (2, Health::Critical),
            (3, Health::Unknown),
        ] {
            assert_eq!(
                state_and_text(exited(code), "said\n", ""),
                (state, "said".to_owned())
            );
        }
    }

    #[test]
    fn any_other_end_is_unknown_and_says_why() {
        for (ended, text) in [
            (exited(4), "exit code 4 is none of 0 to 3: said"),
            (
                exited(127),
                "exit code 127 (by the shell's custom: command not found): said",
            ),
            (
                Ended::Exited(ExitStatus::from_raw(11)),
                "ended by signal 11: said",
            ),
            (
                Ended::TimedOut(Duration::from_secs(10)),
                "timed out after 10s and was ended: said",
            ),
            (
                Ended::Failed(io::Error::from_raw_os_error(2)),
                "can't be run: No such file or directory (os error 2)",
            ),
        ] {
            assert_eq!(
                state_and_text(ended, "said", ""),
                (Health::Unknown, text.to_owned())
            );
        }
        assert_eq!(judge("test", &run(Ended::Cancelled, "said", "")), None);
    }

    #[test]
    fn standard_error_stands_in_for_no_text() {
        let (_, text) = state_and_text(exited(2), "\n", "\n sh: 1: Syntax error\nmore");
        assert_eq!(text, "sh: 1: Syntax error");
        assert_eq!(state_and_text(exited(0), "", "").1, "(no output)");
        assert_eq!(
            state_and_text(exited(0), "fine", "warning: noise").1,
            "fine"
        );
    }

    #[test]
    fn perfdata_may_follow_on_further_lines() {
        let output = "DISK OK | '/ used'=1B\nlong\ntext | b=2;;|\nc=3%\n\nd=4 e=5\n";
        let found = judge("test", &run(exited(0), output, "")).unwrap();
        assert_eq!(found.text, "DISK OK");
        let names: Vec<_> = found
            .metrics
            .iter()
            .map(|metric| metric.name.as_str())
            .collect();
        assert_eq!(names, ["/ used", "b", "c", "d", "e"]);
    }
}
