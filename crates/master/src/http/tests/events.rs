//! The history over HTTP, and streams that are cut off and resumed while events are being added.

use std::io::{BufRead, BufReader};
use std::sync::mpsc::Sender;

use rollcall_protocol::api::EventList;

use super::*;

fn listed(server: &Server, path: &str) -> Vec<i64> {
    let (status, body) = server.get(path);
    assert_eq!(status, 200, "{body}");
    let list: EventList = serde_json::from_str(&body).unwrap();
    list.events.iter().map(|event| event.id).collect()
}

#[test]
fn events_are_listed_by_what_the_query_says() {
    let mut server = Server::start();
    assert_eq!(listed(&server, "/v1/events"), Vec::<i64>::new());
    server.commit(1, (1..=150).map(event).collect());
    assert_eq!(
        listed(&server, "/v1/events"),
        (51..=150).collect::<Vec<_>>()
    );
    assert_eq!(listed(&server, "/v1/events?after=148"), [149, 150]);
    assert_eq!(listed(&server, "/v1/events?slave=even&limit=2"), [148, 150]);
    assert_eq!(
        listed(&server, "/v1/events?since=3&until=6&kind=presence"),
        [3, 4, 5]
    );
    assert_eq!(listed(&server, "/v1/events?kind=gap"), Vec::<i64>::new());
}

#[test]
fn a_wrong_parameter_is_named_with_what_would_be_right() {
    let server = Server::start();
    let cases = [
        (
            "/v1/events?limit=0",
            "limit: \"0\" is not a whole number from 1 to 10000",
        ),
        (
            "/v1/events?limit=10001",
            "limit: \"10001\" is not a whole number from 1 to 10000",
        ),
        (
            "/v1/events?after=9223372036854775808",
            "after: \"9223372036854775808\" is not a whole number from 0 to 9223372036854775807",
        ),
        (
            "/v1/events?after=-1",
            "after: \"-1\" is not a whole number from 0 to 9223372036854775807",
        ),
        (
            "/v1/events?sinse=1",
            "sinse: unknown parameter; did you mean \"since\"?",
        ),
        (
            "/v1/events?x=1",
            "x: unknown parameter; there are: after, since, until, slave, kind, limit",
        ),
        ("/v1/events?after=1&after=2", "after: is given twice"),
        (
            "/v1/events?since=5&until=5",
            "until: must be later than since",
        ),
        (
            "/v1/slaves?limit=5",
            "limit: unknown parameter; this path takes none",
        ),
    ];
    for (path, error) in cases {
        assert_eq!(server.error(path, 400), error, "{path}");
    }
    assert!(
        server
            .error("/v1/events?kind=gaps", 400)
            .starts_with("kind: ")
    );
    assert!(
        server
            .error("/v1/events?slave=A%20b", 400)
            .starts_with("slave: ")
    );
    assert!(
        server
            .error("/v1/events?since=1e3", 400)
            .starts_with("since: ")
    );
    let sse = [("accept", "text/event-stream"), ("last-event-id", "x")];
    let (status, body) = server.get_with("/v1/events", &sse);
    assert!(status == 400 && body.contains("Last-Event-ID"), "{body}");
    let (status, body) = server.get_with("/v1/events?limit=5", &sse[..1]);
    assert!(status == 400 && body.contains("limit"), "{body}");
}

/// A stream as its reader sees it.
struct Stream(BufReader<ureq::BodyReader<'static>>);

impl Stream {
    fn open(server: &Server, path: &str, last_id: Option<i64>) -> Self {
        Self::open_at(server.address, path, last_id)
    }

    fn open_at(address: SocketAddr, path: &str, last_id: Option<i64>) -> Self {
        let last_id = last_id.map(|id| id.to_string());
        let mut headers = vec![("accept", "text/html;q=0.1, text/event-stream")];
        if let Some(id) = &last_id {
            headers.push(("last-event-id", id));
        }
        let response = request(address, path, &headers);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(BufReader::new(response.into_body().into_reader()))
    }

    /// The next event's id, none at the end of the stream.
    fn next(&mut self) -> Option<i64> {
        let (mut id, mut data, mut kind) = (None, None, None);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end().split_once(':') {
                Some(("id", text)) => id = text.trim().parse().ok(),
                Some(("event", text)) => kind = Some(text.trim().to_owned()),
                Some(("data", text)) => data = serde_json::from_str(text).ok(),
                _ if id.is_none() => {}
                _ => {
                    let row: EventRow = data.unwrap();
                    assert_eq!((id, kind.as_deref()), (Some(row.id), Some("event")));
                    return id;
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<i64> {
        (0..count).map(|_| self.next().expect("an event")).collect()
    }
}

#[test]
fn a_stream_begins_where_it_is_asked_to() {
    let mut server = Server::start();
    server.commit(1, (1..=6).map(event).collect());
    let mut after = Stream::open(&server, "/v1/events?after=4", None);
    let mut header_wins = Stream::open(&server, "/v1/events?after=1", Some(5));
    let mut since = Stream::open(&server, "/v1/events?since=2&slave=even", None);
    let mut now = Stream::open(&server, "/v1/events", None);
    let mut from_another_history = Stream::open(&server, "/v1/events", Some(1_000));
    assert_eq!(after.take(2), [5, 6]);
    assert_eq!(header_wins.take(1), [6]);
    assert_eq!(since.take(3), [2, 4, 6]);
    assert_eq!(from_another_history.take(6), [1, 2, 3, 4, 5, 6]);
    server.commit(2, vec![event(7), event(8)]);
    assert_eq!(after.take(2), [7, 8]);
    assert_eq!(since.take(1), [8]);
    assert_eq!(now.take(2), [7, 8]);
}

#[test]
fn a_hole_in_what_is_published_is_filled_from_the_database() {
    let mut server = Server::start();
    let mut stream = Stream::open(&server, "/v1/events", None);
    server.store(1, vec![event(1), event(2), event(3)]);
    server.publish(vec![event(3)]);
    assert_eq!(stream.take(3), [1, 2, 3]);
    server.publish(vec![event(2), event(3)]);
    server.commit(2, vec![event(4)]);
    assert_eq!(stream.take(1), [4]);
}

/// Reads a stream and cuts it off again and again, each time a little later.
fn read_in_pieces(address: SocketAddr, last_id: i64, ids: &Sender<i64>) {
    let mut last = 0;
    for piece in 1.. {
        let mut stream = Stream::open_at(address, "/v1/events", Some(last));
        for _ in 0..(37 * piece) {
            let Some(id) = stream.next() else { break };
            last = id;
            if ids.send(id).is_err() || id >= last_id {
                return;
            }
        }
    }
}

#[test]
fn a_stream_that_is_cut_off_and_resumed_sees_every_event_once() {
    const EVENTS: i64 = 3_000;
    let mut server = Server::start();
    let address = server.address;
    server.commit(1, (1..=700).map(event).collect());
    let mut seen: Vec<i64> = Vec::new();
    std::thread::scope(|scope| {
        let (sender, ids) = std::sync::mpsc::channel();
        scope.spawn(move || read_in_pieces(address, EVENTS, &sender));
        let mut next = 701;
        for group in 2.. {
            // Bursts beyond the broadcast's capacity, and single events.
            let count = if group % 3 == 0 { 1 } else { 25 };
            let end = (next + count).min(EVENTS + 1);
            server.commit(group, (next..end).map(event).collect());
            next = end;
            // Now and then the reader is level with the writer, so that it lives off the broadcast.
            let wait = next > EVENTS || group % 4 == 0;
            while wait && seen.last() != Some(&(next - 1)) {
                let Ok(id) = ids.recv_timeout(Duration::from_secs(20)) else {
                    server.cancel.cancel();
                    panic!("no event after {:?}", seen.last());
                };
                seen.push(id);
            }
            if next > EVENTS {
                break;
            }
        }
    });
    assert_eq!(seen, (1..=EVENTS).collect::<Vec<_>>());
}

#[test]
fn open_streams_do_not_hold_up_the_end() {
    let mut server = Server::start();
    let mut stream = Stream::open(&server, "/v1/events", None);
    let begun = clock::boot();
    server.stop().unwrap();
    assert!(clock::boot().saturating_since(begun) < Limits::STANDARD.drain_timeout);
    assert_eq!(stream.next(), None);
}

#[test]
fn streams_beyond_the_limit_are_refused_until_one_ends() {
    let server = Server::with(Limits {
        streams_max: 2,
        ..Limits::STANDARD
    });
    let one = Stream::open(&server, "/v1/events", None);
    let _two = Stream::open(&server, "/v1/events", None);
    let sse = [("accept", "text/event-stream")];
    let (status, body) = server.get_with("/v1/events", &sse);
    assert!(
        status == 503 && body.contains("2 event streams are open"),
        "{body}"
    );
    drop(one);
    // The server learns of the end from the socket, a moment later.
    let deadline = clock::boot() + Duration::from_secs(10);
    while server.request("/v1/events", &sse).status() != 200 {
        assert!(
            clock::boot() < deadline,
            "the place of the ended stream was never given back"
        );
        std::thread::yield_now();
    }
}
