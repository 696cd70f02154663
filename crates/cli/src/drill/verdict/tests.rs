use rollcall_protocol::Moment;
use rollcall_protocol::wire::Hello;

use super::*;
use crate::drill::testing::{mark, report};
use crate::terminal::output::Look;
use crate::testing;

const A: SlaveId = [0xab; 16];

/// Three reports that were sent, acked and stored, and the row that says so.
struct Scene {
    witness: Witness,
    stored: Stored,
    history: History,
    rows: Vec<SlaveRow>,
    settled: bool,
}

impl Scene {
    fn good() -> Self {
        let mut witness = Witness::default();
        let hello = Hello {
            name: "a".to_owned(),
            stream: 7,
            ..Hello::default()
        };
        witness.hello(A, &hello);
        let reports: Vec<_> = (1..=3).map(|at| report(at, 0)).collect();
        for report in &reports {
            witness.report(A, report, 1);
        }
        let mut stored = Stored::default();
        stored.take(vec![stored::group(A, &reports)], &witness);
        witness.ack(A, &mark(3), Moment::ZERO);
        let mut row = testing::row("a");
        row.id = "ab".repeat(16);
        row.stream = format!("{:016x}", 7);
        (row.sequence, row.applied, row.gaps) = (3, 3, 0);
        Self {
            witness,
            stored,
            history: History::default(),
            rows: vec![row],
            settled: true,
        }
    }

    fn verdict(&self, faults: &[String]) -> Verdict {
        Verdict::new(&Findings {
            witness: &self.witness,
            stored: &self.stored,
            history: &self.history,
            rows: &self.rows,
            restarts: AllRestarts::default(),
            faults,
            seed: 1,
            slaves: 1,
            load: Duration::from_secs(1),
            interrupted: false,
            settled: self.settled,
        })
    }
}

/// The verdict on a scene with something wrong in it, which must not be a good one.
fn spoilt(spoil: impl FnOnce(&mut Scene)) -> Verdict {
    let mut scene = Scene::good();
    spoil(&mut scene);
    let verdict = scene.verdict(&[]);
    assert!(!verdict.passed, "{verdict:#?}");
    verdict
}

#[test]
fn all_is_well() {
    let verdict = Scene::good().verdict(&[]);
    assert!(verdict.passed, "{verdict:#?}");
    assert_eq!((verdict.sent, verdict.acked, verdict.stored), (3, 3, 3));
}

#[test]
fn each_thing_that_is_wrong_is_told() {
    let lost = spoilt(|scene| {
        scene.witness.report(A, &report(4, 0), 1);
        scene.witness.ack(A, &mark(4), Moment::ZERO);
    });
    assert_eq!((lost.lost, lost.sent, lost.stored), (1, 4, 3));
    assert!(lost.faults[0].contains("report 4 of the stream 0000000000000007"));
    assert!(lost.faults[0].ends_with("it was acked"), "{lost:#?}");
    let altered = spoilt(|scene| scene.witness.report(A, &report(2, 99), 1));
    assert_eq!(altered.altered, 1);
    let doubled = spoilt(|scene| {
        let again = stored::group(A, &[report(3, 0)]);
        scene.stored.take(vec![again], &scene.witness);
    });
    assert_eq!(doubled.doubled, 1);
    let row = spoilt(|scene| scene.rows[0].applied += 1);
    assert_eq!(row.rows_wrong, 1);
    let absent = spoilt(|scene| scene.rows.clear());
    assert_eq!(absent.rows_wrong, 1);
    spoilt(|scene| scene.settled = false);
    let alarm = spoilt(|scene| {
        let words = ["a", "missing", "no report"].map(str::to_owned);
        scene.history.alarms.push(words.into());
    });
    assert_eq!(
        (alarm.false_alarms.missing, alarm.false_alarms.late),
        (1, 0)
    );
    assert!(!Scene::good().verdict(&["a panic".to_owned()]).passed);
    // A drill in which nothing happened proves nothing.
    let nothing = spoilt(|scene| {
        scene.witness = Witness::default();
        scene.stored = Stored::default();
    });
    assert_eq!(nothing.sent, 0);
}

#[test]
fn changes_must_be_in_the_history_once() {
    let mut scene = Scene::good();
    let changed = scene.stored.slaves.get_mut(&A).unwrap();
    changed.changes = vec!["run 1".to_owned(), "run 2".to_owned()];
    let told = |text: &str| {
        let to = Some("ok".to_owned());
        ("a".to_owned(), None, to, text.to_owned(), false)
    };
    scene
        .history
        .told
        .insert(("a".to_owned(), "run 1".to_owned()));
    scene.history.changes.insert(told("run 1"), 2);
    let verdict = scene.verdict(&[]);
    let changes = verdict.changes;
    assert_eq!((changes.made, changes.missing, changes.doubled), (2, 1, 1));
    assert!(verdict.faults[0].contains("\"run 2\" of a"), "{verdict:#?}");
}

#[test]
fn a_blackout_is_told_by_its_half_and_its_longest() {
    let mut scene = Scene::good();
    for ms in [30, 10, 20, 500] {
        let length = Duration::from_millis(ms);
        scene.witness.blackouts.push((Blow::Killed, length));
    }
    let verdict = scene.verdict(&[]);
    let killed = verdict.blackout_ms.killed;
    assert_eq!(
        (killed.count, killed.p50, killed.max),
        (4, Some(30), Some(500))
    );
    assert_eq!(verdict.blackout_ms.planned, Blackouts::default());
    let look = Look {
        colored: false,
        width: None,
    };
    let text = verdict.lines(look).join("\n");
    assert!(text.contains("p50 30 ms, max 500 ms of 4"), "{text}");
    assert!(
        text.ends_with("PASSED: nothing was lost, doubled or reordered in 1s"),
        "{text}"
    );
}

#[test]
fn figures_are_grouped_and_faults_can_not_steer_a_terminal() {
    assert_eq!(grouped(0), "0");
    assert_eq!(grouped(999), "999");
    assert_eq!(grouped(1_234_567), "1,234,567");
    let look = Look {
        colored: false,
        width: None,
    };
    let fault = "the master ended:\n\u{1b}[2J".to_owned();
    let text = Scene::good().verdict(&[fault]).lines(look).join("\n");
    assert!(text.contains("the master ended:\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(
        text.contains("FAILED: not everything is as promised (seed 1)"),
        "{text}"
    );
}
