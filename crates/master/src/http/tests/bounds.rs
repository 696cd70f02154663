//! Peers that do not behave.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_silent_peer_is_dropped_and_a_long_head_is_refused() {
    let server = Server::with(Limits {
        header_timeout: Duration::from_millis(200),
        ..Limits::STANDARD
    });
    let silent = connect(&server);
    let mut slow = connect(&server);
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost").unwrap();
    let mut idle = connect(&server);
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    assert_eq!(answer(silent), "");
    assert!(!answer(slow).contains("200 OK"));
    assert!(answer(idle).starts_with("HTTP/1.1 200 OK"));

    let mut long = connect(&server);
    let head = format!(
        "GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(100_000)
    );
    // It may be refused before all of it is written.
    let _ = long.write_all(head.as_bytes());
    assert!(!answer(long).contains("200 OK"));
    assert_eq!(server.get("/healthz").0, 200);
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = Server::with(Limits {
        connections_max: 2,
        header_timeout: Duration::from_millis(300),
        ..Limits::STANDARD
    });
    let _silent = [connect(&server), connect(&server)];
    let begun = clock::boot();
    assert_eq!(server.get("/healthz").0, 200);
    let waited = clock::boot().saturating_since(begun);
    assert!(waited >= Duration::from_millis(200), "{waited:?}");
}

#[test]
fn who_has_connected_before_the_end_is_answered() {
    let mut server = Server::start();
    let mut early = connect(&server);
    // Whoever is answered was accepted later.
    let mut known = connect(&server);
    known
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    assert!(known.read(&mut [0; 1]).unwrap() > 0);
    server.cancel.cancel();
    // Closed at once, since it had its answer: the end has begun.
    let _ = answer(known);
    early
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    let answered = answer(early);
    assert!(answered.starts_with("HTTP/1.1 200 OK"), "{answered:?}");
    server.stop().unwrap();
}
