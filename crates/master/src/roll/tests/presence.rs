//! Who is late, missing, left, and who is not.

use rollcall_protocol::wire::{GoodbyeReason, SlaveGoodbye};

use super::*;

#[test]
fn silence_makes_late_then_missing_and_a_live_report_brings_up() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    disk.write(roll.take_group(0));
    let presence_at = |roll: &mut Roll, ms| {
        roll.handle_tick(at(ms));
        roll.slaves[talker.slot].shown.presence
    };
    assert_eq!(presence_at(&mut roll, 1499), Presence::Up);
    assert_eq!(presence_at(&mut roll, 1500), Presence::Late);
    assert_eq!(presence_at(&mut roll, 2999), Presence::Late);
    assert_eq!(presence_at(&mut roll, 3000), Presence::Missing);
    assert_eq!(presence_at(&mut roll, 900_000), Presence::Missing);
    assert_eq!(
        disk.write(roll.take_group(0)),
        ["Presence - up>late", "Presence - late>missing"]
    );
    let restored = disk.restore(at(0));
    assert_eq!(restored.slaves[0].shown.presence, Presence::Missing);

    talker
        .report(&mut roll, 2, 0, "backlog", at(900_001))
        .unwrap();
    assert_eq!(
        roll.slaves[0].shown.presence,
        Presence::Missing,
        "the backlog revives nobody"
    );
    talker.report(&mut roll, 3, 0, "live", at(900_002)).unwrap();
    assert_eq!(roll.slaves[0].shown.presence, Presence::Up);
}

#[test]
fn time_that_was_excused_counts_against_nobody() {
    let mut roll = Disk::default().restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    roll.excuse(Duration::from_secs(100));
    roll.handle_tick(at(101_400));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Up);
    roll.handle_tick(at(101_500));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Late);
}

#[test]
fn silence_means_nothing_while_what_was_sent_is_not_read() {
    let mut roll = Disk::default().restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    roll.hold_back(talker.slot, talker.session, true);
    roll.handle_tick(at(50_000));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Up);
    roll.hold_back(talker.slot, talker.session, false);
    roll.handle_tick(at(51_400));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Up);
    roll.handle_tick(at(51_500));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Late);
    // A connection that ended while it waited excuses nobody.
    roll.hold_back(talker.slot, talker.session, true);
    roll.handle_disconnect(talker.slot, talker.session);
    roll.handle_tick(at(60_000));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Missing);
}

#[test]
fn after_a_restart_everybody_has_the_window_and_the_dead_are_found_once() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    for id in 1..=2 {
        let talker = Talker::connect(&mut roll, id, 7, at(0));
        talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    }
    disk.write(roll.take_group(0));
    let mut roll = disk.restore(at(1_000_000));
    roll.handle_tick(at(1_061_499));
    assert!(!roll.has_group());
    roll.handle_tick(at(1_070_000));
    roll.handle_tick(at(1_080_000));
    let events = disk.write(roll.take_group(0));
    let missing = events
        .iter()
        .filter(|event| event.ends_with("late>missing"));
    assert_eq!(missing.count(), 2);
}

#[test]
fn who_is_back_after_a_restart_is_held_to_its_interval_again() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    disk.write(roll.take_group(0));
    let mut roll = disk.restore(at(1000));
    talker
        .greet(&mut roll, talker.hello(2, &[(7, 2)]), at(1100))
        .unwrap();
    talker.report(&mut roll, 2, 0, "live", at(1200)).unwrap();
    roll.handle_tick(at(2700));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Late);
}

fn say_goodbye(talker: &Talker, roll: &mut Roll, goodbye: SlaveGoodbye, now: Stamp) {
    let bytes = payload(Kind::Goodbye(goodbye));
    roll.handle_goodbye(talker.slot, &goodbye, &bytes, now);
    roll.handle_disconnect(talker.slot, talker.session);
}

/// A slave that has reported at 0 and said goodbye at 100, with the interval of a second; what was told
/// until then is on the disk.
fn left(disk: &mut Disk, goodbye: SlaveGoodbye) -> (Roll, Talker) {
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    disk.write(roll.take_group(0));
    say_goodbye(&talker, &mut roll, goodbye, at(100));
    assert_eq!(row(&mut roll, "web-1").presence, Presence::Left, "at once");
    assert_eq!(disk.write(roll.take_group(0)), [""; 0], "untold for now");
    (roll, talker)
}

/// The next process of the slave, with a stream of its own.
fn successor(roll: &mut Roll, now: Stamp) -> Talker {
    let talker = Talker {
        id: 1,
        stream: 8,
        session: 1_000_000,
        slot: 0,
    };
    let hello = Hello {
        previous: vec![7],
        ..talker.hello(1, &[(8, 1)])
    };
    talker.greet(roll, hello, now).unwrap();
    talker
}

#[test]
fn a_goodbye_is_left_and_not_missing_and_told_after_an_interval() {
    let mut disk = Disk::default();
    let (mut roll, _) = left(&mut disk, SlaveGoodbye::default());
    roll.handle_tick(at(1099));
    assert!(!roll.has_group());
    roll.handle_tick(at(1100));
    roll.handle_tick(at(900_000));
    let told = roll.take_group(0);
    assert_eq!(told.events[0].time_ms, at(100).wall_ms, "when it left");
    assert_eq!(disk.write(told), ["Presence - up>left"], "once");
    let mut roll = disk.restore(at(0));
    assert_eq!(row(&mut roll, "web-1").presence, Presence::Left);
    roll.handle_tick(at(900_000));
    assert!(!roll.has_group(), "and not by the next master either");
}

#[test]
fn a_restart_inside_the_interval_is_no_event_at_all() {
    let mut disk = Disk::default();
    let (mut roll, _) = left(&mut disk, SlaveGoodbye::default());
    let since = at(0).wall_ms;
    let talker = successor(&mut roll, at(900));
    assert_eq!(
        row(&mut roll, "web-1").presence,
        Presence::Left,
        "a report is a sign of life, a connection is none"
    );
    talker.report(&mut roll, 1, 0, "live", at(1000)).unwrap();
    roll.handle_tick(at(1100));
    assert_eq!(disk.write(roll.take_group(0)), [""; 0]);
    for roll in [&mut roll, &mut disk.restore(at(0))] {
        let row = row(roll, "web-1");
        assert_eq!(row.presence, Presence::Up);
        assert_eq!(row.since_ms, since, "it was never gone");
    }
    // Its deadlines run as if nothing had been.
    roll.handle_tick(at(2500));
    assert_eq!(disk.write(roll.take_group(0)), ["Presence - up>late"]);
}

#[test]
fn a_restart_that_takes_longer_is_told() {
    let mut disk = Disk::default();
    let (mut roll, _) = left(&mut disk, SlaveGoodbye::default());
    let talker = successor(&mut roll, at(1000));
    roll.handle_tick(at(1100));
    talker.report(&mut roll, 1, 0, "live", at(1200)).unwrap();
    let told = disk.write(roll.take_group(0));
    assert_eq!(told, ["Presence - up>left", "Presence - left>up"]);
}

/// Whoever was late when it said goodbye is told as back.
#[test]
fn what_is_told_next_follows_what_was_told_last() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    roll.handle_tick(at(1500));
    disk.write(roll.take_group(0));
    say_goodbye(&talker, &mut roll, SlaveGoodbye::default(), at(1600));
    let talker = successor(&mut roll, at(1700));
    talker.report(&mut roll, 1, 0, "live", at(1800)).unwrap();
    assert_eq!(disk.write(roll.take_group(0)), ["Presence - late>up"]);
}

#[test]
fn a_goodbye_is_told_once_by_a_master_that_was_restarted_meanwhile() {
    // From the redo, and from a record.
    for from_record in [false, true] {
        let mut disk = Disk::default();
        let (_, _) = left(&mut disk, SlaveGoodbye::default());
        let mut roll = disk.restore(at(50_000));
        if from_record {
            disk.write(roll.take_group(0));
            assert_eq!((disk.records.len(), disk.redo.len()), (1, 0));
            roll = disk.restore(at(50_000));
        }
        assert_eq!(row(&mut roll, "web-1").presence, Presence::Left);
        // It has the window like everybody.
        roll.handle_tick(at(110_999));
        assert!(!roll.has_group() || from_record);
        roll.handle_tick(at(111_000));
        let told = roll.take_group(0);
        assert_eq!(told.events[0].time_ms, at(100).wall_ms);
        assert_eq!(disk.write(told), ["Presence - up>left"]);
        let mut roll = disk.restore(at(200_000));
        roll.handle_tick(at(900_000));
        let again = disk.write(roll.take_group(0));
        assert_eq!(again, [""; 0], "from a record: {from_record}");
    }
}

#[test]
fn a_slave_that_is_restarted_beside_its_master_is_no_event() {
    let mut disk = Disk::default();
    let (_, _) = left(&mut disk, SlaveGoodbye::default());
    let mut roll = disk.restore(at(50_000));
    let talker = successor(&mut roll, at(100_000));
    talker.report(&mut roll, 1, 0, "live", at(100_100)).unwrap();
    roll.handle_tick(at(101_000));
    assert_eq!(disk.write(roll.take_group(0)), [""; 0]);
    let mut roll = disk.restore(at(0));
    assert_eq!(row(&mut roll, "web-1").presence, Presence::Up);
}

#[test]
fn who_says_when_it_will_be_back_and_is_not_is_missing() {
    let restart = SlaveGoodbye {
        reason: GoodbyeReason::Restart.into(),
        back_ms: 90_000,
    };
    let mut disk = Disk::default();
    let (mut roll, _) = left(&mut disk, restart);
    roll.handle_tick(at(90_099));
    assert!(!roll.has_group());
    roll.handle_tick(at(90_100));
    roll.handle_tick(at(900_000));
    let told = disk.write(roll.take_group(0));
    assert_eq!(told, ["Presence - up>missing"]);
    let mut roll = disk.restore(at(0));
    assert_eq!(row(&mut roll, "web-1").presence, Presence::Missing);
}

/// A reinstalled host takes the name over before the goodbye of the old one was told.
#[test]
fn a_goodbye_is_told_before_its_slave_is_replaced() {
    let mut disk = Disk::default();
    let (mut roll, _) = left(&mut disk, SlaveGoodbye::default());
    let mut talker = Talker::connect(&mut roll, 2, 9, at(200));
    talker.id = 3;
    let hello = Hello {
        name: "web-1".to_owned(),
        ..talker.hello(1, &[(9, 1)])
    };
    talker.greet(&mut roll, hello, at(300)).unwrap();
    let told = disk.write(roll.take_group(0));
    assert_eq!(
        told,
        ["Enrolled - ->-", "Presence - up>left", "Enrolled - ->-"]
    );
}
