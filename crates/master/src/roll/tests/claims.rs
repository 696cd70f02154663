//! Who may speak for which slave.

use super::*;

#[test]
fn a_clone_is_refused_while_the_first_answers() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let first = Talker::connect(&mut roll, 1, 7, at(0));
    first.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    let clone = Talker {
        id: 1,
        stream: 8,
        session: 99,
        slot: 0,
    };
    for ms in [10, 20, 30] {
        let refusal = clone
            .greet(&mut roll, clone.hello(1, &[(8, 1)]), at(ms))
            .unwrap_err();
        assert_eq!(refusal.code, ErrorCode::IdConflict);
        assert!(refusal.retry_after.is_some());
    }
    assert!(roll.holds(first.slot, first.session));
    let told = disk.write(roll.take_group(0));
    assert_eq!(
        told.iter()
            .filter(|event| event.starts_with("Conflict"))
            .count(),
        1
    );
    // The first one's connection is gone: it is the same slave, started anew.
    roll.handle_disconnect(first.slot, first.session);
    clone
        .greet(&mut roll, clone.hello(1, &[(8, 1)]), at(40))
        .unwrap();
    assert_eq!(disk.write(roll.take_group(0)), ["Restart - ->-"]);
}

#[test]
fn a_name_belongs_to_who_answers_to_it() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let old = Talker::connect(&mut roll, 1, 7, at(0));
    old.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    let new = Talker {
        id: 2,
        stream: 9,
        session: 5,
        slot: 0,
    };
    let mut hello = new.hello(1, &[(9, 1)]);
    hello.name = "web-1".into();
    let refusal = new.greet(&mut roll, hello.clone(), at(10)).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::NameConflict);
    // The host was reinstalled: the old one is heard of no more.
    roll.handle_tick(at(1500));
    roll.handle_tick(at(3000));
    new.greet(&mut roll, hello, at(4000)).unwrap();
    disk.write(roll.take_group(0));
    let mut restored = disk.restore(at(5000));
    assert_eq!(restored.len(), 1);
    assert_eq!(row(&mut restored, "web-1").id, "02".repeat(16));
}

#[test]
fn sequences_that_run_backwards_are_answered_with_resync() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    for sequence in 1..=5 {
        talker
            .report(&mut roll, sequence, 0, "live", at(sequence))
            .unwrap();
    }
    let restored_vm = talker
        .greet(&mut roll, talker.hello(4, &[(7, 3)]), at(10))
        .unwrap();
    assert_eq!(restored_vm, Greeting::Resync { applied: 5 });
    let told = disk.write(roll.take_group(0));
    assert!(told.contains(&"Resync - ->-".to_owned()), "{told:?}");
    assert_eq!(
        roll.marks(0),
        [Mark {
            stream: 7,
            sequence: 5
        }]
    );
}
