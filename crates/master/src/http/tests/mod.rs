//! The server over loopback.

mod bounds;
mod events;
mod past;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use rollcall_os::clock;
use rollcall_protocol::api::{
    ApiError, EventKind, Health, Presence, Readiness, SlaveDetail, SlaveList,
};
use rollcall_protocol::wire;

use super::*;
use crate::store::{Group, Opened, Outcome, Retention, Store};
use crate::view::{Degraded, ReportsAsked, SlaveView};

const KEEP: Retention = Retention {
    keep: Duration::from_secs(3600),
    bytes_max: 1 << 30,
};

/// A store, a server over it, and the sending ends that the reactor would hold.
struct Server {
    address: SocketAddr,
    opened: Opened,
    roll: watch::Sender<Arc<RollSnapshot>>,
    stats: Arc<Stats>,
    new_events: broadcast::Sender<Arc<EventRow>>,
    questions: Option<mpsc::Receiver<ReportsAsked>>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<io::Result<()>>>,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        Self::with(Limits::STANDARD)
    }

    fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opened = Store::open(folder.path(), KEEP).unwrap();
        let (roll, roll_seen) = watch::channel(Arc::default());
        // Small, so that streams do lag.
        let (new_events, _) = broadcast::channel(8);
        let stats = Arc::new(Stats::default());
        let (reports, questions) = mpsc::channel(4);
        let readers = Readers {
            roll: roll_seen,
            stats: Arc::clone(&stats),
            events: Store::database(folder.path()),
            new_events: new_events.clone(),
            reports,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let until = cancel.clone();
        let thread = std::thread::spawn(move || serve(listener, readers, limits, until));
        Self {
            address,
            opened,
            roll,
            stats,
            new_events,
            questions: Some(questions),
            cancel,
            thread: Some(thread),
            _folder: folder,
        }
    }

    /// The status and the body.
    fn get(&self, path: &str) -> (u16, String) {
        self.get_with(path, &[])
    }

    fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut response = self.request(path, headers);
        let body = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), body)
    }

    fn request(&self, path: &str, headers: &[(&str, &str)]) -> ureq::http::Response<ureq::Body> {
        request(self.address, path, headers)
    }

    fn error(&self, path: &str, status: u16) -> String {
        let (got, body) = self.get(path);
        assert_eq!(got, status, "{body}");
        serde_json::from_str::<ApiError>(&body).unwrap().error
    }

    /// Commits events and then publishes them, as the reactor does it.
    fn commit(&mut self, group: u64, events: Vec<EventRow>) {
        self.store(group, events.clone());
        self.publish(events);
    }

    fn store(&mut self, group: u64, events: Vec<EventRow>) {
        let group = Group {
            id: group,
            events,
            ..Group::default()
        };
        self.opened.handle.commit(group).unwrap();
        let outcome = self.opened.outcomes.blocking_recv();
        assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    }

    fn publish(&self, events: Vec<EventRow>) {
        for event in events {
            // An error says that nobody listens.
            let _ = self.new_events.send(Arc::new(event));
        }
    }

    /// Ends the server and gives what it returned.
    fn stop(&mut self) -> io::Result<()> {
        self.cancel.cancel();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop().unwrap();
        }
    }
}

fn request(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> ureq::http::Response<ureq::Body> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into();
    let mut request = agent.get(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.call().unwrap()
}

fn event(id: i64) -> EventRow {
    EventRow {
        id,
        time_ms: id,
        recorded_ms: clock::wall_ms(),
        kind: EventKind::Presence,
        slave: Some(if id % 2 == 0 { "even" } else { "odd" }.to_owned()),
        subject: None,
        from: None,
        to: Some("up".to_owned()),
        text: "seen".to_owned(),
        replayed: false,
    }
}

fn slave(name: &str, presence: Presence, health: Option<Health>) -> Arc<SlaveView> {
    let metric = |name: &str, value| wire::Metric {
        name: name.to_owned(),
        value,
        unit: "%".to_owned(),
    };
    let check = wire::Check {
        name: "disk".to_owned(),
        state: wire::Health::Critical.into(),
        text: "full".to_owned(),
        metrics: vec![
            metric("used", 99.5),
            metric("odd", f64::NAN),
            metric("far", f64::INFINITY),
        ],
        duration_ms: 3,
        time_ms: 4,
    };
    Arc::new(SlaveView {
        presence,
        health,
        interval_ms: 10_000,
        sequence: u64::MAX,
        agent_version: "0.1.0".into(),
        report_time_ms: Some(4),
        status: Arc::new(wire::Status {
            checks: vec![check],
        }),
        ..SlaveView::new([0; 16], name.to_owned(), 1)
    })
}

fn publish(server: &Server, degraded: Option<&str>) {
    server.roll.send_replace(Arc::new(RollSnapshot {
        slaves: vec![
            slave("db-1", Presence::Up, Some(Health::Ok)),
            slave("web-1", Presence::Late, Some(Health::Critical)),
            slave("web-2", Presence::Up, None),
        ],
        degraded: degraded.map(|reason| Degraded {
            reason: reason.to_owned(),
            since: clock::boot(),
            since_ms: clock::wall_ms(),
        }),
    }));
}

#[test]
fn the_roll_is_listed_and_shown() {
    let server = Server::start();
    assert_eq!(
        server.get("/v1/slaves"),
        (200, r#"{"slaves":[]}"#.to_owned())
    );
    publish(&server, None);
    let list: SlaveList = serde_json::from_str(&server.get("/v1/slaves").1).unwrap();
    let names: Vec<&str> = list.slaves.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["db-1", "web-1", "web-2"]);
    assert_eq!(list.slaves[0].sequence, u64::MAX);

    let detail: SlaveDetail = serde_json::from_str(&server.get("/v1/slaves/web-1").1).unwrap();
    assert_eq!(detail.row, list.slaves[1]);
    assert_eq!(detail.checks[0].state, Health::Critical);
    let values: Vec<_> = detail.checks[0]
        .metrics
        .iter()
        .map(|metric| metric.value)
        .collect();
    assert_eq!(values, [Some(99.5), None, None]);
}

#[test]
fn an_unknown_slave_is_answered_with_the_nearest_names() {
    let server = Server::start();
    publish(&server, None);
    assert_eq!(
        server.error("/v1/slaves/web-3", 404),
        "no slave \"web-3\" on the roll; did you mean web-1, web-2?"
    );
    assert_eq!(
        server.error("/v1/slaves/printer", 404),
        "no slave \"printer\" on the roll; GET /v1/slaves lists all"
    );
    assert!(server.error("/v1/slave", 404).contains("/v1/slaves/NAME"));
    let posted = ureq::post(format!("http://{}/v1/slaves", server.address)).send_empty();
    assert!(
        matches!(posted, Err(ureq::Error::StatusCode(405))),
        "{posted:?}"
    );
}

#[test]
fn readiness_and_health_tell_apart_a_full_disk_and_a_dead_reactor() {
    let server = Server::start();
    publish(&server, None);
    assert_eq!(server.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(server.get("/readyz").0, 200);

    publish(&server, Some("the disk is full"));
    assert_eq!(server.get("/healthz").0, 200);
    let (status, body) = server.get("/readyz");
    let readiness: Readiness = serde_json::from_str(&body).unwrap();
    assert_eq!((status, readiness.ready), (503, false));
    let reason = readiness.reason.unwrap();
    assert!(reason.starts_with("the disk is full (for 0."), "{reason}");

    let mut server = server;
    server.roll = watch::channel(Arc::default()).0;
    assert_eq!(server.error("/healthz", 503), "the reactor has ended");
    assert_eq!(server.get("/readyz").0, 503);
}

#[test]
fn the_metrics_are_a_page_that_a_scraper_can_read() {
    let server = Server::start();
    publish(&server, Some("the disk is full"));
    server.stats.applied.add(7);
    server.stats.connections.set(2);
    server.stats.set_aside.set(3);
    server.stats.events_damaged.add(1);
    server.stats.reports_bytes.set(512);
    server.stats.committed(Duration::from_micros(300), 50);
    server.stats.committed(Duration::from_secs(9), 50);
    let response = server.request("/metrics", &[]);
    let kind = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let samples = parse(&server.get("/metrics").1);

    let expected = [
        (r#"rollcall_slaves{presence="up"}"#, 2.0),
        (r#"rollcall_slaves{presence="missing"}"#, 0.0),
        (r#"rollcall_slaves_by_health{health="critical"}"#, 1.0),
        (r#"rollcall_slaves_by_health{health="none"}"#, 1.0),
        ("rollcall_degraded", 1.0),
        ("rollcall_connections", 2.0),
        ("rollcall_reports_applied_total", 7.0),
        ("rollcall_reports_duplicate_total", 0.0),
        ("rollcall_log_lines_suppressed_total", 0.0),
        ("rollcall_store_redo_bytes_total", 100.0),
        ("rollcall_store_commit_in_hand_seconds", 0.0),
        ("rollcall_store_set_aside", 3.0),
        ("rollcall_store_events_damaged_total", 1.0),
        ("rollcall_reports_remembered_bytes", 512.0),
        ("rollcall_store_commit_seconds_count", 2.0),
        ("rollcall_store_commit_seconds_sum", 9.0003),
        (r#"rollcall_store_commit_seconds_bucket{le="0.00025"}"#, 0.0),
        (r#"rollcall_store_commit_seconds_bucket{le="0.0005"}"#, 1.0),
        (r#"rollcall_store_commit_seconds_bucket{le="+Inf"}"#, 2.0),
        (
            concat!(
                "rollcall_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"}"
            ),
            1.0,
        ),
    ];
    for (name, value) in expected {
        assert_eq!(samples.get(name), Some(&value), "{name} in {samples:#?}");
    }
    assert!(samples["process_start_time_seconds"] > 1.7e9);
}

/// Reads a page strictly: each sample under the family that was announced last, each name once.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let body = page.strip_suffix("# EOF\n").expect("an end mark");
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            assert!(
                ["HELP", "TYPE", "UNIT"].contains(&words.next().unwrap()),
                "{line}"
            );
            family = words.next().unwrap().to_owned();
            assert!(words.next().is_some_and(|rest| !rest.is_empty()), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(
            !family.is_empty() && name.starts_with(&family),
            "{line} under {family}"
        );
        let value = value.parse().unwrap();
        assert_eq!(samples.insert(name.to_owned(), value), None, "{line}");
    }
    samples
}
