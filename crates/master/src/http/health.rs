//! Whether the master lives, and whether it stores and acks.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::api::Readiness;

use super::Service;
use super::problem::Problem;
use crate::stats::milliseconds;
use crate::view::Degraded;

/// How old the reactor's last sign of life may be. It gives one a second; a machine that is busy
/// with other things gets nine more.
const SILENCE_MAX: Duration = Duration::from_secs(10);

impl Service {
    /// Why the reactor can't be said to live; none if it does.
    fn reactor_trouble(&self) -> Option<String> {
        if self.roll.has_changed().is_err() {
            return Some("the reactor has ended".to_owned());
        }
        let silence = silence(
            milliseconds(clock::boot()),
            self.stats.reactor_beat_ms.get(),
            milliseconds(self.started),
        );
        (silence > SILENCE_MAX).then(|| {
            format!(
                "the reactor has given no sign of life for {} s",
                silence.as_secs()
            )
        })
    }

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

/// For how long the reactor has been silent. Before its first sign of life it is as old as this
/// server.
fn silence(now_ms: u64, beat_ms: u64, started_ms: u64) -> Duration {
    Duration::from_millis(now_ms.saturating_sub(beat_ms.max(started_ms)))
}

/// `GET /healthz`: 200 if the reactor lives.
pub(super) async fn healthz(State(service): State<Arc<Service>>) -> Response {
    match service.reactor_trouble() {
        None => "ok\n".into_response(),
        Some(trouble) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, trouble).into_response(),
    }
}

/// `GET /readyz`: 200 if reports are being stored and acked.
pub(super) async fn readyz(State(service): State<Arc<Service>>) -> (StatusCode, Json<Readiness>) {
    let reason = service
        .reactor_trouble()
        .or_else(|| service.store_trouble());
    let status = match reason {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let ready = reason.is_none();
    (status, Json(Readiness { ready, reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_newest_sign_of_life() {
        assert_eq!(silence(11_000, 0, 500), Duration::from_millis(10_500));
        assert_eq!(silence(11_000, 9_000, 500), Duration::from_secs(2));
        assert_eq!(silence(11_000, 11_001, 500), Duration::ZERO);
    }
}
