//! `[checks]` and `[[check]]`: the check plugins.

use std::collections::{BTreeMap, BTreeSet};

use garde::Validate;
use rollcall_os::config::within;
use rollcall_os::units::Duration;
use rollcall_protocol::limits;
use serde::{Deserialize, Serialize};

use super::probe::{Fault, Probes};
use crate::check::child::Program;
use crate::check::schedule::{Job, Reading};
use crate::check::text;
use crate::collect;
use crate::probe;

/// Most `[[check]]` entries: the rest of what a report holds is left to the probes.
pub(crate) const CHECKS_MAX: usize = limits::CHECKS_MAX * 3 / 4;

const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// `[checks]`: what holds for all check plugins.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawChecks {
    #[garde(custom(within(1, 64)))]
    concurrency: usize,
    #[garde(custom(within(INTERVAL_MIN, INTERVAL_MAX)))]
    interval: Duration,
    #[garde(custom(within(TIMEOUT_MIN, TIMEOUT_MAX)))]
    timeout: Duration,
    #[garde(custom(environment_is_sound))]
    environment: BTreeMap<String, String>,
}

/// `[[check]]`: one check plugin. What it leaves out comes from `[checks]`.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCheck {
    #[garde(custom(name_is_sound))]
    name: String,
    #[garde(custom(command_is_sound))]
    command: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[garde(inner(custom(within(INTERVAL_MIN, INTERVAL_MAX))))]
    interval: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[garde(inner(custom(within(TIMEOUT_MIN, TIMEOUT_MAX))))]
    timeout: Option<Duration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[garde(custom(environment_is_sound))]
    environment: BTreeMap<String, String>,
}

/// The check plugins to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checks {
    /// How many may run at a time; at least 1.
    pub(crate) concurrency: usize,
    /// The plugins, in the order of the file.
    pub(crate) jobs: Vec<Job>,
}

impl RawChecks {
    /// Makes the checks to run from the entries of `[[check]]`. Their names may not be those of
    /// the `probes` that run beside them.
    ///
    /// # Errors
    /// All names that are taken, and too many checks.
    pub(crate) fn resolve(&self, list: &[RawCheck], probes: &Probes) -> Result<Checks, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut names = BTreeSet::new();
        for (index, check) in list.iter().enumerate() {
            let key = format!("check[{index}].name");
            if !names.insert(check.name.as_str()) {
                faults.push((
                    key,
                    format!(
                        "another check has the name {:?}; names must differ",
                        check.name
                    ),
                ));
            } else if check.name == collect::AGENT_CHECK || probe::names(probes, &check.name) {
                faults.push((
                    key,
                    format!(
                        "{:?} is the name of a built-in check; choose another, or switch that probe off",
                        check.name
                    ),
                ));
            }
        }
        if list.len() > CHECKS_MAX {
            faults.push((
                format!("check[{CHECKS_MAX}]"),
                format!(
                    "{} checks are too many: one agent runs at most {CHECKS_MAX}",
                    list.len()
                ),
            ));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Checks {
            concurrency: self.concurrency,
            jobs: list.iter().map(|check| self.job(check)).collect(),
        })
    }

    fn job(&self, check: &RawCheck) -> Job {
        let mut environment = self.environment.clone();
        environment.extend(check.environment.clone());
        Job {
            name: check.name.clone(),
            program: Program {
                argv: check.command.clone(),
                environment,
                timeout: check.timeout.unwrap_or(self.timeout).get(),
            },
            interval: check.interval.unwrap_or(self.interval).get(),
            reading: Reading::Plugin,
        }
    }
}

fn name_is_sound(name: &str, (): &()) -> garde::Result {
    if !name.is_empty() && name.len() <= limits::CHECK_NAME_BYTES_MAX && text::is_clean(name) {
        return Ok(());
    }
    Err(garde::Error::new(format!(
        "bad name {name:?}: expected 1 to {} bytes without control characters and spaces at the ends",
        limits::CHECK_NAME_BYTES_MAX
    )))
}

fn command_is_sound(command: &[String], (): &()) -> garde::Result {
    let Some(program) = command.first() else {
        return Err(garde::Error::new(
            "empty: expected the program and its arguments, such as [\"/usr/lib/nagios/plugins/check_ssh\", \"localhost\"]",
        ));
    };
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(garde::Error::new("an argument contains a NUL character"));
    }
    // Checks run in "/": a path relative to the config file's folder would not be found there.
    if program.is_empty() || (program.contains('/') && !program.starts_with('/')) {
        return Err(garde::Error::new(format!(
            "bad program {program:?}: expected an absolute path, or a bare name to look up in PATH"
        )));
    }
    Ok(())
}

fn environment_is_sound(environment: &BTreeMap<String, String>, (): &()) -> garde::Result {
    for (key, value) in environment {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(garde::Error::new(format!(
                "bad variable {key:?}: its name may not be empty nor contain \"=\", and there may be no NUL character"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
