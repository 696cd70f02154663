//! A master that says what a test wants, and the program under test.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it came in: the target and the headers.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) target: String,
    pub(crate) headers: Vec<String>,
}

/// Answers each request with what `answer` gives: the bytes after which the connection is closed.
pub(crate) struct FakeMaster {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Receiver<Request>,
}

impl FakeMaster {
    pub(crate) fn start(answer: impl Fn(&Request) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::serve(listener, answer)
    }

    pub(crate) fn serve(
        listener: TcpListener,
        answer: impl Fn(&Request) -> String + Send + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let (tell, requests) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Some(request) = read_request(&stream) else {
                    continue;
                };
                // The client may hang up first, and the test need not look at the requests.
                drop((&stream).write_all(answer(&request).as_bytes()));
                drop(tell.send(request));
            }
        });
        Self { address, requests }
    }

    /// Gives each answer once, in this order.
    pub(crate) fn script(answers: impl IntoIterator<Item = String>) -> Self {
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        Self::start(move |_| answers.lock().unwrap().pop_front().unwrap_or_default())
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let target = first.split(' ').nth(1)?.to_owned();
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .map(|line| line.to_ascii_lowercase())
        .collect();
    Some(Request { target, headers })
}

pub(crate) fn ok(body: &str) -> String {
    answer("200 OK", body)
}

pub(crate) fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn stream(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}")
}

/// A time as the master writes it.
fn time(ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms).unwrap();
    format!("{time:.3}")
}

pub(crate) fn slave(name: &str, presence: &str, last_seen_ms: i64) -> String {
    let last_seen = time(last_seen_ms);
    format!(
        r#"{{"name":"{name}","id":"00","presence":"{presence}","health":"ok","since":"1970-01-01T00:00:00.001Z","last_seen":"{last_seen}","interval_ms":1000,"stream":"01","sequence":7,"applied":7,"duplicates":0,"gaps":0,"clock_offset_ms":null,"mode":"pooled","peer":null,"connected_since":null,"reconnects":0,"labels":{{}}}}"#
    )
}

pub(crate) fn slaves(rows: &[String]) -> String {
    format!(r#"{{"slaves":[{}]}}"#, rows.join(","))
}

pub(crate) fn event(id: i64, text: &str) -> String {
    let time = time(id * 1000);
    format!(
        r#"{{"id":{id},"time":"{time}","recorded":"{time}","kind":"presence","slave":"web-1","subject":null,"from":"up","to":"late","text":"{text}","replayed":false}}"#
    )
}

pub(crate) fn message(id: i64, text: &str) -> String {
    format!("id: {id}\nevent: event\ndata: {}\n\n", event(id, text))
}

pub(crate) fn rollcall() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command
        .env_remove("ROLLCALL_MASTER")
        .env_remove("NO_COLOR")
        // Colour and width must not depend on where the tests run.
        .env("TERM", "xterm");
    command
}

pub(crate) fn run(master: &str, arguments: &[&str]) -> Output {
    rollcall()
        .args(["--master", master])
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
