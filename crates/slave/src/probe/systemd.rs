//! Failed units, where systemd runs the host. It is asked by a child process on its own beat.

use std::collections::BTreeMap;
use std::path::Path;

use super::names::SYSTEMD;
use crate::check::child::{Ended, Program, Run};
use crate::check::finding::{Finding, Thresholds, metric};
use crate::check::schedule::{Job, Reading};
use crate::config::probe::Systemd;

/// The job that asks systemd; `None` where it does not run as PID 1 (sd_booted(3)).
pub(crate) fn job(config: &Systemd) -> Option<Job> {
    Path::new("/run/systemd/system").is_dir().then(|| Job {
        name: SYSTEMD.to_owned(),
        program: Program {
            argv: [
                "systemctl",
                "list-units",
                "--failed",
                "--plain",
                "--no-legend",
                "--no-pager",
            ]
            .map(str::to_owned)
            .into(),
            environment: BTreeMap::from(
                [("PATH", "/usr/bin:/bin"), ("LC_ALL", "C")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            ),
            timeout: config.timeout,
        },
        interval: config.interval,
        reading: Reading::FailedUnits(config.failed),
    })
}

/// Judges the list that systemctl wrote, one unit a line; `None` for a cancelled run.
pub(crate) fn judge(thresholds: &Thresholds, run: &Run) -> Option<Finding> {
    match &run.ended {
        Ended::Cancelled => None,
        Ended::Exited(status) if status.success() => {
            Some(list(thresholds, &String::from_utf8_lossy(&run.stdout)))
        }
        Ended::Exited(status) => Some(Finding::unknown(format!(
            "systemctl ended with {status}: {}",
            String::from_utf8_lossy(&run.stderr)
        ))),
        Ended::TimedOut(after) => Some(Finding::unknown(format!(
            "systemctl did not answer within {after:?}"
        ))),
        Ended::Failed(error) => Some(Finding::unknown(format!("systemctl can't be run: {error}"))),
    }
}

fn list(thresholds: &Thresholds, lines: &str) -> Finding {
    let units: Vec<&str> = lines
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let count = u32::try_from(units.len()).unwrap_or(u32::MAX);
    let text = match units.as_slice() {
        [] => "no failed units".to_owned(),
        [unit] => format!("1 failed unit: {unit}"),
        units => format!("{count} failed units: {}", units.join(", ")),
    };
    Finding {
        state: thresholds.judge(count.into()),
        text,
        metrics: vec![metric("failed", count.into(), "")],
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;
    use std::time::Duration;

    use rollcall_protocol::wire::Health;

    use super::*;

    const ONE: Thresholds = Thresholds {
        warning: Some(1.0),
        critical: None,
    };

    fn run(ended: Ended, stdout: &str, stderr: &str) -> Run {
        Run {
            ended,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    fn exited(code: i32) -> Ended {
        Ended::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn failed_units_are_listed_and_counted() {
        // systemctl 252 with --plain --no-legend
        let output = "apt-daily.service loaded failed failed Daily apt download activities\n\
                      certbot.service   loaded failed failed Certbot\n";
        let found = judge(&ONE, &run(exited(0), output, "")).unwrap();
        assert_eq!(found.state, Health::Warning);
        assert_eq!(
            found.text,
            "2 failed units: apt-daily.service, certbot.service"
        );
        assert_eq!(found.metrics, [metric("failed", 2.0, "")]);
        let none = judge(&ONE, &run(exited(0), "", "")).unwrap();
        assert_eq!(
            (none.state, none.text.as_str()),
            (Health::Ok, "no failed units")
        );
    }

    #[test]
    fn no_answer_is_unknown() {
        let denied = run(exited(1), "", "Failed to list units: Access denied\n");
        for (run, words) in [
            (denied, "exit status: 1: Failed to list units"),
            (
                run(Ended::TimedOut(Duration::from_secs(5)), "", ""),
                "within 5s",
            ),
        ] {
            let found = judge(&ONE, &run).unwrap();
            assert_eq!(found.state, Health::Unknown);
            assert!(found.text.contains(words), "{}", found.text);
        }
        assert_eq!(judge(&ONE, &run(Ended::Cancelled, "", "")), None);
    }
}
