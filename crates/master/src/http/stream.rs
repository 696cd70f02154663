//! Events as they happen, as server-sent events: first what the database has, then what the reactor
//! publishes, with no event lost or doubled between the two.
//!
//! ```text
//!             ┌───────────── page was cut off ──────────────┐
//!             v                                             │
//!   start ─> behind: ask the database for id > cursor ──────┴─> level: take from the broadcast
//!             ^                                                    │ id <= cursor: seen, drop
//!             │                                                    │ id == cursor + 1: send
//!             └── a hole before its id, or the broadcast lagged ───┘
//! ```
//! The subscription begins before the first query, and an event is published only after its commit,
//! so whatever the broadcast has dropped is in the database.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use rollcall_protocol::api::EventRow;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::Service;
use super::history::{History, HistoryError};
use super::problem::Problem;
use crate::store::events::{EventFilter, EventPage, EventQuery};

/// Events read from the database at once.
const PAGE_EVENTS: u32 = 500;
/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Starts a stream after an id, or at the filter's `since`, or now.
pub(super) async fn open(
    service: &Arc<Service>,
    after: Option<i64>,
    filter: EventFilter,
) -> Result<Response, Problem> {
    let Ok(permit) = Arc::clone(&service.streams).try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{} event streams are open, and more are not served: close one, or ask for lists",
                service.limits.streams_max
            ),
        ));
    };
    let live = service.new_events.subscribe();
    let newest = service.history.newest().await?;
    let cursor = match after {
        // An id from the future is from another history, which was set aside: all of this one is new.
        Some(after) if after > newest => 0,
        Some(after) => after,
        None if filter.since_ms.is_some() => 0,
        None => newest,
    };
    let follower = Follower {
        history: Arc::clone(&service.history),
        live,
        filter,
        cursor,
        behind: cursor < newest,
        read: VecDeque::new(),
        cancel: service.cancel.clone(),
        _permit: permit,
    };
    let events = futures_util::stream::unfold(follower, |mut follower| async move {
        let row = follower.next().await?;
        Some((Ok::<_, Infallible>(sse(&row)), follower))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

fn sse(row: &EventRow) -> Event {
    Event::default()
        .id(row.id.to_string())
        .event("event")
        .json_data(row)
        .unwrap_or_else(|error| Event::default().comment(format!("event {}: {error}", row.id)))
}

/// One reader of the stream.
struct Follower {
    history: Arc<History>,
    live: broadcast::Receiver<Arc<EventRow>>,
    filter: EventFilter,
    /// Every event up to this id has been sent, is in `read`, or does not match.
    cursor: i64,
    /// Whether the database may have events beyond the cursor that the broadcast won't bring.
    behind: bool,
    read: VecDeque<EventRow>,
    cancel: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event that matches. None ends the stream; the reader comes back with its last id.
    async fn next(&mut self) -> Option<Arc<EventRow>> {
        loop {
            if let Some(row) = self.read.pop_front() {
                return Some(Arc::new(row));
            }
            let cancel = self.cancel.clone();
            let row = tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
                row = self.advance() => row?,
            };
            if row.is_some() {
                return row;
            }
        }
    }

    /// One step: a page of the database, or one event of the broadcast if it is to be sent.
    async fn advance(&mut self) -> Option<Option<Arc<EventRow>>> {
        if self.behind {
            let page = self.page().await.inspect_err(|error| {
                tracing::warn!(event = "history_read_failed", error = %error, "an event stream ends: the events could not be read");
            });
            let page = page.ok()?;
            self.cursor = page.complete_to;
            self.behind = page.more;
            self.read = page.events.into();
            return Some(None);
        }
        match self.live.recv().await {
            Ok(row) if row.id <= self.cursor => Some(None),
            Ok(row) if row.id == self.cursor.saturating_add(1) => {
                self.cursor = row.id;
                Some(Some(row).filter(|row| self.filter.matches(row)))
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {
                self.behind = true;
                Some(None)
            }
            Err(RecvError::Closed) => None,
        }
    }

    async fn page(&self) -> Result<EventPage, HistoryError> {
        self.history
            .query(EventQuery {
                after: Some(self.cursor),
                filter: self.filter.clone(),
                limit: PAGE_EVENTS,
            })
            .await
    }
}
