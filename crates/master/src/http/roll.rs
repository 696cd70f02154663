//! `GET /v1/slaves` and `GET /v1/slaves/{name}`: the roll as published last.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rollcall_protocol::api::{CheckRow, Health, MetricRow, SlaveDetail, SlaveList};
use rollcall_protocol::wire;

use super::Service;
use super::params::{Params, RawParams};
use super::problem::Problem;
use crate::view::{RollSnapshot, SlaveView};

/// How near a name must be to the one asked for to be suggested, from 0 to 1.
const LIKENESS_MIN: f64 = 0.8;
/// Most names suggested.
const SUGGESTIONS_MAX: usize = 3;

/// `GET /v1/slaves`.
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    query: RawParams,
) -> Result<Response, Problem> {
    Params::of(query, &[])?;
    let roll = Arc::clone(&service.roll.borrow());
    let rows = SlaveList {
        slaves: roll.slaves.iter().map(|view| view.to_row()).collect(),
    };
    let body = serde_json::to_vec(&rows).map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the roll cannot be put as JSON: {error}"),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// `GET /v1/slaves/{name}`.
pub(super) async fn show(
    State(service): State<Arc<Service>>,
    name: Result<Path<String>, PathRejection>,
    query: RawParams,
) -> Result<Json<SlaveDetail>, Problem> {
    let Path(name) = name.map_err(|error| Problem::parameter("name", error.body_text()))?;
    Params::of(query, &[])?;
    let roll = Arc::clone(&service.roll.borrow());
    match roll.find(&name) {
        Some(view) => Ok(Json(detail(view))),
        None => Err(no_such_slave(&name, &roll)),
    }
}

fn detail(view: &SlaveView) -> SlaveDetail {
    SlaveDetail {
        row: view.to_row(),
        agent_version: view.agent_version.to_string(),
        report_time_ms: view.report_time_ms,
        checks: view.status.checks.iter().map(check_row).collect(),
    }
}

/// A health as the API says it.
pub(super) fn health(health: wire::Health) -> Health {
    match health {
        wire::Health::Ok => Health::Ok,
        wire::Health::Warning => Health::Warning,
        wire::Health::Critical => Health::Critical,
        wire::Health::Unknown => Health::Unknown,
    }
}

/// A check as the API says it.
pub(super) fn check_row(check: &wire::Check) -> CheckRow {
    CheckRow {
        name: check.name.clone(),
        state: health(check.state()),
        text: check.text.clone(),
        duration_ms: check.duration_ms,
        time_ms: check.time_ms,
        metrics: check.metrics.iter().map(metric_row).collect(),
    }
}

fn metric_row(metric: &wire::Metric) -> MetricRow {
    MetricRow {
        name: metric.name.clone(),
        value: Some(metric.value).filter(|value| value.is_finite()),
        unit: metric.unit.clone(),
    }
}

/// 404, with the names that are like it.
pub(super) fn no_such_slave(name: &str, roll: &RollSnapshot) -> Problem {
    let nearest = nearest(name, roll);
    let advice = if nearest.is_empty() {
        "GET /v1/slaves lists all".to_owned()
    } else {
        format!("did you mean {}?", nearest.join(", "))
    };
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("no slave {name:?} on the roll; {advice}"),
    )
}

fn nearest<'a>(name: &str, roll: &'a RollSnapshot) -> Vec<&'a str> {
    let mut likely: Vec<(f64, &str)> = roll
        .slaves
        .iter()
        .map(|view| view.name.as_str())
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .collect();
    // The best first; a stable sort keeps equals by name.
    likely.sort_by(|one, other| other.0.total_cmp(&one.0));
    likely.truncate(SUGGESTIONS_MAX);
    likely.into_iter().map(|(_, other)| other).collect()
}
