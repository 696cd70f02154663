//! `GET /metrics`: the master's figures and the roll's totals, gathered when asked for, as OpenMetrics.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
pub(super) use prometheus_client::registry::Registry;
use rollcall_os::clock;
use rollcall_protocol::api::{Health, Presence};
use tokio::sync::{Semaphore, watch};

use super::Service;
use super::problem::Problem;
use crate::admission::Reason;
use crate::stats::{COMMIT_BOUNDS_US, Counter, Stats};
use crate::view::{RollSnapshot, SlaveView};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const PRESENCES: [(Presence, &str); 5] = [
    (Presence::Expected, "expected"),
    (Presence::Up, "up"),
    (Presence::Late, "late"),
    (Presence::Missing, "missing"),
    (Presence::Left, "left"),
];

/// None: no report yet.
const HEALTHS: [(Option<Health>, &str); 5] = [
    (Some(Health::Ok), "ok"),
    (Some(Health::Warning), "warning"),
    (Some(Health::Critical), "critical"),
    (Some(Health::Unknown), "unknown"),
    (None, "none"),
];

/// `GET /metrics`.
pub(super) async fn scrape(State(service): State<Arc<Service>>) -> Result<Response, Problem> {
    let mut body = String::new();
    text::encode(&mut body, &service.metrics).map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the metrics cannot be written: {error}"),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response())
}

/// What a scrape renders. `streams` is the semaphore of the event streams and how many it began with.
pub(super) fn registry(
    stats: Arc<Stats>,
    roll: watch::Receiver<Arc<RollSnapshot>>,
    streams: (Arc<Semaphore>, usize),
) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures {
        stats,
        roll,
        streams,
        started: Duration::from_millis(u64::try_from(clock::wall_ms()).unwrap_or(0)),
    }));
    registry
}

#[derive(Debug)]
struct Figures {
    stats: Arc<Stats>,
    roll: watch::Receiver<Arc<RollSnapshot>>,
    streams: (Arc<Semaphore>, usize),
    /// Since 1970.
    started: Duration,
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.process(&mut page)?;
        self.roll(&mut page)?;
        self.traffic(&mut page)?;
        self.listeners(&mut page)?;
        self.datagrams(&mut page)?;
        self.store(&mut page)
    }
}

impl Figures {
    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        page.info(
            "rollcall_build",
            "The build of this master",
            &[("version", env!("CARGO_PKG_VERSION"))],
        )?;
        page.gauge(
            "process_start_time_seconds",
            "When the master started, in seconds since 1970",
            self.started.as_secs_f64(),
        )?;
        let (free, all) = (self.streams.0.available_permits(), self.streams.1);
        page.gauge(
            "rollcall_http_event_streams",
            "Event streams open now",
            all.saturating_sub(free),
        )
    }

    fn roll(&self, page: &mut Page<'_>) -> fmt::Result {
        let roll = Arc::clone(&self.roll.borrow());
        let total = |wanted: &dyn Fn(&SlaveView) -> bool| {
            roll.slaves.iter().filter(|view| wanted(view)).count()
        };
        page.gauges(
            "rollcall_slaves",
            "Slaves on the roll by presence",
            "presence",
            &PRESENCES.map(|(presence, word)| (word, total(&|view| view.presence == presence))),
        )?;
        page.gauges(
            "rollcall_slaves_by_health",
            "Slaves on the roll by the health they reported last; none: no report yet",
            "health",
            &HEALTHS.map(|(health, word)| (word, total(&|view| view.health == health))),
        )?;
        page.gauge(
            "rollcall_degraded",
            "1 while reports are not being stored and acked",
            usize::from(roll.degraded.is_some()),
        )
    }

    fn traffic(&self, page: &mut Page<'_>) -> fmt::Result {
        let stats = &self.stats;
        page.gauge(
            "rollcall_connections",
            "Connections of slaves open now",
            stats.connections.get(),
        )?;
        page.gauge(
            "rollcall_connections_parked",
            "Connections of slaves that a restart or an upgrade of the master would keep",
            stats.parked.get(),
        )?;
        page.gauge(
            "rollcall_parking_shards",
            "Shards that connections are parked in, 200 to each, open now",
            stats.parking_shards.get(),
        )?;
        let counters: [(&str, &str, &Counter); 8] = [
            (
                "rollcall_connections_accepted",
                "Connections of slaves accepted",
                &stats.accepted,
            ),
            (
                "rollcall_accept_errors",
                "accept(2) calls that failed",
                &stats.accept_errors,
            ),
            (
                "rollcall_connections_refused",
                "Connections closed because of what the peer sent or did not send",
                &stats.refused,
            ),
            (
                "rollcall_connection_panics",
                "Connections ended by a panic of their task",
                &stats.connection_panics,
            ),
            (
                "rollcall_reports_applied",
                "Reports applied, each once",
                &stats.applied,
            ),
            (
                "rollcall_reports_duplicate",
                "Reports that came again and were not applied",
                &stats.duplicates,
            ),
            ("rollcall_acks", "Acks written", &stats.acks),
            (
                "rollcall_log_lines_suppressed",
                "Log lines held back by rate limits",
                &stats.suppressed,
            ),
        ];
        for (name, help, counter) in counters {
            page.counter(name, help, counter.get())?;
        }
        Ok(())
    }

    fn datagrams(&self, page: &mut Page<'_>) -> fmt::Result {
        let figures = &self.stats.datagrams;
        for (name, help, counter) in figures.all() {
            page.counter(name, help, counter.get())?;
        }
        figures.overflowed().map_or(Ok(()), |overflowed| {
            page.counter(
                "rollcall_datagrams_overflowed",
                "Datagrams that the kernel dropped because its receive buffer was full",
                overflowed,
            )
        })
    }

    fn listeners(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = self.stats.listeners.all();
        let all: Vec<_> = all
            .iter()
            .map(|(address, figures)| (address.to_string(), figures))
            .collect();
        let mut up = page.family(
            "rollcall_listener_up",
            "1 while slaves can connect there",
            MetricType::Gauge,
        )?;
        for (listener, figures) in &all {
            up.encode_family(&[("listener", listener.as_str())])?
                .encode_gauge(&figures.is_up.get())?;
        }
        let mut accepted = page.family(
            "rollcall_listener_accepted",
            "Connections accepted, those that were refused then included",
            MetricType::Counter,
        )?;
        for (listener, figures) in &all {
            accepted
                .encode_family(&[("listener", listener.as_str())])?
                .encode_counter::<NoLabelSet, _, f64>(&figures.accepted.get(), None)?;
        }
        let mut refused = page.family(
            "rollcall_listener_refused",
            "Connections refused at accept, by the reason",
            MetricType::Counter,
        )?;
        for (listener, figures) in &all {
            for reason in Reason::ALL {
                let labels = [("listener", listener.as_str()), ("reason", reason.name())];
                refused
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, f64>(&figures.refused(reason).get(), None)?;
            }
        }
        Ok(())
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        let stats = &self.stats;
        page.counter(
            "rollcall_store_redo_bytes",
            "Bytes of redo written",
            stats.redo_bytes.get(),
        )?;
        let commit_age = Duration::from_millis(stats.commit_age_ms(clock::boot()));
        page.gauge(
            "rollcall_store_commit_in_hand_seconds",
            "For how long the commit in hand has been under way; 0 between commits",
            commit_age.as_secs_f64(),
        )?;
        page.gauge(
            "rollcall_store_set_aside",
            "Databases that were set aside as damaged, counted at the start",
            stats.set_aside.get(),
        )?;
        page.counter(
            "rollcall_store_events_damaged",
            "Events that could not be read because their rows are damaged",
            stats.events_damaged.get(),
        )?;
        page.gauge(
            "rollcall_reports_remembered_bytes",
            "Memory taken by the newest reports of all slaves",
            stats.reports_bytes.get(),
        )?;
        let bounds = COMMIT_BOUNDS_US
            .iter()
            .map(|bound_us| Duration::from_micros(*bound_us).as_secs_f64())
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds
            .zip(stats.commit_buckets.iter().map(Counter::get))
            .collect();
        page.histogram(
            "rollcall_store_commit_seconds",
            "How long group commits took",
            Duration::from_micros(stats.commit_time_us.get()).as_secs_f64(),
            &buckets,
        )
    }
}

/// One family after another.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A metric with labels.
    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, usize)],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (word, value) in values {
            family
                .encode_family(&[(label, *word)])?
                .encode_gauge(value)?;
        }
        Ok(())
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1]) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Info)?
            .encode_info(labels)
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        sum: f64,
        buckets: &[(f64, u64)],
    ) -> fmt::Result {
        let all = buckets.iter().map(|(_, count)| count).sum();
        self.0
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, all, buckets, None)
    }
}
