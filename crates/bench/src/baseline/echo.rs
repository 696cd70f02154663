//! The bare tokio server: memory only, an ack for each report as soon as it is read.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio_util::task::TaskTracker;

use super::bare::{Item, Peer, append, append_ack, read_buffer};

/// Serves until standard input ends.
///
/// # Errors
/// If the runtime can't be built or the listener fails.
pub(super) fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("no tokio runtime")?;
    let (ended, end) = oneshot::channel::<()>();
    super::when_stdin_ends(move || drop(ended));
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            result = accept(listener) => result.context("the echo server ended"),
            _ = end => Ok(()),
        }
    })
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let buffer = Rc::new(RefCell::new(read_buffer()));
    let tasks = TaskTracker::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let buffer = Rc::clone(&buffer);
        tasks.spawn_local(async move {
            // A broken connection is the client's to count.
            let _ = answer(stream, &buffer).await;
        });
    }
}

/// One connection. No buffer is held while it is idle.
async fn answer(mut stream: TcpStream, buffer: &RefCell<Box<[u8]>>) -> io::Result<()> {
    let mut peer = Peer::default();
    loop {
        stream.readable().await?;
        let mut out = Vec::new();
        match read(&stream, buffer, &mut peer, &mut out) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        stream.write_all(&out).await?;
        if peer.is_complete() {
            // The server closes first, and the loop goes on to the end of the stream.
            stream.shutdown().await?;
        }
    }
}

/// Reads once and puts the answers into `out`; `false` at the end of the stream.
fn read(
    stream: &TcpStream,
    buffer: &RefCell<Box<[u8]>>,
    peer: &mut Peer,
    out: &mut Vec<u8>,
) -> io::Result<bool> {
    let mut buffer = buffer.borrow_mut();
    let count = stream.try_read(&mut buffer)?;
    let mut result = Ok(count > 0);
    peer.feed(&buffer[..count], |item| match item {
        Item::Welcome(welcome) => {
            if let Err(error) = append(&welcome, out) {
                result = Err(error);
            }
        }
        Item::Report {
            stream, sequence, ..
        } => append_ack(stream, sequence, out),
    })?;
    result
}
