//! Whether the master lives, and whether it stores and acks.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::api::Readiness;

use super::Service;
use super::problem::Problem;
use crate::view::Degraded;

impl Service {
    /// Why nothing is being stored; none if reports are.
    fn store_trouble(&self) -> Option<String> {
        let roll = self.roll.borrow();
        let trouble = roll.degraded.as_ref();
        trouble.map(|trouble| degraded(trouble, clock::boot()))
    }
}

/// Why nothing is stored, and for how long.
fn degraded(degraded: &Degraded, now: Moment) -> String {
    let lasted = now.saturating_since(degraded.since);
    format!("{} (for {:.1} s)", degraded.reason, lasted.as_secs_f64())
}

/// `GET /healthz`: 200 if the master lives.
pub(super) async fn healthz(State(service): State<Arc<Service>>) -> Response {
    match service.liveness.trouble() {
        None => "ok\n".into_response(),
        Some(trouble) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, trouble).into_response(),
    }
}

/// `GET /readyz`: 200 if reports are being stored and acked.
pub(super) async fn readyz(State(service): State<Arc<Service>>) -> (StatusCode, Json<Readiness>) {
    let reason = service
        .liveness
        .trouble()
        .or_else(|| service.store_trouble());
    let status = match reason {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let ready = reason.is_none();
    (status, Json(Readiness { ready, reason }))
}
