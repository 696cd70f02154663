//! Who is late, missing, left, and who is not.

use rollcall_protocol::wire::SlaveGoodbye;

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

#[test]
fn a_goodbye_is_left_and_not_missing() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    let goodbye = SlaveGoodbye::default();
    let bytes = payload(Kind::Goodbye(goodbye));
    roll.handle_goodbye(talker.slot, &goodbye, &bytes, at(100));
    roll.handle_tick(at(900_000));
    assert_eq!(roll.slaves[0].shown.presence, Presence::Left);
    disk.write(roll.take_group(0));
    assert_eq!(disk.restore(at(0)).slaves[0].shown.presence, Presence::Left);
}
