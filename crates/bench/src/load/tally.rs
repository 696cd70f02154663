//! What is counted during a run.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use rollcall_protocol::wire::ErrorCode;
use rustix::io::Errno;
use serde::Serialize;

/// Longest time that the histograms hold in microseconds; longer ones count as this.
const MICROS_MAX: u64 = 3_600_000_000;
/// Significant figures of the histograms: a percentile is off by at most one in a thousand.
const FIGURES: u8 = 3;

/// What can go wrong on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorKind {
    /// ECONNREFUSED: nobody listens there.
    ConnectRefused,
    /// EADDRINUSE (98).
    AddressInUse,
    /// EADDRNOTAVAIL (99): no source port is left, or the source address is not of this host.
    AddressNotAvailable,
    /// ENETUNREACH, EHOSTUNREACH.
    Unreachable,
    /// EMFILE, ENFILE.
    TooManyFiles,
    /// ECONNRESET, EPIPE.
    Reset,
    /// No answer in time.
    Timeout,
    /// The end of the stream where more was owed.
    ClosedByMaster,
    /// An Error frame.
    RefusedByMaster,
    /// Bytes that are no frame of the protocol.
    BadFrame,
    /// An ack of something that was never sent.
    BadAck,
    /// The master no longer knows what it has acked.
    Forgotten,
    /// An answer that acks nothing and refuses nothing: the question was taken for an older one.
    NotTaken,
    /// Any other error of the operating system.
    Other,
}

impl ErrorKind {
    /// Whether the master broke the protocol or a promise: no run with such an error is a good one.
    pub(crate) fn is_violation(self) -> bool {
        matches!(self, Self::BadFrame | Self::BadAck | Self::Forgotten)
    }

    /// What may help, where something does.
    pub(crate) fn hint(self) -> Option<&'static str> {
        match self {
            Self::ConnectRefused => {
                Some("nobody listened there for a time: is the master running?")
            }
            Self::AddressInUse | Self::AddressNotAvailable => {
                Some("the source ports ran out: give more --source-addresses")
            }
            Self::TooManyFiles => Some("the limit of open files was reached: take fewer slaves"),
            _ => None,
        }
    }
}

impl From<&io::Error> for ErrorKind {
    fn from(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED) => Self::ConnectRefused,
            Some(Errno::ADDRINUSE) => Self::AddressInUse,
            Some(Errno::ADDRNOTAVAIL) => Self::AddressNotAvailable,
            Some(Errno::NETUNREACH | Errno::HOSTUNREACH) => Self::Unreachable,
            Some(Errno::MFILE | Errno::NFILE) => Self::TooManyFiles,
            Some(Errno::CONNRESET | Errno::PIPE) => Self::Reset,
            Some(Errno::TIMEDOUT) => Self::Timeout,
            _ => Self::Other,
        }
    }
}

/// What is counted of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct DatagramTally {
    /// Questions asked, each once.
    pub(crate) questions: u64,
    /// Datagrams that were a question once more.
    pub(crate) sent_again: u64,
    /// Questions without an answer for as long as `--timeout`.
    pub(crate) given_up: u64,
    /// Answers to a question that had been answered before, or given up.
    pub(crate) answers_repeated: u64,
}

/// The counters of one run.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Slaves that got a Welcome at least once.
    pub(crate) welcomed: usize,
    /// Slaves that the master refused for good.
    pub(crate) dead: usize,
    /// Reports made: each is owed an ack.
    pub(crate) made: u64,
    /// Reports acked, each once.
    pub(crate) acked: u64,
    /// Reports of the backlogs that slaves began with, and how many of those are acked. They count
    /// as made and as acked too.
    pub(crate) backlog: u64,
    /// See [`Self::backlog`].
    pub(crate) backlog_acked: u64,
    /// Reports sent again after a broken connection.
    pub(crate) resent: u64,
    /// Acks that told nothing new.
    pub(crate) repeated_acks: u64,
    /// Connections that were begun, those that did not come about included.
    pub(crate) connects: u64,
    /// Those that did not come about, by errno.
    pub(crate) connects_failed: BTreeMap<i32, u64>,
    /// Connections opened after the first one of a pooled slave.
    pub(crate) reconnects: u64,
    /// What became of questions in datagram mode.
    pub(crate) datagrams: DatagramTally,
    /// Errors by kind.
    pub(crate) errors: BTreeMap<ErrorKind, u64>,
    /// Refusals by the master, by their code.
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    /// The text of the first refusal or system error that has no kind of its own.
    pub(crate) first_text: Option<String>,
    latency: Histogram<u64>,
    /// The part of it that was measured while a backlog was being replayed.
    live_latency: Histogram<u64>,
    recovery: Histogram<u64>,
}

impl Tally {
    /// All zero.
    pub(crate) fn new() -> Self {
        Self {
            welcomed: 0,
            dead: 0,
            made: 0,
            acked: 0,
            backlog: 0,
            backlog_acked: 0,
            resent: 0,
            repeated_acks: 0,
            connects: 0,
            connects_failed: BTreeMap::new(),
            reconnects: 0,
            datagrams: DatagramTally::default(),
            errors: BTreeMap::new(),
            refusals: BTreeMap::new(),
            first_text: None,
            latency: histogram(),
            live_latency: histogram(),
            recovery: histogram(),
        }
    }

    /// Reports that are owed an ack.
    pub(crate) fn owed(&self) -> u64 {
        self.made - self.acked
    }

    /// A report was acked `latency` after it was made.
    pub(crate) fn count_ack(&mut self, latency: Duration) {
        self.acked += 1;
        record(&mut self.latency, latency);
        if self.is_replaying() {
            record(&mut self.live_latency, latency);
        }
    }

    /// A slave begins with `count` reports that are owed an ack.
    pub(crate) fn count_backlog(&mut self, count: u64) {
        self.made += count;
        self.backlog += count;
    }

    /// So many reports of a backlog were acked.
    pub(crate) fn count_backlog_acks(&mut self, count: u64) {
        self.acked += count;
        self.backlog_acked += count;
    }

    /// Whether some of a backlog is owed an ack.
    pub(crate) fn is_replaying(&self) -> bool {
        self.backlog_acked < self.backlog
    }

    /// A pooled slave got its first ack `pause` after it lost its connection.
    pub(crate) fn count_recovery(&mut self, pause: Duration) {
        record(&mut self.recovery, pause);
    }

    /// Something went wrong.
    pub(crate) fn count_error(&mut self, kind: ErrorKind) {
        *self.errors.entry(kind).or_default() += 1;
    }

    /// The operating system reported an error.
    pub(crate) fn count_os_error(&mut self, error: &io::Error) {
        let kind = ErrorKind::from(error);
        self.count_error(kind);
        if kind == ErrorKind::Other {
            self.first_text.get_or_insert_with(|| error.to_string());
        }
    }

    /// A connection did not come about.
    pub(crate) fn count_failed_connect(&mut self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or_default();
        *self.connects_failed.entry(errno).or_default() += 1;
    }

    /// The master sent an Error frame.
    pub(crate) fn count_refusal(&mut self, code: ErrorCode, text: &str) {
        self.count_error(ErrorKind::RefusedByMaster);
        *self.refusals.entry(code.as_str_name()).or_default() += 1;
        self.first_text.get_or_insert_with(|| text.to_owned());
    }

    /// Times from a report to its ack.
    pub(crate) fn latency_ms(&self) -> Percentiles {
        Percentiles::of(&self.latency)
    }

    /// The same of the reports that were acked while others replayed; `None` if nobody did.
    pub(crate) fn live_latency_ms(&self) -> Option<Percentiles> {
        (self.backlog > 0).then(|| Percentiles::of(&self.live_latency))
    }

    /// Times from a lost connection to the next ack of the same slave; `None` if none was lost.
    pub(crate) fn recovery_ms(&self) -> Option<Percentiles> {
        (!self.recovery.is_empty()).then(|| Percentiles::of(&self.recovery))
    }
}

/// Points of a distribution in milliseconds; all zero if nothing was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// The median.
    pub(crate) p50: f64,
    /// 99 in 100 are not longer.
    pub(crate) p99: f64,
    /// The longest.
    pub(crate) max: f64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
        Self {
            p50: ms(histogram.value_at_quantile(0.5)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
        }
    }
}

fn histogram() -> Histogram<u64> {
    // The bounds are constants and in range, so the other arm is never taken.
    Histogram::new_with_bounds(1, MICROS_MAX, FIGURES)
        .unwrap_or_else(|error| unreachable!("the bounds of the histogram: {error}"))
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(MICROS_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let mut tally = Tally::new();
        assert_eq!(
            tally.latency_ms(),
            Percentiles {
                p50: 0.0,
                p99: 0.0,
                max: 0.0
            }
        );
        // 1 to 1000 ms, in an order of their own.
        for step in 0..1000_u64 {
            tally.count_ack(Duration::from_millis(step * 7 % 1000 + 1));
        }
        let Percentiles { p50, p99, max } = tally.latency_ms();
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.002;
        assert!(
            near(p50, 500.0) && near(p99, 990.0) && near(max, 1000.0),
            "{p50} {p99} {max}"
        );
        assert_eq!(tally.acked, 1000);
        tally.count_ack(Duration::from_secs(86_400));
        assert!(near(tally.latency_ms().max, 3_600_000.0));
    }

    #[test]
    fn errors_are_told_apart_by_their_number() {
        let kind = |errno: Errno| ErrorKind::from(&io::Error::from(errno));
        assert_eq!(kind(Errno::ADDRINUSE), ErrorKind::AddressInUse);
        assert_eq!(kind(Errno::ADDRNOTAVAIL), ErrorKind::AddressNotAvailable);
        assert_eq!(kind(Errno::CONNREFUSED), ErrorKind::ConnectRefused);
        assert_eq!(kind(Errno::PIPE), ErrorKind::Reset);
        assert_eq!(kind(Errno::ACCESS), ErrorKind::Other);
        let json = serde_json::to_string(&BTreeMap::from([(ErrorKind::AddressNotAvailable, 2)]));
        assert_eq!(json.unwrap(), r#"{"address_not_available":2}"#);
    }
}
