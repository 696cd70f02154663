//! `GET /v1/slaves/{name}/history`: one slave's events in a stretch of time, with gaps in their place,
//! and the newest reports that the roll's owner remembers.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::api::{ReportRow, SlaveHistory};
use rollcall_protocol::wire::{Report, ToMaster, to_master};
use tokio::sync::oneshot;

use super::Service;
use super::params::{Params, RawParams};
use super::problem::Problem;
use super::roll::{check_row, health, no_such_slave};
use crate::roll::Remembered;
use crate::store::events::{EventPage, Stretch};
use crate::view::ReportsAsked;

const PARAMETERS: [&str; 3] = ["since", "until", "limit"];
/// Without `since`: the last day.
const STRETCH_MS: i64 = 24 * 60 * 60 * 1000;
/// Events in an answer, unless the query says how many.
const LIMIT: u32 = 1000;
/// Most events in an answer.
const LIMIT_MAX: i64 = 10_000;

/// `GET /v1/slaves/{name}/history`.
pub(super) async fn history(
    State(service): State<Arc<Service>>,
    name: Result<Path<String>, PathRejection>,
    query: RawParams,
) -> Result<Json<SlaveHistory>, Problem> {
    let Path(name) = name.map_err(|error| Problem::parameter("name", error.body_text()))?;
    let stretch = stretch(&name, &Params::of(query, &PARAMETERS)?)?;
    let reports = remembered(&service, &name).await?;
    let (since_ms, until_ms) = (stretch.since_ms, stretch.until_ms);
    let now_ms = clock::wall_ms();
    let page = service.history.stretch(stretch).await?;
    let is_known = service.roll.borrow().find(&name).is_some();
    if !is_known && page.events.is_empty() {
        return Err(no_such_slave(&name, &service.roll.borrow()));
    }
    let reports = reports
        .messages()
        .filter_map(report_of)
        .filter(|report| (since_ms..until_ms).contains(&report.time_ms))
        .map(report_row);
    let reports = reports.collect();
    let EventPage { events, more, .. } = page;
    Ok(Json(SlaveHistory {
        name,
        since_ms,
        until_ms: if until_ms == i64::MAX {
            now_ms.max(since_ms)
        } else {
            until_ms
        },
        events,
        events_cut: more,
        reports,
    }))
}

fn stretch(name: &str, params: &Params) -> Result<Stretch, Problem> {
    let any = i64::MIN..=i64::MAX;
    let since_ms = params.number("since", any.clone())?;
    // A slave's clock may be ahead: without an end, what it will have said is told, too.
    let until_ms = params.number("until", any)?.unwrap_or(i64::MAX);
    let since_ms =
        since_ms.unwrap_or_else(|| clock::wall_ms().min(until_ms).saturating_sub(STRETCH_MS));
    if until_ms <= since_ms {
        return Err(Problem::parameter("until", "must be later than since"));
    }
    let since = jiff::Timestamp::from_millisecond(since_ms);
    let limit = params.number("limit", 1..=LIMIT_MAX)?;
    Ok(Stretch {
        slave: name.to_owned(),
        since_ms,
        since_text: since.map_or_else(|_| String::new(), |since| format!("{since:.3}")),
        until_ms,
        limit: limit
            .and_then(|limit| u32::try_from(limit).ok())
            .unwrap_or(LIMIT),
    })
}

/// What the roll's owner remembers; it answers between two of its turns.
async fn remembered(service: &Service, name: &str) -> Result<Remembered, Problem> {
    let (answer, answered) = oneshot::channel();
    let question = ReportsAsked {
        slave: name.to_owned(),
        answer,
    };
    let gone = || {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the reactor has ended".to_owned(),
        )
    };
    let asked = service.reports.send(question).await;
    asked.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())
}

fn report_of(message: &[u8]) -> Option<Report> {
    match ToMaster::decode(message).ok()?.kind? {
        to_master::Kind::Report(report) => Some(report),
        _ => None,
    }
}

fn report_row(report: Report) -> ReportRow {
    ReportRow {
        time_ms: report.time_ms,
        stream: format!("{:016x}", report.stream),
        sequence: report.sequence,
        health: health(report.health()),
        checks: report
            .status
            .iter()
            .flat_map(|status| &status.checks)
            .map(check_row)
            .collect(),
    }
}
