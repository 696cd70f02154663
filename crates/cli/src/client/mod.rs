//! The master's HTTP side, as its reader sees it.

mod sse;
pub(crate) mod url;

use std::fmt;
use std::io::BufReader;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::fmt::rfc2822;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rollcall_os::clock;
use rollcall_os::exit::{Exit, ExitError};
use rollcall_protocol::api::{
    ApiError, EventKind, EventList, EventRow, Readiness, SlaveDetail, SlaveHistory, SlaveList,
};
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, BodyReader, RequestBuilder, Timeout, typestate::WithoutBody};

use self::sse::Messages;
use self::url::MasterUrl;
use crate::terminal::escape::escape;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer in bytes: over a hundred thousand slaves.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Largest text of an error that is shown, in bytes.
const ERROR_BYTES_MAX: u64 = 64 * 1024;
/// The `Date` of an answer has whole seconds: less than this is no difference between the clocks.
const CLOCK_SKEW_MIN_MS: i64 = 2_000;

/// What can go wrong between this program and the master.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No answer.
    #[error(
        "can't reach the master at {url}\n  is it running? see `systemctl status rollcall-master`, start a trial with `rollcall up`,\n  or name another with --master or ROLLCALL_MASTER"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: ureq::Error,
    },
    /// An answer that is no success; the text is the master's, escaped.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What the master says.
        text: String,
    },
    /// An answer that no master gives.
    #[error(
        "{url} answers, but not as a Rollcall master does; is this the right address and port?"
    )]
    Foreign {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The stream of events has ended.
    #[error("the stream of events from {url} ended")]
    StreamEnded {
        /// What was asked for.
        url: String,
        /// Why, if it did not end cleanly.
        #[source]
        source: Option<std::io::Error>,
    },
}

impl ClientError {
    /// Whether the same question may be answered later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::StreamEnded { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::Foreign { .. } => false,
        }
    }

    /// Whether the stream was given up because nothing came, which is no fault by itself.
    pub(crate) fn is_silence(&self) -> bool {
        let Self::StreamEnded {
            source: Some(source),
            ..
        } = self
        else {
            return false;
        };
        source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<ureq::Error>())
            .is_some_and(|error| matches!(error, ureq::Error::Timeout(Timeout::PerRead)))
    }

    /// With the exit code that tells scripts the same.
    pub(crate) fn with_exit(self) -> ExitError {
        let exit = if self.is_passing() {
            Exit::Bind
        } else {
            Exit::Failure
        };
        ExitError::new(exit, self)
    }
}

/// How long to be patient with the master.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a whole answer, or the beginning of a stream.
    pub(crate) answer: Duration,
    /// For a sign of life in a stream of events, before it is given up and taken up again.
    pub(crate) silence: Duration,
}

impl Patience {
    /// A large fleet over a slow line must fit.
    pub(crate) const USUAL: Self = Self {
        answer: Duration::from_secs(60),
        silence: Duration::from_secs(60),
    };
}

/// Which events.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventFilter {
    /// Only those recorded after this one.
    pub(crate) after: Option<i64>,
    /// Only those that happened at or after this, in ms since 1970.
    pub(crate) since_ms: Option<i64>,
    /// Only those that happened before this, in ms since 1970.
    pub(crate) until_ms: Option<i64>,
    /// Only those of this slave.
    pub(crate) slave: Option<String>,
    /// Only those of this kind.
    pub(crate) kind: Option<EventKind>,
    /// At most so many.
    pub(crate) limit: Option<u32>,
}

/// A master.
#[derive(Debug)]
pub(crate) struct Client {
    url: MasterUrl,
    answers: Agent,
    streams: Agent,
    clock_skew_ms: AtomicI64,
}

impl Client {
    /// The master at `url`. Nothing is sent yet.
    pub(crate) fn new(url: MasterUrl, patience: Patience) -> Self {
        let base = || {
            Agent::config_builder()
                // The environment's proxy is meant for the web, not for the own fleet.
                .proxy(None)
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(CONNECT_TIMEOUT))
        };
        Self {
            url,
            answers: base()
                .timeout_global(Some(patience.answer))
                .build()
                .new_agent(),
            streams: base()
                .timeout_recv_response(Some(patience.answer))
                .timeout_per_read(Some(patience.silence))
                .build()
                .new_agent(),
            clock_skew_ms: AtomicI64::new(0),
        }
    }

    /// The present time by the master's clock, to which all times of its answers refer, in ms
    /// since 1970. Before the first answer: the own clock.
    pub(crate) fn now_ms(&self) -> i64 {
        clock::wall_ms().saturating_add(self.clock_skew_ms.load(Ordering::Relaxed))
    }

    /// The roll.
    pub(crate) fn slaves(&self) -> Result<SlaveList, ClientError> {
        let url = self.url.join("/v1/slaves");
        self.ask(&url, self.answers.get(&url))
    }

    /// One slave.
    pub(crate) fn slave(&self, name: &str) -> Result<SlaveDetail, ClientError> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        let url = self.url.join(&format!("/v1/slaves/{name}"));
        self.ask(&url, self.answers.get(&url))
    }

    /// What a slave went through since a moment, in ms since 1970.
    pub(crate) fn history(&self, name: &str, since_ms: i64) -> Result<SlaveHistory, ClientError> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        let url = self.url.join(&format!("/v1/slaves/{name}/history"));
        let request = self.answers.get(&url).query("since", since_ms.to_string());
        self.ask(&url, request)
    }

    /// Events, oldest first.
    pub(crate) fn events(&self, filter: &EventFilter) -> Result<EventList, ClientError> {
        let url = self.url.join("/v1/events");
        self.ask(&url, filtered(self.answers.get(&url), filter))
    }

    /// Whether reports are being stored and acked.
    pub(crate) fn readiness(&self) -> Result<Readiness, ClientError> {
        let url = self.url.join("/readyz");
        let answer = self.send(&url, self.answers.get(&url))?;
        match answer.status() {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => read(&url, answer),
            _ => Err(refusal(&url, answer)),
        }
    }

    /// The stream of events after `filter.after`, as they are recorded.
    pub(crate) fn follow(&self, filter: &EventFilter) -> Result<EventStream, ClientError> {
        let url = self.url.join("/v1/events");
        let mut request =
            filtered(self.streams.get(&url), filter).header("accept", "text/event-stream");
        if let Some(after) = filter.after {
            request = request.header("last-event-id", after.to_string());
        }
        let answer = self.send(&url, request)?;
        if !answer.status().is_success() {
            return Err(refusal(&url, answer));
        }
        let kind = answer.body().mime_type().map(str::to_owned);
        if kind.as_deref() != Some("text/event-stream") {
            let told = kind.unwrap_or_else(|| "nothing".to_owned());
            return Err(ClientError::Foreign {
                url,
                source: format!("expected text/event-stream, got {}", escape(&told)).into(),
            });
        }
        let messages = Messages::new(BufReader::new(answer.into_body().into_reader()));
        Ok(EventStream { url, messages })
    }

    fn ask<T: DeserializeOwned>(
        &self,
        url: &str,
        request: RequestBuilder<WithoutBody>,
    ) -> Result<T, ClientError> {
        let answer = self.send(url, request)?;
        if answer.status().is_success() {
            read(url, answer)
        } else {
            Err(refusal(url, answer))
        }
    }

    fn send(
        &self,
        url: &str,
        request: RequestBuilder<WithoutBody>,
    ) -> Result<Response<Body>, ClientError> {
        let answer = request.call().map_err(|source| broken(url, source))?;
        if let Some(skew_ms) = clock_skew_ms(&answer) {
            self.clock_skew_ms.store(skew_ms, Ordering::Relaxed);
        }
        Ok(answer)
    }
}

/// Events as the master records them.
pub(crate) struct EventStream {
    url: String,
    messages: Messages<BufReader<BodyReader<'static>>>,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl EventStream {
    /// Waits for the next event.
    ///
    /// # Errors
    /// [`ClientError::StreamEnded`] when there is none to come on this connection,
    /// [`ClientError::Foreign`] when a message is no event.
    pub(crate) fn next(&mut self) -> Result<EventRow, ClientError> {
        loop {
            let ended = |source| ClientError::StreamEnded {
                url: self.url.clone(),
                source,
            };
            let message = match self.messages.next() {
                Ok(Some(message)) => message,
                Ok(None) => return Err(ended(None)),
                Err(error) => return Err(ended(Some(error))),
            };
            if message.event == "event" {
                return serde_json::from_str(&message.data).map_err(|source| {
                    ClientError::Foreign {
                        url: self.url.clone(),
                        source: source.into(),
                    }
                });
            }
        }
    }
}

fn filtered(
    mut request: RequestBuilder<WithoutBody>,
    filter: &EventFilter,
) -> RequestBuilder<WithoutBody> {
    let numbers = [
        ("after", filter.after),
        ("since", filter.since_ms),
        ("until", filter.until_ms),
        ("limit", filter.limit.map(i64::from)),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            request = request.query(key, value.to_string());
        }
    }
    if let Some(slave) = &filter.slave {
        request = request.query("slave", slave);
    }
    if let Some(kind) = filter.kind {
        request = request.query("kind", kind.as_str());
    }
    request
}

fn read<T: DeserializeOwned>(url: &str, answer: Response<Body>) -> Result<T, ClientError> {
    answer
        .into_body()
        .into_with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_json()
        .map_err(|source| broken(url, source))
}

fn refusal(url: &str, answer: Response<Body>) -> ClientError {
    let status = answer.status();
    let text = answer
        .into_body()
        .into_with_config()
        .limit(ERROR_BYTES_MAX)
        .read_to_string()
        .ok()
        .and_then(|body| serde_json::from_str::<ApiError>(&body).ok());
    match text {
        Some(ApiError { error }) => ClientError::Refused {
            status,
            text: escape(&error).into_owned(),
        },
        None if status.is_server_error() => ClientError::Refused {
            status,
            text: format!("{url} answered {status}"),
        },
        None => ClientError::Foreign {
            url: url.to_owned(),
            source: format!("it answered {status}").into(),
        },
    }
}

fn broken(url: &str, source: ureq::Error) -> ClientError {
    let url = url.to_owned();
    match source {
        ureq::Error::Json(source) if !source.is_io() => ClientError::Foreign {
            url,
            source: source.into(),
        },
        ureq::Error::Protocol(_) | ureq::Error::Http(_) => ClientError::Foreign {
            url,
            source: source.into(),
        },
        source => ClientError::Unreachable { url, source },
    }
}

fn clock_skew_ms(answer: &Response<Body>) -> Option<i64> {
    let date = answer.headers().get("date")?.to_str().ok()?;
    let at = rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    let skew_ms = at.as_millisecond().saturating_sub(clock::wall_ms());
    Some(if skew_ms.saturating_abs() < CLOCK_SKEW_MIN_MS {
        0
    } else {
        skew_ms
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const SHORT: Patience = Patience {
        answer: Duration::from_secs(10),
        silence: Duration::from_millis(100),
    };

    #[test]
    fn a_silent_stream_is_told_from_one_that_broke() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap().into(), SHORT);
        let master = thread::spawn(move || {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n:alive\n\n";
            let (mut silent, _) = listener.accept().unwrap();
            silent.write_all(head.as_bytes()).unwrap();
            let (mut broken, _) = listener.accept().unwrap();
            broken.write_all(head.as_bytes()).unwrap();
            drop(broken);
            // Held until the client lets go of it.
            drop(silent.read_to_end(&mut Vec::new()));
        });
        let mut silent = client.follow(&EventFilter::default()).unwrap();
        let error = silent.next().unwrap_err();
        assert!(error.is_silence() && error.is_passing(), "{error:?}");
        let error = client
            .follow(&EventFilter::default())
            .unwrap()
            .next()
            .unwrap_err();
        assert!(!error.is_silence() && error.is_passing(), "{error:?}");
        drop(silent);
        master.join().unwrap();
    }

    #[test]
    fn times_are_read_by_the_master_s_clock() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap().into(), SHORT);
        let master = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let answer = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2099 00:00:00 GMT\r\n\
                          content-length: 13\r\n\r\n{\"slaves\":[]}";
            stream.write_all(answer.as_bytes()).unwrap();
            drop(stream.read_to_end(&mut Vec::new()));
        });
        client.slaves().unwrap();
        let expected_ms = 4_070_908_800_000;
        let now_ms = client.now_ms();
        assert!(
            (expected_ms..expected_ms + 60_000).contains(&now_ms),
            "{now_ms}"
        );
        drop(client);
        master.join().unwrap();
    }
}
