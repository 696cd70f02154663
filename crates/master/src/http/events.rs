//! `GET /v1/events`: the history as a list, or as a stream that goes on.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rollcall_protocol::api::EventList;

use super::Service;
use super::history::HistoryError;
use super::params::{Params, RawParams, whole_number};
use super::problem::Problem;
use super::stream;
use crate::store::events::{EventFilter, EventQuery, kind_of};

const PARAMETERS: [&str; 6] = ["after", "since", "until", "slave", "kind", "limit"];
/// Events in a list, unless the query says how many.
const LIMIT: u32 = 100;
/// Most events in a list.
const LIMIT_MAX: u32 = 10_000;
/// By which an `EventSource` says where it was.
const LAST_EVENT_ID: &str = "last-event-id";

/// A list as JSON, or, with `Accept: text/event-stream`, a stream.
pub(super) async fn list_or_stream(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    query: RawParams,
) -> Result<Response, Problem> {
    let params = Params::of(query, &PARAMETERS)?;
    let query = event_query(&params)?;
    if wants_stream(&headers) {
        if params.text("limit").is_some() {
            return Err(Problem::parameter(
                "limit",
                "a stream has none: leave it out",
            ));
        }
        let after = last_event_id(&headers)?.or(query.after);
        return stream::open(&service, after, query.filter).await;
    }
    let page = service.history.query(query).await?;
    Ok(Json(EventList {
        events: page.events,
    })
    .into_response())
}

impl From<HistoryError> for Problem {
    fn from(error: HistoryError) -> Self {
        tracing::warn!(event = "history_read_failed", error = %error, "the events could not be read");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

fn event_query(params: &Params) -> Result<EventQuery, Problem> {
    let any = i64::MIN..=i64::MAX;
    let filter = EventFilter {
        since_ms: params.number("since", any.clone())?,
        until_ms: params.number("until", any)?,
        slave: params.text("slave").map(slave_name).transpose()?,
        kind: params
            .text("kind")
            .map(|word| kind_of(word).map_err(|error| Problem::parameter("kind", error)))
            .transpose()?,
    };
    if let (Some(since), Some(until)) = (filter.since_ms, filter.until_ms)
        && until <= since
    {
        return Err(Problem::parameter("until", "must be later than since"));
    }
    let limit = params.number("limit", 1..=i64::from(LIMIT_MAX))?;
    Ok(EventQuery {
        after: params.number("after", 0..=i64::MAX)?,
        filter,
        limit: limit
            .and_then(|limit| u32::try_from(limit).ok())
            .unwrap_or(LIMIT),
    })
}

fn slave_name(text: &str) -> Result<String, Problem> {
    use rollcall_protocol::name;
    if name::is_valid(text) {
        return Ok(text.to_owned());
    }
    let why = format!("{text:?} is no slave's name, which has {}", name::RULE);
    Err(Problem::parameter("slave", why))
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    whole_number("Last-Event-ID", &text, 0..=i64::MAX).map(Some)
}
