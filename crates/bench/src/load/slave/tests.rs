//! The rules of the slave's side, without sockets.

use rollcall_protocol::wire::Mark;

use super::*;

struct Fixture {
    slave: Slave,
    tally: Tally,
    fleet: Fleet,
}

impl Fixture {
    fn new(mode: Mode) -> Self {
        let fleet = Fleet {
            run: "test".to_owned(),
            interval_ms: 1000,
            backoff: BackoffLimits {
                base: Duration::from_millis(50),
                cap: Duration::from_secs(1),
                reset_after: Duration::from_secs(2),
            },
        };
        Self {
            slave: Slave::new(3, mode, fleet.backoff),
            tally: Tally::new(),
            fleet,
        }
    }

    fn make(&mut self, count: usize) {
        for _ in 0..count {
            self.slave.make(at(0), &mut self.tally);
        }
    }

    fn hello(&mut self) -> Hello {
        match self.slave.open(&self.fleet, 0).kind {
            Some(to_master::Kind::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        }
    }

    fn handle(&mut self, kind: to_slave::Kind) -> Result<(), Fault> {
        let message = ToSlave { kind: Some(kind) };
        self.slave.handle(message, at(5), &mut self.tally)
    }

    fn welcome(&mut self, durable: u64) -> Result<(), Fault> {
        let stream = self.slave.stream();
        let marks = vec![Mark {
            stream,
            sequence: durable,
        }];
        self.handle(to_slave::Kind::Welcome(Welcome {
            window: 64,
            marks,
            ..Welcome::default()
        }))
    }

    fn ack(&mut self, sequence: u64) -> Result<(), Fault> {
        let stream = self.slave.stream();
        self.handle(to_slave::Kind::Ack(Ack {
            stream,
            sequence,
            ..Ack::default()
        }))
    }

    fn due(&mut self, limit: u64) -> Vec<u64> {
        self.slave.take_due(limit, &mut self.tally).collect()
    }
}

fn at(ms: u64) -> Moment {
    Moment::new(Duration::from_millis(ms))
}

#[test]
fn never_more_than_the_limit_is_unacked() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(5);
    assert_eq!(fixture.hello().next_sequence, 6);
    fixture.welcome(0).unwrap();
    assert_eq!(fixture.due(2), [1, 2]);
    assert_eq!(fixture.due(2), [0_u64; 0]);
    fixture.ack(1).unwrap();
    assert_eq!(fixture.due(2), [3]);
    fixture.ack(3).unwrap();
    assert_eq!(fixture.due(2), [4, 5]);
    assert_eq!(fixture.tally.resent, 0);
    assert_eq!(fixture.slave.totals(), (5, 3));
}

#[test]
fn what_was_not_acked_is_sent_again_and_counted_once() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(4);
    fixture.hello();
    fixture.welcome(0).unwrap();
    fixture.due(4);
    fixture.ack(1).unwrap();
    fixture.slave.lost(at(1));
    let hello = fixture.hello();
    assert_eq!((hello.pending[0].first, hello.backlog), (2, 3));
    // The ack of 2 was lost on the way, and 3 has been committed meanwhile.
    fixture.welcome(2).unwrap();
    assert_eq!(fixture.due(4), [3, 4]);
    assert_eq!(fixture.tally.resent, 2);
    fixture.ack(4).unwrap();
    fixture.ack(4).unwrap();
    assert_eq!((fixture.tally.acked, fixture.tally.repeated_acks), (4, 1));
    assert_eq!(fixture.tally.owed(), 0);
    assert!(fixture.tally.recovery_ms().is_some());
}

#[test]
fn a_backlog_is_previewed_and_goes_in_order_on_every_connection() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.slave.begin_with(5, &mut fixture.tally);
    assert_eq!(fixture.hello().backlog, 5);
    fixture.welcome(0).unwrap();
    assert_eq!(fixture.slave.take_preview(), Some(5));
    assert_eq!(fixture.slave.take_preview(), None);
    assert_eq!(fixture.due(2), [1, 2]);
    fixture.ack(2).unwrap();
    assert!(fixture.tally.is_replaying());
    fixture.slave.lost(at(1));
    let hello = fixture.hello();
    assert_eq!(
        (hello.next_sequence, hello.backlog, hello.pending[0].first),
        (6, 3, 3)
    );
    fixture.welcome(2).unwrap();
    assert_eq!(fixture.slave.take_preview(), Some(5));
    assert_eq!(fixture.due(9), [3, 4, 5]);
    fixture.ack(5).unwrap();
    assert!(!fixture.tally.is_replaying());
    assert_eq!((fixture.tally.made, fixture.tally.acked), (5, 5));
    assert_eq!(fixture.slave.totals(), (5, 5));
}

#[test]
fn an_ack_may_run_ahead_by_what_an_earlier_connection_sent() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(3);
    fixture.hello();
    fixture.welcome(0).unwrap();
    fixture.due(3);
    fixture.slave.lost(at(1));
    fixture.hello();
    fixture.welcome(0).unwrap();
    fixture.ack(2).unwrap();
    assert_eq!(fixture.due(3), [3]);
}

#[test]
fn an_ack_of_what_was_never_sent_is_a_violation() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(3);
    fixture.hello();
    let violation = Err(Fault::Violation(ErrorKind::BadAck));
    assert_eq!(fixture.ack(1), violation, "before Welcome");
    fixture.welcome(0).unwrap();
    fixture.due(2);
    assert_eq!(fixture.ack(3), violation);
    let foreign = to_slave::Kind::Ack(Ack {
        stream: 0,
        sequence: 1,
        ..Ack::default()
    });
    assert_eq!(fixture.handle(foreign), violation);
    fixture.slave.lost(at(1));
    fixture.hello();
    assert_eq!(fixture.welcome(3), violation);
}

#[test]
fn a_master_that_forgot_is_counted_and_gets_a_gap() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(4);
    fixture.hello();
    fixture.welcome(0).unwrap();
    fixture.due(3);
    fixture.ack(3).unwrap();
    fixture.slave.lost(at(1));
    fixture.hello();
    fixture.welcome(1).unwrap();
    assert_eq!(fixture.tally.errors[&ErrorKind::Forgotten], 1);
    match fixture.slave.take_gap().and_then(|message| message.kind) {
        Some(to_master::Kind::Gap(gap)) => assert_eq!((gap.first, gap.last), (2, 3)),
        other => panic!("{other:?}"),
    }
    assert!(fixture.slave.take_gap().is_none());
    assert_eq!(fixture.due(3), [4]);
}

#[test]
fn after_a_resync_the_rest_goes_into_a_new_stream() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(3);
    fixture.hello();
    fixture.welcome(0).unwrap();
    fixture.due(3);
    fixture.ack(1).unwrap();
    let stream = fixture.slave.stream();
    let resync = to_slave::Kind::Resync(Resync {
        stream,
        sequence: 9,
    });
    assert_eq!(fixture.handle(resync), Err(Fault::Restart));
    fixture.slave.lost(at(1));
    let hello = fixture.hello();
    assert_ne!(hello.stream, stream);
    assert_eq!((hello.next_sequence, hello.pending[0].first), (3, 1));
    fixture.welcome(0).unwrap();
    assert_eq!(fixture.due(3), [1, 2]);
    fixture.ack(2).unwrap();
    assert_eq!(fixture.slave.totals(), (3, 3));
    assert_eq!(fixture.slave.acked(), 2);
}

#[test]
fn after_a_goodbye_nothing_is_sent_and_the_window_told_is_kept() {
    let mut fixture = Fixture::new(Mode::Pooled);
    fixture.make(3);
    fixture.hello();
    fixture.welcome(0).unwrap();
    fixture.due(2);
    let stream = fixture.slave.stream();
    let goodbye = MasterGoodbye {
        marks: vec![Mark {
            stream,
            sequence: 1,
        }],
        back_min_ms: 7000,
        back_max_ms: 8000,
    };
    fixture.handle(to_slave::Kind::Goodbye(goodbye)).unwrap();
    assert_eq!(fixture.due(3), [0_u64; 0]);
    assert!(fixture.slave.done());
    assert_eq!(fixture.tally.acked, 1);
    let pause = fixture.slave.lost(at(1));
    assert!((7000..8000).contains(&pause.as_millis()), "{pause:?}");
    fixture.hello();
    fixture.welcome(1).unwrap();
    assert_eq!(fixture.due(3), [2, 3]);
}

#[test]
fn a_refusal_for_good_ends_a_slave() {
    let mut fixture = Fixture::new(Mode::PerMessage);
    fixture.make(1);
    let error = |retry| wire::Error {
        retry,
        text: "no".to_owned(),
        ..wire::Error::default()
    };
    fixture.hello();
    let refused = fixture.handle(to_slave::Kind::Error(error(true)));
    assert_eq!(refused, Err(Fault::Refused { retry: true }));
    assert!(!fixture.slave.dead());
    fixture.hello();
    let refused = fixture.handle(to_slave::Kind::Error(error(false)));
    assert_eq!(refused, Err(Fault::Refused { retry: false }));
    assert!(fixture.slave.dead());
    assert_eq!(fixture.due(1), [0_u64; 0]);
    assert_eq!(fixture.tally.dead, 1);
    assert_eq!(fixture.tally.errors[&ErrorKind::RefusedByMaster], 2);
}

#[test]
fn a_per_message_slave_is_done_when_all_that_it_sent_is_acked() {
    let mut fixture = Fixture::new(Mode::PerMessage);
    fixture.make(1);
    fixture.hello();
    fixture.due(1);
    assert!(!fixture.slave.done());
    fixture.welcome(0).unwrap();
    assert!(!fixture.slave.done());
    fixture.ack(1).unwrap();
    assert!(fixture.slave.done());
}
