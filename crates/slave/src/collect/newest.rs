//! The newest result of each check plugin, and how old it is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rollcall_protocol::limits;
use rollcall_protocol::wire::{Check, Health, Status};

use crate::check::schedule::Job;
use crate::check::text;

/// A result counts for this many intervals of its check, and the timeout.
const STALE_INTERVALS: u32 = 3;

/// Results by the name of the check. Its clock is the sum of [`Newest::advance`].
pub(super) struct Newest {
    now: Duration,
    checks: HashMap<String, Known>,
    /// The states of the last status, for the log.
    states: BTreeMap<String, Health>,
}

struct Known {
    job: Job,
    /// The result and when it came.
    result: Option<(Check, Duration)>,
}

impl Newest {
    pub(super) fn new(jobs: &[Job]) -> Self {
        let mut newest = Self {
            now: Duration::ZERO,
            checks: HashMap::new(),
            states: BTreeMap::new(),
        };
        newest.keep(jobs);
        newest
    }

    /// Takes over a new list of checks; those that are as before keep their results.
    pub(super) fn keep(&mut self, jobs: &[Job]) {
        let mut old = std::mem::take(&mut self.checks);
        for job in jobs {
            let known = old.remove(&job.name).filter(|known| known.job == *job);
            let known = known.unwrap_or_else(|| Known {
                job: job.clone(),
                result: None,
            });
            self.checks.insert(job.name.clone(), known);
        }
    }

    /// Takes a result, unless its check is gone.
    pub(super) fn insert(&mut self, check: Check) {
        if let Some(known) = self.checks.get_mut(&check.name) {
            known.result = Some((check, self.now));
        }
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
    }

    /// The results that there are; those that are too old as unknown.
    pub(super) fn checks(&self) -> impl Iterator<Item = Check> {
        self.checks.values().filter_map(|known| {
            let (check, came) = known.result.as_ref()?;
            let age = self.now.saturating_sub(*came);
            let Job {
                interval, program, ..
            } = &known.job;
            let age_max = interval
                .saturating_mul(STALE_INTERVALS)
                .saturating_add(program.timeout);
            Some(if age > age_max {
                stale(check, age)
            } else {
                check.clone()
            })
        })
    }

    /// Logs each check whose state is not that of the last status.
    pub(super) fn log_changes(&mut self, status: &Status) {
        let states: BTreeMap<String, Health> = status
            .checks
            .iter()
            .map(|check| (check.name.clone(), check.state()))
            .collect();
        for check in &status.checks {
            let before = self.states.get(&check.name).copied();
            // A check that begins well is no news.
            if before.unwrap_or(Health::Ok) != check.state() {
                tracing::info!(
                    event = "check_changed",
                    check = check.name,
                    from = before.map_or("none", word),
                    to = word(check.state()),
                    text = check.text,
                    "the state of a check has changed"
                );
            }
        }
        self.states = states;
    }
}

fn stale(check: &Check, age: Duration) -> Check {
    let text = format!(
        "stale: no result for {} s; the last was {}: {}",
        age.as_secs(),
        word(check.state()),
        check.text
    );
    Check {
        state: Health::Unknown.into(),
        text: text::line(&text, limits::CHECK_TEXT_BYTES_MAX),
        metrics: Vec::new(),
        ..check.clone()
    }
}

fn word(state: Health) -> &'static str {
    match state {
        Health::Ok => "ok",
        Health::Warning => "warning",
        Health::Critical => "critical",
        Health::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::check::child::Program;
    use crate::check::finding::{Finding, metric};
    use crate::check::schedule::Reading;

    fn job(name: &str, interval_s: u64) -> Job {
        Job {
            name: name.to_owned(),
            program: Program {
                argv: vec!["true".to_owned()],
                environment: BTreeMap::new(),
                timeout: Duration::from_secs(5),
            },
            interval: Duration::from_secs(interval_s),
            reading: Reading::Plugin,
        }
    }

    fn result(name: &str) -> Check {
        let finding = Finding {
            state: Health::Warning,
            text: "hot".to_owned(),
            metrics: vec![metric("t", 1.0, "")],
        };
        finding.into_check(name, Duration::ZERO, 77)
    }

    #[test]
    fn a_check_is_there_from_its_first_result_on() {
        let mut newest = Newest::new(&[job("a", 10), job("b", 10)]);
        assert_eq!(newest.checks().count(), 0);
        newest.insert(result("a"));
        newest.insert(result("nobody"));
        assert_eq!(newest.checks().collect::<Vec<_>>(), [result("a")]);
    }

    #[test]
    fn an_old_result_becomes_unknown_and_a_new_one_ends_that() {
        let mut newest = Newest::new(&[job("a", 10)]);
        newest.insert(result("a"));
        newest.advance(Duration::from_secs(35));
        assert_eq!(newest.checks().next(), Some(result("a")));
        newest.advance(Duration::from_secs(1));
        let stale = newest.checks().next().unwrap();
        assert_eq!(stale.state(), Health::Unknown);
        assert_eq!(
            stale.text,
            "stale: no result for 36 s; the last was warning: hot"
        );
        assert_eq!((stale.metrics.len(), stale.time_ms), (0, 77));
        newest.insert(result("a"));
        assert_eq!(newest.checks().next(), Some(result("a")));
    }

    #[test]
    fn a_new_list_keeps_the_results_of_what_stays_as_it_is() {
        let mut newest = Newest::new(&[job("a", 10), job("b", 10), job("c", 10)]);
        for name in ["a", "b", "c"] {
            newest.insert(result(name));
        }
        newest.keep(&[job("a", 10), job("b", 20), job("d", 10)]);
        assert_eq!(newest.checks().collect::<Vec<_>>(), [result("a")]);
    }
}
