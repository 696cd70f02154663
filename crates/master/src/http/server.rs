//! Connections: accepted up to a number, served with bounds, ended in time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Limits;

/// Bytes of a request's line and headers.
const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request.
const REQUEST_HEADERS_MAX: usize = 64;
/// How long a peer may leave what was sent to it unacked or, with its window closed, unread.
const PEER_TIMEOUT_MS: u32 = 30_000;
/// Whoever has just connected may send its request for so long after the server was told to end: the
/// process that comes next does not know of it.
const FIRST_REQUEST_MAX: Duration = Duration::from_millis(200);
/// The pause after accept(2) fails, which it does while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `cancel` and drains.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, accept(&listener).await)
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(ended) = connections.join_next() => note_end(ended),
            (slot, stream) = accepted => {
                let served = connection(stream, router.clone(), limits, cancel.clone());
                connections.spawn(async move {
                    served.await;
                    drop(slot);
                });
            }
        }
    }
    drop(listener);
    let drained = timeout(limits.drain_timeout, async {
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    });
    if drained.await.is_err() {
        tracing::info!(
            event = "http_drain_cut",
            connections = connections.len(),
            "HTTP connections that did not end in time were closed"
        );
    }
}

/// The next connection. A shortage of descriptors or memory is waited out and logged once.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut is_failing = false;
    loop {
        let error = match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => error,
        };
        if !is_failing {
            tracing::warn!(event = "http_accept_failed", error = %error, errno = error.raw_os_error(), "HTTP connections cannot be accepted for now");
            is_failing = true;
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, cancel: CancellationToken) {
    if let Err(error) = set_up(&stream) {
        tracing::debug!(event = "http_connection_failed", error = %error, "an HTTP connection could not be set up");
        return;
    }
    let asked = CancellationToken::new();
    let service = TowerToHyperService::new(router);
    let service = {
        let asked = asked.clone();
        service_fn(move |request| {
            asked.cancel();
            service.call(request)
        })
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(REQUEST_HEAD_BYTES_MAX)
        .max_headers(REQUEST_HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = cancel.cancelled() => tokio::select! {
            result = served.as_mut() => result,
            _ = timeout(FIRST_REQUEST_MAX, asked.cancelled()) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        },
    };
    if let Err(error) = result {
        tracing::debug!(event = "http_connection_failed", error = %error, "an HTTP connection ended early");
    }
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, PEER_TIMEOUT_MS)?;
    Ok(())
}

fn note_end(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(event = "http_connection_panicked", error = %error, "an HTTP connection's task panicked");
    }
}
