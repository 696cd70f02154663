//! The master's end of one connection: which message may come when, and what fields may say.
//!
//! ```text
//!            Hello                    SlaveGoodbye, or the last frame
//!  ┌────────┐ in time ┌──────┐        that Hello announced (per message) ┌──────────┐
//!  │ Silent │ ──────> │ Open │ ────────────────────────────────────────> │ Complete │
//!  └────────┘         └──────┘                                           └──────────┘
//!      │ the deadline    │ anything out of turn or out of range; per message: the deadline
//!      └────────────> Refusal <── the caller writes it, shuts down its side, drains, closes
//! ```
//!
//! A session in `Complete` is closed by the master as soon as its last ack is written: the master
//! closes first, so that TIME_WAIT never takes a port of the slave's (docs/protocol.md).

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use crate::Moment;
use crate::limits::{
    AGENT_VERSION_BYTES_MAX, CHECK_NAME_BYTES_MAX, CHECK_TEXT_BYTES_MAX, CHECKS_MAX, ID_BYTES,
    INTERVAL_MAX, INTERVAL_MIN, LABEL_BYTES_MAX, LABELS_MAX, PER_MESSAGE_FRAMES_MAX, PREVIOUS_MAX,
    STREAMS_MAX, VERSION_MAX, VERSION_MIN,
};
use crate::name;
use crate::session::Refusal;
use crate::wire::{
    ErrorCode, Gap, Hello, Mode, Report, SlaveGoodbye, Status, ToMaster, to_master::Kind,
};

/// A message that was in turn and in range; what it means is the roll's to decide.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The session is open.
    Opened(Box<Hello>),
    /// One report.
    Report(Report),
    /// A loss receipt.
    Gap(Gap),
    /// The slave leaves on purpose.
    Goodbye(SlaveGoodbye),
    /// A kind of message that a newer minor version has and this one skips.
    Skipped,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct MasterSession {
    phase: Phase,
    /// When Hello and, in per-message mode, all that it announced must have come.
    until: Moment,
}

#[derive(Debug)]
enum Phase {
    Silent,
    Open {
        /// The streams that Hello announced.
        streams: Box<[u64]>,
        /// Frames still to come in per-message and datagram mode.
        frames_left: Option<u32>,
    },
    Complete,
}

impl MasterSession {
    /// A connection that was accepted at `now` and has said nothing yet.
    pub fn new(now: Moment, hello_timeout: Duration) -> Self {
        Self {
            phase: Phase::Silent,
            until: now + hello_timeout,
        }
    }

    /// A pooled session that another process has opened, with the streams that its Hello announced.
    pub fn resume(streams: Vec<u64>) -> Self {
        Self {
            phase: Phase::Open {
                streams: streams.into_boxed_slice(),
                frames_left: None,
            },
            until: Moment::ZERO,
        }
    }

    /// Whether Hello has come.
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Silent)
    }

    /// Whether nothing more is expected from the slave: ack what is due, then close.
    pub fn is_complete(&self) -> bool {
        matches!(self.phase, Phase::Complete)
    }

    /// When [`Self::handle_timeout`] must be called if nothing has come until then.
    pub fn deadline(&self) -> Option<Moment> {
        match self.phase {
            Phase::Silent
            | Phase::Open {
                frames_left: Some(_),
                ..
            } => Some(self.until),
            Phase::Open { .. } | Phase::Complete => None,
        }
    }

    /// The deadline may have passed.
    ///
    /// # Errors
    /// A [`Refusal`] if no Hello has come in time, or not all that a per-message one announced.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), Refusal> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        let text = match self.phase {
            Phase::Silent => "no Hello in time; is this a Rollcall slave?",
            _ => "not all frames that Hello announced have come in time",
        };
        // The network may be slow today: zero leaves it to the slave's own backoff.
        Err(Refusal::for_now(ErrorCode::Timeout, text, Duration::ZERO))
    }

    /// Takes one message.
    ///
    /// # Errors
    /// A [`Refusal`] that says which field or turn was wrong; the connection is to be ended.
    pub fn handle_message(&mut self, message: ToMaster) -> Result<Step, Refusal> {
        match (message.kind, &self.phase) {
            (Some(Kind::Hello(hello)), Phase::Silent) => self.handle_hello(hello),
            (_, Phase::Silent) => Err(out_of_turn("the first frame must be Hello")),
            (_, Phase::Complete) => Err(out_of_turn("a frame after the last one")),
            (Some(Kind::Hello(_)), _) => Err(out_of_turn("a second Hello")),
            (Some(Kind::Report(report)), _) => {
                check_report(&report)?;
                self.count_frame(report.stream)?;
                Ok(Step::Report(report))
            }
            (Some(Kind::Gap(gap)), _) => {
                check_gap(&gap)?;
                self.count_frame(gap.stream)?;
                Ok(Step::Gap(gap))
            }
            (Some(Kind::Goodbye(goodbye)), _) => {
                self.phase = Phase::Complete;
                Ok(Step::Goodbye(goodbye))
            }
            (None, _) => Ok(Step::Skipped),
        }
    }

    fn handle_hello(&mut self, hello: Hello) -> Result<Step, Refusal> {
        check_hello(&hello)?;
        let counted = hello.mode() != Mode::Pooled;
        self.phase = if counted && hello.frames == 0 {
            Phase::Complete
        } else {
            Phase::Open {
                streams: hello.pending.iter().map(|pending| pending.stream).collect(),
                frames_left: counted.then_some(hello.frames),
            }
        };
        Ok(Step::Opened(Box::new(hello)))
    }

    /// One frame of `stream` has come.
    fn count_frame(&mut self, stream: u64) -> Result<(), Refusal> {
        let Phase::Open {
            streams,
            frames_left,
        } = &mut self.phase
        else {
            return Err(out_of_turn("a report outside an open session"));
        };
        if !streams.contains(&stream) {
            return Err(out_of_turn("a stream that Hello.pending did not announce"));
        }
        if let Some(left) = frames_left {
            *left -= 1;
            if *left == 0 {
                self.phase = Phase::Complete;
            }
        }
        Ok(())
    }
}

fn out_of_turn(text: &str) -> Refusal {
    Refusal::for_good(ErrorCode::Protocol, text)
}

fn invalid(text: impl Into<alloc::string::String>) -> Refusal {
    Refusal::for_good(ErrorCode::Invalid, text)
}

/// Refuses unless `holds`; the text is made only then.
fn ensure(holds: bool, text: impl FnOnce() -> alloc::string::String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(invalid(text())) }
}

fn check_hello(hello: &Hello) -> Result<(), Refusal> {
    let (min, max) = (hello.version_min, hello.version_max);
    if min > VERSION_MAX || max < VERSION_MIN {
        let text = format!(
            "the slave speaks protocol versions {min} to {max}, this master {VERSION_MIN} to {VERSION_MAX}: upgrade the older one"
        );
        return Err(Refusal::for_good(ErrorCode::Version, text));
    }
    ensure(hello.slave_id.len() == ID_BYTES, || {
        format!("Hello.slave_id must have {ID_BYTES} bytes")
    })?;
    ensure(name::is_valid(&hello.name), || {
        format!("Hello.name {:?} is not {}", hello.name, name::RULE)
    })?;
    let interval = Duration::from_millis(u64::from(hello.interval_ms));
    ensure((INTERVAL_MIN..=INTERVAL_MAX).contains(&interval), || {
        format!("Hello.interval_ms must be from {INTERVAL_MIN:?} to {INTERVAL_MAX:?}")
    })?;
    ensure(Mode::try_from(hello.mode).is_ok(), || {
        format!("Hello.mode {} is not known to this master", hello.mode)
    })?;
    ensure(hello.frames <= PER_MESSAGE_FRAMES_MAX, || {
        format!("Hello.frames must be at most {PER_MESSAGE_FRAMES_MAX}")
    })?;
    ensure(hello.agent_version.len() <= AGENT_VERSION_BYTES_MAX, || {
        format!("Hello.agent_version must have at most {AGENT_VERSION_BYTES_MAX} bytes")
    })?;
    check_labels(hello)?;
    check_pending(hello)
}

fn check_labels(hello: &Hello) -> Result<(), Refusal> {
    let fits = |text: &str| text.len() <= LABEL_BYTES_MAX;
    let labels = &hello.labels;
    ensure(labels.len() <= LABELS_MAX, || {
        format!("Hello.labels must be at most {LABELS_MAX}")
    })?;
    ensure(
        labels.iter().all(|(key, value)| fits(key) && fits(value)),
        || format!("keys and values of Hello.labels must have at most {LABEL_BYTES_MAX} bytes"),
    )
}

fn check_pending(hello: &Hello) -> Result<(), Refusal> {
    let pending = &hello.pending;
    ensure(is_sequence(hello.next_sequence), || {
        "Hello.next_sequence must be from 1 to 2^63 - 1".into()
    })?;
    ensure(pending.len() <= STREAMS_MAX, || {
        format!("Hello.pending must have at most {STREAMS_MAX} streams")
    })?;
    ensure(hello.previous.len() <= PREVIOUS_MAX, || {
        format!("Hello.previous must have at most {PREVIOUS_MAX} streams")
    })?;
    ensure(
        hello.stream != 0
            && pending
                .last()
                .is_some_and(|last| last.stream == hello.stream),
        || "Hello.stream must not be 0 and must be the last one of Hello.pending".into(),
    )?;
    ensure(
        pending
            .iter()
            .all(|pending| pending.stream != 0 && is_sequence(pending.first)),
        || "Hello.pending: streams are not 0, sequences from 1 to 2^63 - 1".into(),
    )
}

fn check_report(report: &Report) -> Result<(), Refusal> {
    ensure(is_sequence(report.sequence), || {
        "Report.sequence must be from 1 to 2^63 - 1".into()
    })?;
    report.status.as_ref().map_or(Ok(()), check_status)
}

fn check_status(status: &Status) -> Result<(), Refusal> {
    ensure(status.checks.len() <= CHECKS_MAX, || {
        format!("Report.status must have at most {CHECKS_MAX} checks")
    })?;
    for check in &status.checks {
        ensure(
            (1..=CHECK_NAME_BYTES_MAX).contains(&check.name.len())
                && check.text.len() <= CHECK_TEXT_BYTES_MAX,
            || {
                format!(
                    "a check has a name of 1 to {CHECK_NAME_BYTES_MAX} and a text of at most {CHECK_TEXT_BYTES_MAX} bytes"
                )
            },
        )?;
    }
    Ok(())
}

fn check_gap(gap: &Gap) -> Result<(), Refusal> {
    ensure(
        is_sequence(gap.first) && is_sequence(gap.last) && gap.first <= gap.last,
        || "Gap: sequences from 1 to 2^63 - 1, first not after last".into(),
    )
}

/// Sequences fit a signed 64-bit integer, which every store and language has.
fn is_sequence(sequence: u64) -> bool {
    (1..=i64::MAX.unsigned_abs()).contains(&sequence)
}
