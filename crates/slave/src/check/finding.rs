//! What one run of a probe or a check plugin found, and how states compare.

use std::time::Duration;

use rollcall_protocol::limits;
use rollcall_protocol::wire::{Check, Health, Metric};

use super::text;

/// Most metrics of one check. What a plugin gives beyond is left out, and its text says so.
pub(crate) const METRICS_MAX: usize = 128;
/// Longest name of a metric, in bytes.
pub(crate) const METRIC_NAME_BYTES_MAX: usize = 128;
/// Longest unit of a metric, in bytes.
pub(crate) const METRIC_UNIT_BYTES_MAX: usize = 16;

/// State, text and figures, before they have a name and a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    /// How it stands.
    pub(crate) state: Health,
    /// One line for people; cleaned and cut by [`Finding::into_check`].
    pub(crate) text: String,
    /// The figures behind it.
    pub(crate) metrics: Vec<Metric>,
}

impl Finding {
    /// A finding without figures that says why nothing is known.
    pub(crate) fn unknown(text: impl Into<String>) -> Self {
        Self {
            state: Health::Unknown,
            text: text.into(),
            metrics: Vec::new(),
        }
    }

    /// The only way to a [`Check`]: name, text and metrics come out clean and within the limits of
    /// the protocol. `took` is how long it ran, `time_ms` when it ended (wall clock).
    pub(crate) fn into_check(self, name: &str, took: Duration, time_ms: i64) -> Check {
        let mut metrics = self.metrics;
        let mut line = self.text;
        if metrics.len() > METRICS_MAX {
            let more = metrics.len() - METRICS_MAX;
            metrics.truncate(METRICS_MAX);
            line = format!("{line} ({more} more metrics left out)");
        }
        for metric in &mut metrics {
            metric.name = text::distinct(&metric.name, METRIC_NAME_BYTES_MAX);
            metric.unit = text::line(&metric.unit, METRIC_UNIT_BYTES_MAX);
        }
        metrics.retain(|metric| metric.value.is_finite());
        Check {
            name: text::distinct(name, limits::CHECK_NAME_BYTES_MAX),
            state: self.state.into(),
            text: text::line(&line, limits::CHECK_TEXT_BYTES_MAX),
            metrics,
            duration_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            time_ms,
        }
    }
}

/// A metric of a probe.
pub(crate) fn metric(name: &str, value: f64, unit: &str) -> Metric {
    Metric {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
    }
}

/// How bad a state is: ok < warning < unknown < critical.
///
/// Unknown ranks above warning, because what is not known may be critical, and below critical,
/// because a certain fault must not be hidden by an uncertain one. The numbers of the wire differ
/// (there, as in the Nagios plugin API, unknown is the highest).
pub(crate) fn severity(state: Health) -> u8 {
    match state {
        Health::Ok => 0,
        Health::Warning => 1,
        Health::Unknown => 2,
        Health::Critical => 3,
    }
}

/// The worst of `states` by [`severity`]; ok if there are none.
pub(crate) fn worst(states: impl IntoIterator<Item = Health>) -> Health {
    states
        .into_iter()
        .max_by_key(|state| severity(*state))
        .unwrap_or(Health::Ok)
}

/// From which value on something is a warning or critical; `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Thresholds {
    /// Warning from this value on.
    pub(crate) warning: Option<f64>,
    /// Critical from this value on.
    pub(crate) critical: Option<f64>,
}

impl Thresholds {
    /// The state of a figure that is the worse the higher it is.
    pub(crate) fn judge(&self, value: f64) -> Health {
        if self.critical.is_some_and(|limit| value >= limit) {
            Health::Critical
        } else if self.warning.is_some_and(|limit| value >= limit) {
            Health::Warning
        } else {
            Health::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ranks_between_warning_and_critical() {
        use Health::{Critical, Ok, Unknown, Warning};
        assert_eq!(worst([]), Ok);
        assert_eq!(worst([Ok, Warning]), Warning);
        assert_eq!(worst([Unknown, Warning, Ok]), Unknown);
        assert_eq!(worst([Unknown, Critical, Warning]), Critical);
    }

    #[test]
    fn a_threshold_is_reached_at_its_value() {
        let both = Thresholds {
            warning: Some(80.0),
            critical: Some(90.0),
        };
        assert_eq!(both.judge(79.9), Health::Ok);
        assert_eq!(both.judge(80.0), Health::Warning);
        assert_eq!(both.judge(90.0), Health::Critical);
        let critical_only = Thresholds {
            warning: None,
            critical: Some(90.0),
        };
        assert_eq!(critical_only.judge(89.0), Health::Ok);
        assert_eq!(Thresholds::default().judge(f64::MAX), Health::Ok);
    }

    #[test]
    fn a_check_is_within_the_limits_whatever_was_found() {
        let long = "ä\u{1b}[31m\n".repeat(2_000);
        let found = Finding {
            state: Health::Warning,
            text: long.clone(),
            metrics: (0..500)
                .map(|_| metric(&long, f64::NAN, &long))
                .chain([metric("last", 1.0, "s")])
                .collect(),
        };
        let check = found.into_check(&long, Duration::from_secs(u64::MAX), 7);
        assert!(check.name.len() <= limits::CHECK_NAME_BYTES_MAX);
        assert!(check.text.len() <= limits::CHECK_TEXT_BYTES_MAX);
        assert!(!check.name.contains(char::is_control));
        assert!(!check.text.contains(char::is_control));
        assert_eq!(check.metrics, []);
        assert_eq!(check.duration_ms, u32::MAX);
        assert_eq!((check.state(), check.time_ms), (Health::Warning, 7));
    }

    #[test]
    fn too_many_metrics_are_told() {
        let found = Finding {
            state: Health::Ok,
            text: "fine".to_owned(),
            metrics: (0..130).map(|i| metric(&i.to_string(), 1.0, "")).collect(),
        };
        let check = found.into_check("many", Duration::ZERO, 0);
        assert_eq!(check.metrics.len(), METRICS_MAX);
        assert_eq!(check.text, "fine (2 more metrics left out)");
    }
}
