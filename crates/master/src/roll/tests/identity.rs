//! One id, several processes: successors are welcome at once, copies are found out, and the process
//! that was there first never notices.

use super::*;

/// A process of the slave 1. `previous` are the streams of the processes before it.
struct Process {
    talker: Talker,
    previous: Vec<u64>,
    mode: Mode,
    next: u64,
}

impl Process {
    fn new(stream: u64, previous: &[u64], mode: Mode) -> Self {
        Self {
            talker: Talker {
                id: 1,
                stream,
                session: 0,
                slot: 0,
            },
            previous: previous.to_vec(),
            mode,
            next: 1,
        }
    }

    /// Says Hello on a new connection.
    fn greet(&mut self, roll: &mut Roll, session: SessionId, now: Stamp) -> Result<(), Refusal> {
        self.talker.session = session;
        let own = (self.talker.stream, self.next);
        let hello = Hello {
            previous: self.previous.clone(),
            mode: self.mode.into(),
            ..self.talker.hello(self.next, &[own])
        };
        match self.talker.greet(roll, hello, now)? {
            Greeting::Welcome { slot, .. } => self.talker.slot = slot,
            other => panic!("{other:?}"),
        }
        Ok(())
    }

    /// Its next report on the connection it has, as the connection would hand it on.
    fn report(&mut self, roll: &mut Roll, ended: bool, now: Stamp) -> bool {
        let Talker { slot, session, .. } = self.talker;
        if !roll.holds(slot, session) && !roll.hear_elder(slot, session, ended, now) {
            return false;
        }
        let taken = self.talker.report(roll, self.next, 0, "live", now);
        assert_eq!(taken.unwrap(), Taken::Applied);
        self.next += 1;
        true
    }

    /// A message of its own connection, which ends with it.
    fn message(
        &mut self,
        roll: &mut Roll,
        session: SessionId,
        now: Stamp,
    ) -> Result<bool, Refusal> {
        self.greet(roll, session, now)?;
        let taken = self.report(roll, false, now);
        roll.handle_disconnect(self.talker.slot, session);
        Ok(taken)
    }
}

fn conflicts(roll: &mut Roll) -> Vec<String> {
    let group = roll.take_group(0).group;
    let conflicts = group.events.into_iter();
    conflicts
        .filter(|event| event.kind == rollcall_protocol::api::EventKind::Conflict)
        .map(|event| event.text)
        .collect()
}

/// A roll on which the process of stream 7 reports on the connection 1.
fn start(mode: Mode) -> (Roll, Process) {
    let mut roll = Disk::default().restore(at(0));
    let mut first = Process::new(7, &[], mode);
    first.greet(&mut roll, 1, at(0)).unwrap();
    assert!(first.report(&mut roll, false, at(0)));
    if mode == Mode::PerMessage {
        roll.handle_disconnect(first.talker.slot, 1);
    }
    (roll, first)
}

#[test]
fn a_successor_is_welcome_while_the_old_connection_still_looks_open() {
    for mode in [Mode::Pooled, Mode::PerMessage] {
        let (mut roll, _) = start(Mode::Pooled);
        let mut second = Process::new(8, &[7], mode);
        second.greet(&mut roll, 2, at(100)).unwrap();
        assert!(second.report(&mut roll, false, at(100)));
        // Its successor too, which names both.
        let mut third = Process::new(9, &[8, 7], mode);
        third.greet(&mut roll, 3, at(200)).unwrap();
        assert!(third.report(&mut roll, false, at(5000)));
        assert_eq!(conflicts(&mut roll), [""; 0]);
        assert_eq!(row(&mut roll, "web-1").stream, format!("{:016x}", 9));
    }
}

#[test]
fn a_successor_of_a_process_that_never_got_through_is_welcome() {
    let (mut roll, _) = start(Mode::Pooled);
    let mut third = Process::new(9, &[8, 7], Mode::Pooled);
    third.greet(&mut roll, 3, at(200)).unwrap();
    assert_eq!(conflicts(&mut roll), [""; 0]);
}

#[test]
fn what_a_killed_process_had_sent_is_no_sign_of_life() {
    // Its end is there with it, however late both are read ...
    let (mut roll, mut first) = start(Mode::Pooled);
    let mut second = Process::new(8, &[7], Mode::Pooled);
    second.greet(&mut roll, 2, at(100)).unwrap();
    assert!(second.report(&mut roll, false, at(3000)));
    assert!(!first.report(&mut roll, true, at(3500)));
    // ... or it comes right behind the successor's Hello: it is applied, and decides nothing.
    let (mut roll, mut first) = start(Mode::Pooled);
    let mut second = Process::new(8, &[7], Mode::Pooled);
    second.greet(&mut roll, 2, at(100)).unwrap();
    assert!(first.report(&mut roll, false, at(101)));
    assert!(second.report(&mut roll, false, at(102)));
    roll.handle_disconnect(first.talker.slot, 1);
    assert!(second.report(&mut roll, false, at(1000)));
    assert!(roll.holds(second.talker.slot, 2));
    assert_eq!(conflicts(&mut roll), [""; 0]);
}

#[test]
fn the_first_of_two_is_not_disturbed_and_the_second_is_refused() {
    let (mut roll, mut first) = start(Mode::Pooled);
    let mut copy = Process::new(8, &[7], Mode::Pooled);
    copy.greet(&mut roll, 2, at(100)).unwrap();
    assert!(copy.report(&mut roll, false, at(100)));
    for ms in [1000, 2000, 3000, 4000] {
        assert!(first.report(&mut roll, false, at(ms)), "at {ms}");
    }
    assert!(roll.holds(first.talker.slot, 1));
    let told = conflicts(&mut roll);
    assert_eq!(told.len(), 1, "{told:?}");
    for part in ["127.0.0.1:5", "--new-identity", "web-1"] {
        assert!(told[0].contains(part), "{told:?}");
    }
    let shown = row(&mut roll, "web-1");
    assert_eq!((shown.stream, shown.sequence), (format!("{:016x}", 7), 5));
    // The copy's connection is over, and so is that of its next process.
    assert!(!copy.report(&mut roll, false, at(4100)));
    let refusal = copy.greet(&mut roll, 3, at(4200)).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::IdConflict);
    assert!(refusal.retry_after.is_some() && refusal.text.contains("--new-identity"));
    let mut next = Process::new(9, &[8, 7], Mode::Pooled);
    next.greet(&mut roll, 4, at(4300)).unwrap_err();
    // A restart of the first is still one.
    let mut successor = Process::new(10, &[7], Mode::Pooled);
    successor.greet(&mut roll, 5, at(4400)).unwrap();
    assert!(successor.report(&mut roll, false, at(4400)));
    copy.greet(&mut roll, 6, at(4500)).unwrap_err();
    // When it is late, the copy may have the slave; when it is back, it has it again.
    roll.handle_tick(at(6000));
    copy.greet(&mut roll, 7, at(6100)).unwrap();
    assert!(copy.report(&mut roll, false, at(6100)));
    assert!(copy.report(&mut roll, false, at(7500)));
    assert!(successor.report(&mut roll, false, at(8200)));
    assert!(roll.holds(successor.talker.slot, 5));
    copy.greet(&mut roll, 8, at(8300)).unwrap_err();
}

#[test]
fn copies_that_send_each_message_by_itself_are_found_out() {
    for mode in [Mode::PerMessage, Mode::Pooled] {
        let (mut roll, mut first) = start(Mode::PerMessage);
        let mut copy = Process::new(8, &[7], mode);
        copy.greet(&mut roll, 2, at(500)).unwrap();
        assert!(copy.report(&mut roll, false, at(500)));
        if mode == Mode::PerMessage {
            roll.handle_disconnect(copy.talker.slot, 2);
        }
        assert!(first.message(&mut roll, 3, at(1000)).unwrap(), "{mode:?}");
        assert_eq!(conflicts(&mut roll), [""; 0], "it may have been killed");
        assert!(first.message(&mut roll, 4, at(2000)).unwrap());
        assert!(first.message(&mut roll, 5, at(3000)).unwrap());
        assert_eq!(conflicts(&mut roll).len(), 1);
        assert!(!copy.report(&mut roll, false, at(3050)));
        for session in 6..9 {
            let refusal = copy.message(&mut roll, session, at(3100)).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::IdConflict);
        }
        assert!(first.message(&mut roll, 9, at(4000)).unwrap());
        let shown = row(&mut roll, "web-1");
        assert_eq!((shown.stream, shown.sequence), (format!("{:016x}", 7), 5));
    }
}

#[test]
fn a_per_message_slave_may_be_restarted_at_any_time() {
    let (mut roll, _) = start(Mode::PerMessage);
    let mut streams = vec![7];
    for stream in 8..30 {
        let now = at(100 * stream);
        let mut next = Process::new(stream, &streams, Mode::PerMessage);
        assert!(next.message(&mut roll, stream, now).unwrap());
        streams.insert(0, stream);
        streams.truncate(8);
    }
    assert_eq!(conflicts(&mut roll), [""; 0]);
}

#[test]
fn two_processes_are_found_out_again_after_a_restart_of_the_master() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let mut first = Process::new(7, &[], Mode::Pooled);
    first.greet(&mut roll, 1, at(0)).unwrap();
    assert!(first.report(&mut roll, false, at(0)));
    disk.write(roll.take_group(0));
    let mut roll = disk.restore(at(1000));
    // The copy is back before the first.
    let mut copy = Process::new(8, &[7], Mode::Pooled);
    copy.greet(&mut roll, 2, at(1100)).unwrap();
    assert!(copy.report(&mut roll, false, at(1100)));
    first.greet(&mut roll, 3, at(1200)).unwrap();
    for ms in [1200, 2200, 3200] {
        assert!(first.report(&mut roll, false, at(ms)));
    }
    assert!(roll.holds(first.talker.slot, 3));
    assert_eq!(conflicts(&mut roll).len(), 1);
    copy.greet(&mut roll, 4, at(3300)).unwrap_err();
}

#[test]
fn one_resync_is_told_once_and_is_no_restart() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let mut slave = Process::new(7, &[], Mode::Pooled);
    slave.greet(&mut roll, 1, at(0)).unwrap();
    assert!(slave.report(&mut roll, false, at(0)));
    disk.write(roll.take_group(0));
    for session in [2, 3] {
        slave.talker.session = session;
        let hello = slave.talker.hello(1, &[(7, 1)]);
        let greeting = slave.talker.greet(&mut roll, hello, at(10)).unwrap();
        assert_eq!(greeting, Greeting::Resync { applied: 1 });
    }
    let mut again = Process::new(8, &[7], Mode::Pooled);
    again.greet(&mut roll, 4, at(20)).unwrap();
    assert!(again.report(&mut roll, false, at(20)));
    assert_eq!(disk.write(roll.take_group(0)), ["Resync - ->-"]);
}
