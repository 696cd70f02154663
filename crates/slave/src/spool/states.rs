//! Which reports repeat their predecessor: they are the first to go when the spool must give way.

use std::hash::{DefaultHasher, Hash, Hasher};

use rollcall_protocol::wire;

/// The health and the checks' states of a report, without texts and figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct States(u64);

impl States {
    /// What `report` says.
    pub(crate) fn of(report: &wire::Report) -> Self {
        let mut hasher = DefaultHasher::new();
        report.health.hash(&mut hasher);
        for check in report.status.iter().flat_map(|status| &status.checks) {
            (&check.name, check.state).hash(&mut hasher);
        }
        Self(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, state: i32, text: &str) -> wire::Report {
        let check = wire::Check {
            name: name.into(),
            state,
            text: text.into(),
            ..wire::Check::default()
        };
        wire::Report {
            health: state,
            status: Some(wire::Status {
                checks: vec![check],
            }),
            ..wire::Report::default()
        }
    }

    #[test]
    fn texts_do_not_make_a_change_and_states_and_names_do() {
        let first = States::of(&report("disk", 0, "10 % used"));
        assert_eq!(first, States::of(&report("disk", 0, "11 % used")));
        assert_ne!(first, States::of(&report("disk", 1, "10 % used")));
        assert_ne!(first, States::of(&report("disc", 0, "10 % used")));
    }
}
