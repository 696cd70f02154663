//! One look at a host, as JSON and for people.

use std::collections::BTreeMap;

use rollcall_os::clock;
use serde::Serialize;

use super::capacity::Capacity;
use super::finding::{Finding, Severity, worst};
use super::settings::Settings;
use super::traffic::{Destination, Traffic};
use crate::terminal::escape::escape;
use crate::terminal::output::Look;
use crate::terminal::style::Tone;
use crate::terminal::table::{self, Column, Field};
use crate::terminal::time;
use crate::terminal::wrap::wrap;

/// Columns of text where the output is no terminal, and at most where it is.
const WIDTH: usize = 110;
/// Destinations, and users, that people are shown.
const SHOWN: usize = 8;

/// How much people are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Everything, with what it means.
    Full,
    /// What is not as it should be, and the sockets: it is to fit a screen.
    Brief,
}

/// Everything that was found. The keys stay.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    time_ms: i64,
    kernel: String,
    /// How bad the worst finding is.
    pub(super) worst: Severity,
    pub(super) findings: Vec<Finding>,
    ports: Ports,
    capacity: Capacity,
    states: BTreeMap<&'static str, usize>,
    destinations: Vec<DestinationRow>,
    listeners: Vec<ListenerRow>,
    users: Vec<UserRow>,
}

#[derive(Debug, Serialize)]
struct Ports {
    first: u16,
    last: u16,
    reserved: u32,
    usable: u32,
}

#[derive(Debug, Serialize)]
struct DestinationRow {
    destination: String,
    source: String,
    established: usize,
    time_wait: usize,
    fin_wait: usize,
    close_wait: usize,
    other: usize,
    ports_usable: usize,
    ports_left: usize,
    /// Of the ports in TIME_WAIT: those that a client may have again now.
    ports_reusable: usize,
    owners: Vec<OwnerRow>,
}

#[derive(Debug, Serialize)]
struct OwnerRow {
    owner: String,
    sockets: usize,
}

#[derive(Debug, Serialize)]
struct ListenerRow {
    address: String,
    queue: u32,
    queue_max: u32,
    owner: String,
}

#[derive(Debug, Serialize)]
struct UserRow {
    owner: String,
    pid: Option<u32>,
    unit: Option<String>,
    sockets: usize,
}

impl Report {
    /// Puts it together.
    pub(super) fn new(settings: &Settings, traffic: &Traffic, findings: Vec<Finding>) -> Self {
        let ports = &settings.ports;
        let states = traffic.states.iter();
        let listeners = traffic.listeners.iter().map(|listener| ListenerRow {
            address: listener.address.to_string(),
            queue: listener.queue,
            queue_max: listener.limit,
            owner: listener.owner.clone(),
        });
        let users = traffic.users.iter().map(|user| UserRow {
            owner: user.owner.clone(),
            pid: user.pid,
            unit: user.unit.clone(),
            sockets: user.sockets,
        });
        Self {
            time_ms: clock::wall_ms(),
            kernel: settings.kernel.clone(),
            worst: worst(&findings),
            findings,
            ports: Ports {
                first: ports.range().first,
                last: ports.range().last,
                reserved: ports.reserved(),
                usable: ports.usable(),
            },
            capacity: Capacity::of(settings),
            states: states
                .map(|(state, count)| (state.name(), *count))
                .collect(),
            destinations: traffic
                .destinations
                .iter()
                .map(DestinationRow::new)
                .collect(),
            listeners: listeners.collect(),
            users: users.collect(),
        }
    }

    /// "1 critical, 2 warnings" of what is not as it should be; none if all is.
    pub(super) fn complaint(&self) -> Option<String> {
        let count = |severity| {
            let all = self.findings.iter();
            all.filter(|finding| finding.severity == severity).count()
        };
        let warnings = match count(Severity::Warning) {
            1 => "1 warning".to_owned(),
            count => format!("{count} warnings"),
        };
        match (count(Severity::Critical), self.worst) {
            (_, Severity::Ok | Severity::Notice) => None,
            (0, _) => Some(warnings),
            (critical, _) => Some(format!("{critical} critical, {warnings}")),
        }
    }

    /// For people.
    pub(super) fn lines(&self, detail: Detail, look: Look) -> Vec<String> {
        let mut page = Page::new(detail, look);
        let title = format!(
            "rollcall doctor  {}  Linux {}",
            time::local(self.time_ms),
            self.kernel
        );
        page.line(&title, Tone::Strong);
        let is_good = |finding: &&Finding| finding.severity == Severity::Ok;
        let (good, rest): (Vec<_>, Vec<_>) = self.findings.iter().partition(is_good);
        for finding in rest {
            page.finding(finding);
        }
        match detail {
            Detail::Full => good.into_iter().for_each(|finding| page.finding(finding)),
            Detail::Brief => page.line(&format!("{:<10}{} more", "ok", good.len()), Tone::Good),
        }
        page.line("", Tone::Plain);
        page.text(&self.states_line(), "", "    ", Tone::Plain);
        self.destinations_on(&mut page);
        self.users_on(&mut page);
        if detail == Detail::Full && self.findings.iter().any(is_sysctl) {
            page.line("", Tone::Plain);
            let text = "What `sysctl -w` sets lasts until the next boot: write it to \
                        /etc/sysctl.d/90-local.conf as well to keep it.";
            page.text(text, "", "", Tone::Faint);
        }
        page.lines
    }

    fn states_line(&self) -> String {
        if self.states.is_empty() {
            return "no TCP sockets".to_owned();
        }
        let states = self.states.iter();
        let states: Vec<_> = states
            .map(|(state, count)| format!("{state} {count}"))
            .collect();
        format!("TCP sockets: {}", states.join(", "))
    }

    fn destinations_on(&self, page: &mut Page) {
        let rows = self.destinations.iter().take(SHOWN);
        let rows: Vec<_> = rows.map(DestinationRow::fields).collect();
        page.table(&DESTINATION_COLUMNS, &rows);
        page.more(self.destinations.len(), "destinations");
    }

    fn users_on(&self, page: &mut Page) {
        let rows = self.users.iter().take(SHOWN).map(|user| {
            let unit = user.unit.as_deref().unwrap_or("");
            let texts = [
                user.sockets.to_string(),
                user.owner.clone(),
                unit.to_owned(),
            ];
            texts.map(|text| Field::plain(escape(&text))).to_vec()
        });
        page.table(&USER_COLUMNS, &rows.collect::<Vec<_>>());
        page.more(self.users.len(), "owners of sockets");
    }
}

fn is_sysctl(finding: &Finding) -> bool {
    let command = finding.mend.as_deref();
    command.is_some_and(|command| command.starts_with("sysctl -w"))
}

/// Lines as they are made.
struct Page {
    look: Look,
    /// Where text is wrapped.
    width: usize,
    /// Where a line ends that can't be wrapped: one that is longer would make a redraw in place
    /// miss its beginning.
    end: usize,
    lines: Vec<String>,
}

impl Page {
    fn new(detail: Detail, look: Look) -> Self {
        Self {
            look,
            width: look.width.map_or(WIDTH, |width| width.min(WIDTH)),
            end: match (detail, look.width) {
                (Detail::Brief, Some(width)) => width,
                _ => usize::MAX,
            },
            lines: Vec::new(),
        }
    }

    fn line(&mut self, text: &str, tone: Tone) {
        let text = escape(text);
        self.lines
            .push(self.look.paint(table::cut(&text, self.end), tone));
    }

    fn text(&mut self, text: &str, first: &str, next: &str, tone: Tone) {
        for line in wrap(text, self.width, first, next) {
            self.line(&line, tone);
        }
    }

    fn finding(&mut self, finding: &Finding) {
        const INDENT: &str = "          ";
        let label = format!("{:<10}", finding.severity.word());
        self.text(&finding.what, &label, INDENT, finding.severity.tone());
        let tone = match finding.severity {
            Severity::Ok => Tone::Faint,
            _ => Tone::Plain,
        };
        self.text(&finding.means, INDENT, INDENT, tone);
        if let Some(command) = &finding.mend {
            // Not wrapped: it is to be copied.
            self.line(&format!("{INDENT}mend: {command}"), Tone::Strong);
        }
    }

    /// A table with an empty line before it; nothing if it has no rows.
    fn table(&mut self, columns: &[Column], rows: &[Vec<Field>]) {
        if !rows.is_empty() {
            self.lines.push(String::new());
            self.lines.extend(table::lines(columns, rows, self.look));
        }
    }

    fn more(&mut self, count: usize, what: &str) {
        if let Some(rest) = count.checked_sub(SHOWN).filter(|rest| *rest > 0) {
            self.line(&format!("and {rest} more {what}"), Tone::Faint);
        }
    }
}

const DESTINATION_COLUMNS: [Column; 9] = [
    Column::text("DESTINATION", 0),
    Column::text("FROM", 3),
    Column::number("PORTS LEFT", 0),
    Column::number("REUSABLE", 4),
    Column::number("TIME_WAIT", 1),
    Column::number("ESTABLISHED", 1),
    Column::number("FIN_WAIT", 5),
    Column::number("CLOSE_WAIT", 5),
    Column::text("WHO", 2),
];

const USER_COLUMNS: [Column; 3] = [
    Column::number("SOCKETS", 0),
    Column::text("WHO", 0),
    Column::text("UNIT", 1),
];

impl DestinationRow {
    fn new(destination: &Destination) -> Self {
        let owners = destination.owners.iter().map(|(owner, sockets)| OwnerRow {
            owner: owner.clone(),
            sockets: *sockets,
        });
        Self {
            destination: destination.remote.to_string(),
            source: destination.source.to_string(),
            established: destination.established,
            time_wait: destination.time_wait,
            fin_wait: destination.fin_wait,
            close_wait: destination.close_wait,
            other: destination.other,
            ports_usable: destination.usable,
            ports_left: destination.left,
            ports_reusable: destination.reusable,
            owners: owners.collect(),
        }
    }

    fn fields(&self) -> Vec<Field> {
        let who = self.owners.first().map_or("", |first| &first.owner);
        [
            self.destination.clone(),
            self.source.clone(),
            self.ports_left.to_string(),
            self.ports_reusable.to_string(),
            self.time_wait.to_string(),
            self.established.to_string(),
            self.fin_wait.to_string(),
            self.close_wait.to_string(),
            who.to_owned(),
        ]
        .map(|text| Field::plain(escape(&text)))
        .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use rollcall_os::diag::sockets::TcpState;
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::doctor::checks::{self, Case};
    use crate::doctor::testing::{Fixture, HOST, held, socket};
    use crate::doctor::traffic::ReuseRule;

    const LOOK: Look = Look {
        colored: false,
        width: None,
    };

    fn report(fixture: &Fixture) -> Report {
        let settings = fixture.settings();
        let reuse = ReuseRule {
            on_loopback: true,
            elsewhere: false,
            delay_ms: 1000,
        };
        let remnants = [socket(TcpState::TimeWait, "10.0.0.1:40001", "10.0.0.9:80")];
        let open = [
            held(
                TcpState::Established,
                "10.0.0.1:40002",
                "10.0.0.9:80",
                "curl -s x",
            ),
            held(TcpState::Listen, "0.0.0.0:22", "0.0.0.0:0", "ev\u{1b}il"),
        ];
        let traffic = Traffic::new(&remnants, &open, &settings.ports, reuse);
        let findings = checks::all(Case {
            settings: &settings,
            traffic: &traffic,
            before: None,
            is_asked: false,
        });
        Report::new(&settings, &traffic, findings)
    }

    #[test]
    fn people_see_each_finding_with_what_it_means_where_it_matters() {
        let report = report(&Fixture::new(HOST).with("proc/sys/net/ipv4/tcp_timestamps", "0"));
        let text = report.lines(Detail::Full, LOOK).join("\n");
        assert!(
            text.contains("warning   net.ipv4.tcp_timestamps = 0"),
            "{text}"
        );
        assert!(
            text.contains("mend: sysctl -w net.ipv4.tcp_timestamps=1"),
            "{text}"
        );
        assert!(
            text.contains("ok        net.core.somaxconn = 4096"),
            "{text}"
        );
        assert!(
            text.contains("TCP sockets: ESTABLISHED 1, LISTEN 1, TIME_WAIT 1"),
            "{text}"
        );
        let row = text
            .lines()
            .find(|line| line.starts_with("10.0.0.9:80"))
            .unwrap();
        assert!(row.contains("curl (pid 812)"), "{row}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(report.complaint().as_deref(), Some("2 warnings"));
        let brief = report.lines(Detail::Brief, LOOK).join("\n");
        assert!(brief.contains("tcp_timestamps = 0"), "{brief}");
        assert!(!brief.contains("somaxconn"), "{brief}");
    }

    #[test]
    fn a_watched_terminal_gets_no_line_that_is_too_long() {
        let report = report(&Fixture::new(HOST).with("proc/sys/net/ipv4/tcp_timestamps", "0"));
        for width in [30, 50, 80] {
            let look = Look {
                colored: false,
                width: Some(width),
            };
            for line in report.lines(Detail::Brief, look) {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn scripts_see_everything() {
        let report = report(&Fixture::new(HOST));
        assert_eq!(report.complaint(), None);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["worst"], "ok");
        assert_eq!(json["ports"]["usable"], 28_229);
        assert_eq!(json["states"]["TIME_WAIT"], 1);
        let destination = &json["destinations"][0];
        assert_eq!(destination["destination"], "10.0.0.9:80");
        assert_eq!(destination["ports_left"], 28_227);
        assert_eq!(destination["owners"][0]["sockets"], 1);
        assert_eq!(json["listeners"][0]["address"], "0.0.0.0:22");
    }
}
