//! Time since boot.

use std::time::Duration;

use rollcall_protocol::wire::Health;

use crate::check::finding::{Finding, metric};
use crate::config::probe::Uptime;

/// Judges `up`, the time since boot.
pub(super) fn judge(config: &Uptime, up: Duration) -> Finding {
    let below = |limit: Option<Duration>| limit.is_some_and(|limit| up < limit);
    let state = if below(config.critical_below) {
        Health::Critical
    } else if below(config.warning_below) {
        Health::Warning
    } else {
        Health::Ok
    };
    let minutes = up.as_secs() / 60;
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    Finding {
        state,
        text: format!("up {days}d {hours}h {minutes}m"),
        metrics: vec![metric("uptime", up.as_secs() as f64, "s")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_boot_is_told_if_wished() {
        let config = Uptime {
            warning_below: Some(Duration::from_secs(600)),
            critical_below: Some(Duration::from_secs(60)),
        };
        let state = |seconds| judge(&config, Duration::from_secs(seconds)).state;
        assert_eq!(state(59), Health::Critical);
        assert_eq!(state(60), Health::Warning);
        assert_eq!(state(600), Health::Ok);
        assert_eq!(judge(&Uptime::default(), Duration::ZERO).state, Health::Ok);
    }

    #[test]
    fn it_is_said_in_days_hours_and_minutes() {
        let found = judge(
            &Uptime::default(),
            Duration::from_secs(2 * 86_400 + 3 * 3600 + 4 * 60 + 59),
        );
        assert_eq!(found.text, "up 2d 3h 4m");
    }
}
