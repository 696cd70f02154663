//! When masters are started, killed and left alone, and what the keeper's own end is.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rollcall_os::exit::{Exit, ExitError};
use rollcall_protocol::Moment;
use rustix::process::Signal;

use super::service::{descriptors_max, end_of};
use super::watch::{Action, Next, SILENCE_MAX, START_MAX, Watch};

fn at(ms: u64) -> Moment {
    Moment::new(Duration::from_millis(ms))
}

fn code(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

fn signal(number: i32) -> ExitStatus {
    ExitStatus::from_raw(number)
}

fn started() -> Watch {
    let mut watch = Watch::new(at(0));
    assert_eq!(watch.poll(at(0)), Some(Action::Start));
    watch.handle_start(at(0));
    watch
}

fn ready(now: Moment) -> Watch {
    let mut watch = started();
    assert_eq!(say(&mut watch, now, "READY=1"), []);
    watch
}

fn say(watch: &mut Watch, now: Moment, word: &str) -> Vec<Signal> {
    watch.handle_word(now, |asked| asked == word)
}

fn again(ms: u64) -> Next {
    Next::Again(Duration::from_millis(ms))
}

#[test]
fn ends_in_a_row_are_followed_by_longer_pauses() {
    let mut watch = started();
    let mut now = at(0);
    for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        assert_eq!(watch.handle_end(now, Some(code(70))), again(pause));
        assert_eq!(watch.poll(now + Duration::from_millis(pause - 1)), None);
        now = now + Duration::from_millis(pause);
        assert_eq!(watch.wake_at(), Some(now));
        assert_eq!(watch.poll(now), Some(Action::Start));
        watch.handle_start(now);
    }
    // Who can't be started at all is nobody who has ended.
    let none = watch.handle_end(now, None);
    assert_eq!(none, again(5000));
    // Who was ready for a while starts anew.
    watch.handle_start(now);
    say(&mut watch, now, "READY=1");
    now = now + Duration::from_secs(10);
    assert_eq!(watch.handle_end(now, Some(signal(9))), again(100));
    watch.handle_start(now);
    assert_eq!(watch.handle_end(now, Some(code(69))), again(100));
    watch.handle_start(now);
    assert_eq!(watch.handle_end(now, Some(code(69))), again(200));
}

#[test]
fn a_restart_on_request_is_no_failure() {
    for _ in 0..3 {
        let mut watch = ready(at(0));
        assert_eq!(watch.handle_end(at(1), Some(code(0))), again(100));
        watch.handle_start(at(0));
        say(&mut watch, at(2), "READY=1");
        assert_eq!(watch.handle_end(at(3), Some(code(0))), again(100));
    }
    // One that was never ready is.
    let mut watch = started();
    watch.handle_end(at(0), Some(code(0)));
    watch.handle_start(at(0));
    assert_eq!(watch.handle_end(at(0), Some(code(0))), again(200));
}

#[test]
fn what_a_person_must_change_ends_it() {
    for fault in [2, 78] {
        assert_eq!(started().handle_end(at(0), Some(code(fault))), Next::Over);
    }
    // The number of a signal is no exit code.
    assert_eq!(started().handle_end(at(0), Some(signal(2))), again(100));
}

#[test]
fn silence_of_a_master_that_was_ready_ends_it() {
    let mut watch = started();
    say(&mut watch, at(1), "STATUS=reading");
    assert_eq!(
        watch.wake_at(),
        Some(at(0) + START_MAX),
        "reading may take long"
    );
    say(&mut watch, at(1000), "READY=1");
    say(&mut watch, at(5000), "WATCHDOG=1");
    let end = at(5000) + SILENCE_MAX;
    assert_eq!(watch.poll(end - Duration::from_millis(1)), None);
    // The keeper itself was stopped: nobody could be heard.
    watch.handle_lag(end);
    assert_eq!(watch.poll(end), None);
    let end = end + SILENCE_MAX;
    let kill = Action::Kill("it was silent for too long");
    assert_eq!(watch.poll(end), Some(kill));
    assert_eq!((watch.poll(end), watch.wake_at()), (None, None));
    // It had been ready for long.
    assert_eq!(watch.handle_end(end, Some(signal(9))), again(100));
}

#[test]
fn while_it_becomes_another_version_it_may_be_silent() {
    let mut watch = ready(at(0));
    say(&mut watch, at(1), "RELOADING=1");
    assert_eq!(watch.wake_at(), Some(at(1) + START_MAX));
    assert!(!watch.handle_signal(Signal::USR1));
    assert_eq!(say(&mut watch, at(99), "READY=1"), [Signal::USR1]);
    assert_eq!(watch.wake_at(), Some(at(99) + SILENCE_MAX));
}

#[test]
fn a_master_that_is_never_ready_is_killed() {
    let mut watch = started();
    let end = at(0) + START_MAX;
    assert_eq!(watch.poll(end - Duration::from_millis(1)), None);
    let kill = Action::Kill("it was not ready in time");
    assert_eq!(watch.poll(end), Some(kill));
    assert_eq!(watch.handle_end(end, Some(signal(9))), again(100));
}

#[test]
fn signals_wait_for_a_master_that_can_take_them() {
    let mut watch = Watch::new(at(0));
    for signal in [Signal::HUP, Signal::USR2, Signal::HUP] {
        assert!(!watch.handle_signal(signal));
    }
    watch.handle_start(at(0));
    let waiting = say(&mut watch, at(1), "READY=1");
    assert_eq!(waiting, [Signal::HUP, Signal::USR2]);
    assert!(watch.handle_signal(Signal::HUP));
    assert_eq!(say(&mut watch, at(2), "READY=1"), []);
}

#[test]
fn an_end_that_was_asked_for_is_over_in_time() {
    let mut watch = Watch::new(at(0));
    assert!(!watch.handle_stop(at(9)), "nobody has to be told");
    let mut watch = ready(at(0));
    assert!(watch.handle_stop(at(500)) && watch.is_stopping());
    assert!(watch.handle_stop(at(900)), "the first word counts");
    assert_eq!(watch.poll(at(499)), None);
    let kill = Action::Kill("it did not end in time");
    assert_eq!(watch.poll(at(500)), Some(kill));
    assert_eq!(watch.handle_end(at(501), Some(signal(9))), Next::Over);
    // It was becoming another version, which does not know.
    let mut watch = started();
    assert!(watch.handle_stop(at(500)));
    assert_eq!(say(&mut watch, at(3), "READY=1"), [Signal::INT]);
    assert_eq!(watch.handle_end(at(4), Some(code(0))), Next::Over);
}

#[test]
fn its_end_is_that_of_its_last_master() {
    let exit = |status, asked| {
        let error = end_of(status, asked).err()?;
        error.downcast_ref::<ExitError>().map(|error| error.exit)
    };
    assert_eq!(exit(code(0), true), None);
    assert_eq!(exit(signal(2), true), None);
    assert_eq!(exit(signal(9), true), Some(Exit::Failure));
    assert_eq!(exit(code(74), true), Some(Exit::Store));
    assert_eq!(exit(code(78), false), Some(Exit::Config));
    assert_eq!(exit(code(2), false), Some(Exit::Usage));
    assert_eq!(exit(code(123), true), Some(Exit::Failure));
}

#[test]
fn the_store_leaves_room_for_what_passes_it_on() {
    assert_eq!(descriptors_max(1024), 52);
    assert_eq!(descriptors_max(100), 25);
    assert_eq!(descriptors_max(1 << 18), 5272);
    assert_eq!(descriptors_max(u64::MAX), 10_032);
}
