//! What datagrams add: copies that come late, and processes that can only be told by them.

use super::*;

/// A question of the slave 1: Hello with a number, as from `stream`, whose next report is `next`.
fn ask(
    roll: &mut Roll,
    (stream, previous): (u64, &[u64]),
    number: u64,
    next: u64,
    now: Stamp,
) -> Result<Greeting, Refusal> {
    let talker = Talker {
        id: 1,
        stream,
        session: 1_000_000 + number,
        slot: 0,
    };
    let hello = Hello {
        mode: Mode::Datagram.into(),
        question: number,
        previous: previous.to_vec(),
        ..talker.hello(next, &[(stream, next - 1)])
    };
    let greeting = talker.greet(roll, hello, now)?;
    // The connection of a question is over with it; its end is there from the beginning.
    if let Greeting::Welcome { slot, .. } = greeting
        && (roll.holds(slot, talker.session) || roll.hear_elder(slot, talker.session, true, now))
    {
        talker.report(roll, next - 1, 0, "live", now)?;
        roll.handle_disconnect(slot, talker.session);
    }
    Ok(greeting)
}

fn copy(stream: u64, sequence: u64) -> Greeting {
    Greeting::Copy {
        marks: vec![Mark { stream, sequence }],
    }
}

fn events(roll: &mut Roll) -> Vec<String> {
    Disk::default().write(roll.take_group(0))
}

#[test]
fn a_copy_of_a_question_is_answered_and_changes_nothing() {
    let mut roll = Disk::default().restore(at(0));
    ask(&mut roll, (7, &[]), 100, 2, at(0)).unwrap();
    ask(&mut roll, (7, &[]), 101, 3, at(1000)).unwrap();
    events(&mut roll);
    let before = row(&mut roll, "web-1");
    // The same again, and an older one that comes late, which would seem to run backwards.
    assert_eq!(
        ask(&mut roll, (7, &[]), 101, 3, at(1400)).unwrap(),
        copy(7, 2)
    );
    assert_eq!(
        ask(&mut roll, (7, &[]), 100, 2, at(1400)).unwrap(),
        Greeting::Resync { applied: 2 }
    );
    assert_eq!(row(&mut roll, "web-1"), before, "not even a sign of life");
    assert_eq!(events(&mut roll), [""; 0]);
    ask(&mut roll, (7, &[]), 102, 4, at(2000)).unwrap();
    assert_eq!(row(&mut roll, "web-1").applied, 3);
}

#[test]
fn the_last_words_of_a_predecessor_may_come_at_any_time() {
    let mut roll = Disk::default().restore(at(0));
    ask(&mut roll, (7, &[]), 100, 2, at(0)).unwrap();
    ask(&mut roll, (8, &[7]), 500, 2, at(500)).unwrap();
    events(&mut roll);
    for (next, ms) in (3..).zip([600, 1600, 2600, 7600, 8600]) {
        ask(&mut roll, (8, &[7]), 500 + next, next, at(ms)).unwrap();
        assert_eq!(
            ask(&mut roll, (7, &[]), 100, 2, at(ms)).unwrap(),
            copy(7, 1),
            "known"
        );
    }
    assert_eq!(row(&mut roll, "web-1").stream, format!("{:016x}", 8));
    assert_eq!(events(&mut roll), [""; 0]);
}

/// After a start of the master no question is known: one that is late is told from a process that
/// lives by whether there are others after it.
#[test]
fn one_late_question_is_no_process_and_many_are() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    ask(&mut roll, (7, &[]), 100, 2, at(0)).unwrap();
    ask(&mut roll, (8, &[7]), 500, 2, at(100)).unwrap();
    disk.write(roll.take_group(0));
    let mut roll = disk.restore(at(200));
    ask(&mut roll, (8, &[7]), 501, 3, at(300)).unwrap();
    let late = ask(&mut roll, (7, &[]), 101, 3, at(3000)).unwrap();
    assert!(matches!(late, Greeting::Welcome { .. }), "{late:?}");
    let shown = row(&mut roll, "web-1");
    assert_eq!((shown.stream, shown.sequence), (format!("{:016x}", 8), 2));
    assert_eq!(disk.write(roll.take_group(0)), [""; 0]);
    // It goes on, and so it lives: it was there first.
    for ms in [4000, 6000, 8000] {
        ask(&mut roll, (7, &[]), ms, 3, at(ms)).unwrap();
    }
    assert_eq!(row(&mut roll, "web-1").stream, format!("{:016x}", 7));
    assert_eq!(
        ask(&mut roll, (8, &[7]), 502, 4, at(8100))
            .unwrap_err()
            .code,
        ErrorCode::IdConflict
    );
    assert_eq!(disk.write(roll.take_group(0)), ["Conflict - ->-"]);
}

/// A question that seems to run backwards may be a late copy that this master has not seen: whether
/// the slave was set back shows when it begins the stream that it was told to begin.
#[test]
fn a_resync_is_told_once_it_is_taken() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    for (number, next) in [(100, 2), (101, 3), (102, 4)] {
        ask(&mut roll, (7, &[]), number, next, at(number * 10)).unwrap();
    }
    disk.write(roll.take_group(0));
    let mut roll = disk.restore(at(2000));
    assert_eq!(
        ask(&mut roll, (7, &[]), 100, 2, at(2000)).unwrap(),
        Greeting::Resync { applied: 3 }
    );
    assert_eq!(disk.write(roll.take_group(0)), [""; 0]);
    // It was a late copy: the slave goes on, and is restarted some time.
    ask(&mut roll, (7, &[]), 103, 5, at(2100)).unwrap();
    ask(&mut roll, (8, &[7]), 900, 2, at(2200)).unwrap();
    assert_eq!(disk.write(roll.take_group(0)), ["Restart - ->-"]);
    // Now it is set back indeed.
    ask(&mut roll, (8, &[7]), 901, 3, at(2300)).unwrap();
    assert_eq!(
        ask(&mut roll, (8, &[7]), 900, 2, at(2400)).unwrap(),
        Greeting::Resync { applied: 2 },
        "also where the question is known"
    );
    assert_eq!(
        ask(&mut roll, (8, &[7]), 902, 2, at(2400)).unwrap(),
        Greeting::Resync { applied: 2 }
    );
    ask(&mut roll, (9, &[8, 7]), 903, 2, at(2500)).unwrap();
    assert_eq!(disk.write(roll.take_group(0)), ["Resync - ->-"]);
}
