//! The ports that per-message mode uses, as the link counts them.

use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::wire::Check;

use super::{names, percent};
use crate::check::finding::{Finding, Thresholds, metric};
use crate::link::PortUse;

/// The check of what the link has found.
pub(crate) fn check(thresholds: &Thresholds, found: &PortUse) -> Check {
    judge(thresholds, found).into_check(names::CONNECTION, Duration::ZERO, clock::wall_ms())
}

fn judge(thresholds: &Thresholds, found: &PortUse) -> Finding {
    let PortUse {
        destination,
        used,
        time_wait,
        exhaustions,
        ..
    } = found;
    let mut metrics = vec![
        metric("ports_used", f64::from(*used), ""),
        metric("time_wait", f64::from(*time_wait), ""),
        // Counted one by one: exact in an f64.
        metric("exhaustions", *exhaustions as f64, "c"),
    ];
    let Some(budget) = found.budget else {
        return Finding {
            state: thresholds.judge(0.0),
            text: format!("{used} ports used for {destination}; the kernel tells no range"),
            metrics,
        };
    };
    metrics.push(metric("budget", f64::from(budget), ""));
    let share = percent(u64::from(*used), u64::from(budget));
    let meanwhile = if found.is_exhausted {
        ": used up until some are free again"
    } else {
        ""
    };
    Finding {
        state: thresholds.judge(share),
        text: format!(
            "{used} of {budget} ports for {destination}, {time_wait} of them in TIME_WAIT{meanwhile}"
        ),
        metrics,
    }
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::wire::Health;

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        warning: Some(80.0),
        critical: Some(100.0),
    };

    fn port_use(used: u32, budget: Option<u32>) -> PortUse {
        PortUse {
            destination: "10.0.0.1:7412".parse().unwrap(),
            budget,
            used,
            time_wait: used,
            exhaustions: 3,
            is_exhausted: false,
        }
    }

    #[test]
    fn the_share_of_the_budget_is_judged() {
        for (used, state) in [
            (0, Health::Ok),
            (71, Health::Ok),
            (72, Health::Warning),
            (90, Health::Critical),
        ] {
            let found = judge(&THRESHOLDS, &port_use(used, Some(90)));
            assert_eq!(found.state, state, "{used}");
            let names: Vec<_> = found.metrics.iter().map(|m| m.name.as_str()).collect();
            assert_eq!(names, ["ports_used", "time_wait", "exhaustions", "budget"]);
        }
    }

    #[test]
    fn what_is_used_up_is_said() {
        let mut found = port_use(90, Some(90));
        found.is_exhausted = true;
        let check = check(&THRESHOLDS, &found);
        assert_eq!(check.name, "connection");
        assert!(check.text.contains("used up"), "{}", check.text);
    }

    #[test]
    fn without_a_range_there_is_no_share() {
        let found = judge(&THRESHOLDS, &port_use(90, None));
        assert_eq!(found.state, Health::Ok);
    }
}
