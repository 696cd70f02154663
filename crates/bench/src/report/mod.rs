//! The result of a run: as JSON with stable keys, and as a table for people.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::args::Mode;
use crate::connect_loop::LoopReport;
use crate::load::{DatagramTally, ErrorKind, Outcome, Percentiles};
use crate::ports::PortsReport;
use crate::process::Usage;
use crate::ratio::{float, rate_per_s, ratio};

/// With fewer connections the memory of each can't be told from what the first one cost.
const CONNECTIONS_MIN: u32 = 100;

/// A run against one server.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    /// Reports acked, each once.
    pub(crate) acked: u64,
    /// Acked reports per second.
    pub(crate) rate_per_s: f64,
    /// From the moment a report was made to its ack.
    pub(crate) ack_latency_ms: Percentiles,
    /// The same of live reports that were acked while backlogs were being replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) live_ack_latency_ms: Option<Percentiles>,
    /// Reports of backlogs acked per second, until the last one was or until the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backlog_rate_per_s: Option<f64>,
    /// How long it took until the last report of a backlog was acked; absent if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backlog_done_s: Option<f64>,
    /// Errors by kind; kinds that did not occur are left out.
    pub(crate) errors: BTreeMap<ErrorKind, u64>,
    /// Refusals by the code of the Error frame.
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    /// Reports made and never acked, at the end.
    pub(crate) lost: u64,
    /// Reports made.
    pub(crate) sent: u64,
    /// Reports sent again after a broken connection.
    pub(crate) resent: u64,
    /// Acks that told nothing new.
    pub(crate) repeated_acks: u64,
    /// Connections after the first one of each pooled slave.
    pub(crate) reconnects: u64,
    /// What became of questions, in datagram mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) datagrams: Option<DatagramTally>,
    /// What became of the ports.
    #[serde(flatten)]
    pub(crate) ports: PortsReport,
    /// From a lost connection to the slave's next ack; absent if none was lost.
    pub(crate) recovery_ms: Option<Percentiles>,
    /// Over which the rate was taken.
    pub(crate) elapsed_s: f64,
    /// CPU time of this process per acked report: a client near a whole core measures itself.
    pub(crate) client_cpu_us_per_report: Option<f64>,
    /// The server's CPU time and memory.
    pub(crate) master: ServerReport,
}

/// What the server needed. All absent without its pid, or if that process ended during the run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ServerReport {
    /// CPU time per acked report in microseconds.
    pub(crate) cpu_us_per_report: Option<f64>,
    /// Resident memory at the end.
    pub(crate) rss_kib: Option<u64>,
    /// Resident memory before the first connection.
    pub(crate) rss_kib_before: Option<u64>,
    /// Resident memory per pooled connection, once all were open (in idle mode: at the end). Absent
    /// with fewer than 100 of them.
    pub(crate) kib_per_connection: Option<f64>,
}

/// A bare server beside the master.
#[derive(Debug, Serialize)]
pub(crate) struct BaselineReport {
    #[serde(flatten)]
    pub(crate) run: RunReport,
    /// The master's figures divided by these.
    pub(crate) ratio: Ratio,
}

/// The master's figures divided by those of a bare server.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    /// Of the reports per second.
    pub(crate) rate: Option<f64>,
    /// Of the CPU time per report.
    pub(crate) cpu_us_per_report: Option<f64>,
}

/// Both bare servers.
#[derive(Debug, Serialize)]
pub(crate) struct Baselines {
    /// tokio, memory only.
    pub(crate) echo: BaselineReport,
    /// epoll and a group-committed log.
    pub(crate) group_commit: BaselineReport,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// As asked for.
    pub(crate) mode: Mode,
    /// As asked for.
    pub(crate) slaves: u32,
    /// As asked for.
    pub(crate) in_flight: u32,
    /// As asked for.
    pub(crate) payload_bytes: usize,
    /// As asked for: reports per slave and second.
    pub(crate) rate: Option<f64>,
    /// As asked for: reports that each slave began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<u64>,
    /// As asked for: slaves that reported live meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) live_slaves: Option<u32>,
    /// Against the master.
    #[serde(flatten)]
    pub(crate) run: RunReport,
    /// The bare loop of connections, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect_loop: Option<LoopReport>,
    /// Against the bare servers, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<Baselines>,
}

/// The server's usage at the moments that count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples {
    /// Before the first connection.
    pub(crate) before: Option<Usage>,
    /// With all connections open and before the first report.
    pub(crate) opened: Option<Usage>,
    /// After the last ack, with the connections still open.
    pub(crate) finished: Option<Usage>,
}

impl Samples {
    fn cpu_us_per_report(&self, reports: u64) -> Option<f64> {
        let (opened, finished) = self.opened.zip(self.finished)?;
        let cpu = finished.cpu.checked_sub(opened.cpu)?;
        ratio(cpu.as_secs_f64() * 1e6, float(reports))
    }

    fn kib_per_connection(&self, connections: u32, idle: bool) -> Option<f64> {
        if connections < CONNECTIONS_MIN {
            return None;
        }
        let with = if idle { self.finished } else { self.opened };
        let (before, with) = self.before.zip(with)?;
        ratio(
            float(with.rss_kib.saturating_sub(before.rss_kib)),
            connections.into(),
        )
    }
}

impl RunReport {
    /// Puts together what was counted and what was sampled. `connections` stood at the start.
    pub(crate) fn new(
        outcome: &Outcome,
        ports: PortsReport,
        server: &Samples,
        client: &Samples,
        connections: u32,
        idle: bool,
    ) -> Self {
        let Outcome { tally, elapsed, .. } = outcome;
        let acked = tally.acked;
        Self {
            acked,
            rate_per_s: rate_per_s(acked, *elapsed),
            ack_latency_ms: tally.latency_ms(),
            live_ack_latency_ms: tally.live_latency_ms(),
            backlog_rate_per_s: (tally.backlog > 0).then(|| {
                rate_per_s(
                    tally.backlog_acked,
                    outcome.backlog_done.unwrap_or(*elapsed),
                )
            }),
            backlog_done_s: outcome.backlog_done.map(|done| done.as_secs_f64()),
            errors: tally.errors.clone(),
            refusals: tally.refusals.clone(),
            lost: tally.owed(),
            sent: tally.made,
            resent: tally.resent,
            repeated_acks: tally.repeated_acks,
            reconnects: tally.reconnects,
            datagrams: (tally.datagrams.questions > 0).then_some(tally.datagrams),
            ports,
            recovery_ms: tally.recovery_ms(),
            elapsed_s: elapsed.as_secs_f64(),
            client_cpu_us_per_report: client.cpu_us_per_report(acked),
            master: ServerReport {
                cpu_us_per_report: server.cpu_us_per_report(acked),
                rss_kib: server.finished.map(|usage| usage.rss_kib),
                rss_kib_before: server.before.map(|usage| usage.rss_kib),
                kib_per_connection: server.kib_per_connection(connections, idle),
            },
        }
    }

    /// Why this run was not a good one; `None` if it was.
    pub(crate) fn fault(&self, allow_errors: bool) -> Option<String> {
        let count = |kind: &ErrorKind| self.errors.get(kind).copied().unwrap_or(0);
        let violated = self.errors.keys().filter(|kind| kind.is_violation());
        let violations: u64 = violated.map(&count).sum();
        let refused = count(&ErrorKind::RefusedByMaster);
        if self.lost > 0 {
            Some(format!(
                "{} of {} reports were never acked",
                self.lost, self.sent
            ))
        } else if violations > 0 {
            Some(format!("the master broke the protocol {violations} times"))
        } else if refused > 0 && !allow_errors {
            Some(format!("the master refused {refused} connections"))
        } else {
            None
        }
    }

    /// The master's run divided by this one.
    pub(crate) fn ratio_of(&self, master: &Self) -> Ratio {
        let (own, its) = (
            self.master.cpu_us_per_report,
            master.master.cpu_us_per_report,
        );
        Ratio {
            rate: ratio(master.rate_per_s, self.rate_per_s),
            cpu_us_per_report: its.zip(own).and_then(|(its, own)| ratio(its, own)),
        }
    }
}

impl Report {
    /// For people: a column per server.
    pub(crate) fn table(&self) -> String {
        let mut columns = vec![("master", &self.run, None)];
        if let Some(baselines) = &self.baseline {
            let Baselines { echo, group_commit } = baselines;
            columns.push(("bare echo", &echo.run, Some(&echo.ratio)));
            columns.push((
                "bare group commit",
                &group_commit.run,
                Some(&group_commit.ratio),
            ));
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        let header = columns.iter().map(|(name, ..)| (*name).to_owned());
        table.set_header(std::iter::once(String::new()).chain(header));
        for (label, cell) in ROWS {
            let cells: Vec<_> = columns
                .iter()
                .map(|(_, run, ratio)| cell(run, *ratio))
                .collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                table.add_row(std::iter::once((*label).to_owned()).chain(cells));
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = table.trim_fmt();
        if let Some(bare) = &self.connect_loop {
            text.push_str(&format!(
                "\nbare loop of connections: {} answered, {:.0}/s; failed connects: {}; left TIME_WAIT: {}; master/this: {}",
                bare.answered,
                bare.rate_per_s,
                failed_connects(&bare.ports),
                percent(bare.ports.time_wait_share),
                optional(bare.ratio),
            ));
        }
        for kind in self.run.errors.keys() {
            if let Some(hint) = kind.hint() {
                text.push_str(&format!("\n{}: {hint}", name_of(*kind)));
            }
        }
        if self.run.datagrams.is_some_and(|all| all.sent_again > 0) {
            text.push_str("\nquestions sent again: ");
            text.push_str(SENT_AGAIN_HINT);
        }
        text
    }
}

/// Why that may be, and what may help.
const SENT_AGAIN_HINT: &str = "datagrams were lost, or the master dropped what was more than its \
    [limits] datagram_rate and datagram_burst allow of one address: see rollcall_datagrams_limited_total \
    in its metrics, and give more --source-addresses or raise the limits";

type Cell = fn(&RunReport, Option<&Ratio>) -> String;

/// The lines of the table. A line whose cells are all empty is left out.
const ROWS: &[(&str, Cell)] = &[
    ("reports acked", |run, _| run.acked.to_string()),
    ("reports lost", |run, _| run.lost.to_string()),
    ("reports/s", |run, _| format!("{:.0}", run.rate_per_s)),
    ("ack latency p50, ms", |run, _| {
        format!("{:.3}", run.ack_latency_ms.p50)
    }),
    ("ack latency p99, ms", |run, _| {
        format!("{:.3}", run.ack_latency_ms.p99)
    }),
    ("ack latency max, ms", |run, _| {
        format!("{:.3}", run.ack_latency_ms.max)
    }),
    ("live ack latency during the replay p50, ms", |run, _| {
        optional(run.live_ack_latency_ms.map(|times| times.p50))
    }),
    ("live ack latency during the replay p99, ms", |run, _| {
        optional(run.live_ack_latency_ms.map(|times| times.p99))
    }),
    ("live ack latency during the replay max, ms", |run, _| {
        optional(run.live_ack_latency_ms.map(|times| times.max))
    }),
    ("backlog reports/s", |run, _| {
        optional(run.backlog_rate_per_s)
    }),
    ("backlog done after, s", |run, _| {
        optional(run.backlog_done_s)
    }),
    ("server CPU per report, us", |run, _| {
        optional(run.master.cpu_us_per_report)
    }),
    ("client CPU per report, us", |run, _| {
        optional(run.client_cpu_us_per_report)
    }),
    ("server RSS, KiB", |run, _| {
        run.master
            .rss_kib
            .map_or_else(String::new, |kib| kib.to_string())
    }),
    ("KiB per connection", |run, _| {
        optional(run.master.kib_per_connection)
    }),
    ("master/this: reports/s", |_, ratio| {
        optional(ratio.and_then(|ratio| ratio.rate))
    }),
    ("master/this: CPU", |_, ratio| {
        optional(ratio.and_then(|ratio| ratio.cpu_us_per_report))
    }),
    ("connects", |run, _| run.ports.connects.to_string()),
    ("failed connects by errno", |run, _| {
        failed_connects(&run.ports)
    }),
    ("connections that left TIME_WAIT here", |run, _| {
        percent(run.ports.time_wait_share)
    }),
    ("reconnects", |run, _| unless_zero(run.reconnects)),
    ("recovery p50, ms", |run, _| {
        optional(run.recovery_ms.map(|times| times.p50))
    }),
    ("recovery max, ms", |run, _| {
        optional(run.recovery_ms.map(|times| times.max))
    }),
    ("reports sent again", |run, _| unless_zero(run.resent)),
    ("questions", |run, _| counted(run, |all| all.questions)),
    ("questions sent again", |run, _| {
        counted(run, |all| all.sent_again)
    }),
    ("questions given up", |run, _| {
        counted(run, |all| all.given_up)
    }),
    ("answers twice or too late", |run, _| {
        counted(run, |all| all.answers_repeated)
    }),
    ("errors", |run, _| {
        listed(
            run.errors
                .iter()
                .map(|(kind, count)| (name_of(*kind), *count)),
        )
    }),
    ("refusals", |run, _| {
        listed(
            run.refusals
                .iter()
                .map(|(code, count)| ((*code).to_owned(), *count)),
        )
    }),
];

fn optional(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.2}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{:.2}%", share * 100.0))
}

fn failed_connects(ports: &PortsReport) -> String {
    let failed = ports.connects_failed.iter();
    let text = listed(failed.map(|(errno, count)| (errno.to_string(), *count)));
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}

fn counted(run: &RunReport, count: fn(&DatagramTally) -> u64) -> String {
    let all = run.datagrams.as_ref();
    all.map_or_else(String::new, |all| count(all).to_string())
}

fn unless_zero(value: u64) -> String {
    if value == 0 {
        String::new()
    } else {
        value.to_string()
    }
}

fn listed(counts: impl Iterator<Item = (String, u64)>) -> String {
    let counts: Vec<_> = counts
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    counts.join(", ")
}

/// The kind as JSON names it.
fn name_of(kind: ErrorKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{kind:?}"),
    }
}

#[cfg(test)]
mod tests;
