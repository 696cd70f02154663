//! What readers get: the roll, the history, the metrics, the master's own state.
//!
//! The server runs on a thread and a runtime of its own and sees the reactor only through published
//! snapshots, counters and committed events, so that no reader, however slow, ever holds up a slave.
//! It takes no input but a request's line and headers, and bounds those, the connections and the time.

mod events;
mod health;
mod history;
mod metrics;
mod params;
mod past;
mod problem;
mod roll;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rollcall_protocol::api::EventRow;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::liveness::Liveness;
use crate::stats::Stats;
use crate::view::{ReportsAsked, RollSnapshot};
use history::History;
use problem::Problem;

/// What the server reads from.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    /// The roll as published last.
    pub(crate) roll: watch::Receiver<Arc<RollSnapshot>>,
    /// The master's figures.
    pub(crate) stats: Arc<Stats>,
    /// The store's database ([`crate::store::Store::database`]).
    pub(crate) events: PathBuf,
    /// Each event, once, in the order of ids, after its commit.
    pub(crate) new_events: broadcast::Sender<Arc<EventRow>>,
    /// Where the roll's owner is asked for the reports that it remembers.
    pub(crate) reports: mpsc::Sender<ReportsAsked>,
}

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once; further ones wait in the listener's backlog.
    pub(crate) connections_max: usize,
    /// Event streams at once; a further one is answered with 503.
    pub(crate) streams_max: usize,
    /// For a request's line and headers, and between two requests of a connection.
    pub(crate) header_timeout: Duration,
    /// For the answer to begin.
    pub(crate) answer_timeout: Duration,
    /// For running requests to end, once the server is told to.
    pub(crate) drain_timeout: Duration,
}

impl Limits {
    /// What the daemon uses.
    pub(crate) const STANDARD: Self = Self {
        connections_max: 512,
        streams_max: 256,
        header_timeout: Duration::from_secs(10),
        answer_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(2),
    };
}

/// What the handlers share.
#[derive(Debug)]
struct Service {
    roll: watch::Receiver<Arc<RollSnapshot>>,
    history: Arc<History>,
    new_events: broadcast::Sender<Arc<EventRow>>,
    reports: mpsc::Sender<ReportsAsked>,
    streams: Arc<Semaphore>,
    metrics: metrics::Registry,
    liveness: Liveness,
    cancel: CancellationToken,
    limits: Limits,
}

/// Serves until `cancel`, then lets running requests end within the drain timeout; open event
/// streams end at once. Blocks: give it a thread.
///
/// # Errors
/// If the listener or the runtime can't be set up. Nothing that a peer does is an error here.
pub(crate) fn serve(
    listener: TcpListener,
    readers: Readers,
    limits: Limits,
    cancel: CancellationToken,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(history::READERS_MAX)
        .thread_name("http-history")
        .build()?;
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = router(readers, limits, cancel.clone());
        server::run(listener, router, limits, cancel).await;
        Ok(())
    });
    // A query that still runs reads only; the process need not wait for it.
    runtime.shutdown_background();
    ended
}

fn router(readers: Readers, limits: Limits, cancel: CancellationToken) -> Router {
    let streams = Arc::new(Semaphore::new(limits.streams_max));
    let metrics = metrics::registry(
        Arc::clone(&readers.stats),
        readers.roll.clone(),
        (Arc::clone(&streams), limits.streams_max),
    );
    let history = History::new(readers.events, Arc::clone(&readers.stats));
    let liveness = Liveness::new(readers.roll.clone(), Arc::clone(&readers.stats));
    let service = Arc::new(Service {
        roll: readers.roll,
        history: Arc::new(history),
        new_events: readers.new_events,
        reports: readers.reports,
        streams,
        metrics,
        liveness,
        cancel,
        limits,
    });
    Router::new()
        .route("/v1/slaves", get(roll::list))
        .route("/v1/slaves/{name}", get(roll::show))
        .route("/v1/slaves/{name}/history", get(past::history))
        .route("/v1/events", get(events::list_or_stream))
        .route("/metrics", get(metrics::scrape))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&service),
            within_time,
        ))
        .with_state(service)
}

async fn no_such_path(request: Request) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!(
            "no such path: {}; there are /v1/slaves, /v1/slaves/NAME, /v1/slaves/NAME/history, /v1/events, /metrics, /healthz and /readyz",
            request.uri().path()
        ),
    )
}

async fn wrong_method(request: Request) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} is not served here: use GET", request.method()),
    )
}

async fn within_time(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    timeout(service.limits.answer_timeout, next.run(request))
        .await
        .unwrap_or_else(|_elapsed| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the answer took too long: ask for less, or try again".to_owned(),
            )
            .into_response()
        })
}
