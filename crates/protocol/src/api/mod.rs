//! What the master tells readers over HTTP, as JSON: the rows of the roll and of the history.
//!
//! The master serialises these and the command line reads them, so a field is written down once.
//! Times are by the master's clock unless a field says otherwise. In JSON they are RFC 3339 texts in
//! UTC with milliseconds, in memory milliseconds since 1970-01-01T00:00:00Z.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

mod rfc3339;
mod words;

/// What the master sees of a slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Known, and no report yet.
    Expected,
    /// Reporting in time.
    Up,
    /// Its next report is overdue.
    Late,
    /// No report for so long that it counts as gone.
    Missing,
    /// It said goodbye.
    Left,
}

/// What a slave, or one of its checks, says of itself. From best to worst: ok, warning, unknown,
/// critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is well.
    Ok,
    /// A warning threshold is crossed.
    Warning,
    /// A critical threshold is crossed.
    Critical,
    /// The check itself could not tell.
    Unknown,
}

/// How a slave uses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One long-lived connection.
    Pooled,
    /// Connect, send, ack, close.
    PerMessage,
    /// None: a datagram, and one as the answer.
    Datagram,
}

/// A row of `GET /v1/slaves` and of `rollcall ls --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlaveRow {
    /// Its name.
    pub name: String,
    /// Its identity: 32 hexadecimal digits.
    pub id: String,
    /// What the master sees.
    pub presence: Presence,
    /// What the slave said last; absent before its first report.
    pub health: Option<Health>,
    /// Since when presence and health are what they are.
    #[serde(rename = "since", with = "rfc3339")]
    pub since_ms: i64,
    /// When the newest live report was read; absent before the first.
    #[serde(rename = "last_seen", with = "rfc3339::option")]
    pub last_seen_ms: Option<i64>,
    /// The interval that it announced, in milliseconds.
    pub interval_ms: u32,
    /// Its newest stream: 16 hexadecimal digits.
    pub stream: String,
    /// The highest durable sequence of that stream.
    pub sequence: u64,
    /// Reports applied since it was enrolled, over all streams, each once.
    pub applied: u64,
    /// Reports that came again and were not applied.
    pub duplicates: u64,
    /// Reports that the slave had to drop and told of.
    pub gaps: u64,
    /// The master's clock minus the slave's, in milliseconds; absent if not measured.
    pub clock_offset_ms: Option<i64>,
    /// How it connects.
    pub mode: Mode,
    /// Its address and port as last seen.
    pub peer: Option<String>,
    /// Since when its present connection stands; absent without one.
    #[serde(rename = "connected_since", with = "rfc3339::option")]
    pub connected_since_ms: Option<i64>,
    /// Connections after the first one since it was enrolled (pooled mode).
    pub reconnects: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// `GET /v1/slaves/{name}`: the row, and what the newest report said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlaveDetail {
    /// The row of the roll.
    #[serde(flatten)]
    pub row: SlaveRow,
    /// The version of its agent.
    pub agent_version: String,
    /// When the newest report was taken, by the slave's clock.
    #[serde(rename = "report_time", with = "rfc3339::option")]
    pub report_time_ms: Option<i64>,
    /// The newest result of each check.
    pub checks: Vec<CheckRow>,
}

/// The newest result of one check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckRow {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: Health,
    /// Its line for people.
    pub text: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u32,
    /// When it ended, by the slave's clock.
    #[serde(rename = "time", with = "rfc3339")]
    pub time_ms: i64,
    /// What it measured.
    pub metrics: Vec<MetricRow>,
}

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Its name.
    pub name: String,
    /// Its value; absent if it is not a finite number, which JSON can't say.
    pub value: Option<f64>,
    /// As in Nagios performance data: "s", "%", "B", "c", or empty.
    pub unit: String,
}

/// What kind of change an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A slave that was not known before.
    Enrolled,
    /// Its presence changed.
    Presence,
    /// Its health changed.
    Health,
    /// A check's state changed; `subject` names the check.
    Check,
    /// Reports were lost, as the slave's receipt tells; `from` and `to` are the times of origin of
    /// the first and the last of them, if they are known.
    Gap,
    /// Two slaves claim one id or one name.
    Conflict,
    /// Sequences ran backwards and the slave was told to start a new stream.
    Resync,
    /// The slave's process started anew: its stream changed.
    Restart,
    /// The slave has another name than before.
    Renamed,
    /// The master started.
    MasterStart,
    /// The master could not store reports for a while; `from` and `to` say from when to when.
    /// Recorded when it could again.
    Degraded,
}

/// A row of `GET /v1/events` and of `rollcall events --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Grows with every event that the master records.
    pub id: i64,
    /// When it happened: the time of origin.
    #[serde(rename = "time", with = "rfc3339")]
    pub time_ms: i64,
    /// When the master recorded it.
    #[serde(rename = "recorded", with = "rfc3339")]
    pub recorded_ms: i64,
    /// What kind of change.
    pub kind: EventKind,
    /// The slave's name; absent for the master's own events.
    pub slave: Option<String>,
    /// What it is about within the slave: the check's name.
    pub subject: Option<String>,
    /// The state before; absent if there was none. Of what lasted: when it began (RFC 3339, UTC).
    pub from: Option<String>,
    /// The state after. Of what lasted: when it ended.
    pub to: Option<String>,
    /// A line for people.
    pub text: String,
    /// Whether it was told from the backlog, after the fact.
    pub replayed: bool,
}

/// `GET /v1/slaves`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlaveList {
    /// The rows, by name.
    pub slaves: Vec<SlaveRow>,
}

/// `GET /v1/events`: oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventList {
    /// The events.
    pub events: Vec<EventRow>,
}

/// `GET /v1/slaves/{name}/history`: a stretch of one slave's past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlaveHistory {
    /// The slave's name.
    pub name: String,
    /// The stretch begins here …
    #[serde(rename = "since", with = "rfc3339")]
    pub since_ms: i64,
    /// … and ends before this.
    #[serde(rename = "until", with = "rfc3339")]
    pub until_ms: i64,
    /// What changed, by time of origin, with gaps in their place. A gap that reaches into the
    /// stretch from before is among them.
    pub events: Vec<EventRow>,
    /// Whether there are more events, older than these.
    pub events_cut: bool,
    /// The newest reports that the master remembers, by time of origin. They are kept in memory, up
    /// to a number and a size.
    pub reports: Vec<ReportRow>,
}

/// One report as it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportRow {
    /// When it was taken, by the slave's clock.
    #[serde(rename = "time", with = "rfc3339")]
    pub time_ms: i64,
    /// Its stream: 16 hexadecimal digits.
    pub stream: String,
    /// Its sequence in that stream.
    pub sequence: u64,
    /// The worst state of its checks.
    pub health: Health,
    /// What each check said.
    pub checks: Vec<CheckRow>,
}

/// The body of an HTTP answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// What is wrong and what to do.
    pub error: String,
}

/// `GET /readyz`, with 200 or 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether reports are being stored and acked.
    pub ready: bool,
    /// Why not; absent when ready.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_and_read_back() {
        let mut event = EventRow {
            id: 1,
            time_ms: 1_795_322_594_406,
            recorded_ms: -1,
            kind: EventKind::Presence,
            slave: None,
            subject: None,
            from: None,
            to: None,
            text: String::new(),
            replayed: false,
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["time"], "2026-11-22T04:43:14.406Z");
        assert_eq!(json["recorded"], "1969-12-31T23:59:59.999Z");
        assert_eq!(serde_json::from_value::<EventRow>(json).unwrap(), event);
        // Whatever a slave's clock says, the row can be shown.
        event.time_ms = i64::MAX;
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["time"], "9999-12-30T22:00:00.999Z");
    }
}
