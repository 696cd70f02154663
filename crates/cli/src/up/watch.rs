//! What `rollcall up` waits for, each on a thread of its own, told over one channel.
//!
//! The threads end when nobody listens any more, or with the process.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use rollcall_protocol::api::{EventRow, SlaveRow};

use crate::client::{Client, EventFilter};
use crate::daemons::Role;
use crate::events;
use crate::events::follow::{Follower, Step};
use crate::terminal::escape::escape;

/// How often the roll is asked for: often enough for the times on the screen.
const ROLL_EVERY: Duration = Duration::from_millis(500);

/// Something that happened.
#[derive(Debug)]
pub(super) enum Happening {
    /// A signal that ends this program, by name.
    Stop(&'static str),
    /// A daemon ended.
    Ended(Role),
    /// The roll as it is now.
    Roll(Roll),
    /// The master recorded an event.
    Event(Box<EventRow>),
    /// Something else that is worth a line.
    Notice(String),
}

/// The roll at one moment.
#[derive(Debug)]
pub(super) struct Roll {
    /// The slaves; none if the master does not answer.
    pub(super) slaves: Option<Vec<SlaveRow>>,
    /// Why the master does not store reports, if it does not; safe for a terminal.
    pub(super) degraded: Option<String>,
    /// The present time by the master's clock, in ms since 1970.
    pub(super) now_ms: i64,
}

/// Tells of the roll again and again.
pub(super) fn roll(client: Arc<Client>, tell: Sender<Happening>) -> io::Result<()> {
    spawn("roll", move || {
        while tell.send(Happening::Roll(look(&client))).is_ok() {
            thread::sleep(ROLL_EVERY);
        }
    })
}

/// The roll as it is now.
pub(super) fn look(client: &Client) -> Roll {
    let readiness = client.readiness().ok().filter(|readiness| !readiness.ready);
    let reason = readiness.map(|readiness| readiness.reason.unwrap_or_default());
    Roll {
        slaves: client.slaves().ok().map(|list| list.slaves),
        degraded: reason.map(|reason| escape(&reason).into_owned()),
        now_ms: client.now_ms(),
    }
}

/// Tells of each event from `since_ms` on.
pub(super) fn events(
    client: Arc<Client>,
    since_ms: i64,
    tell: Sender<Happening>,
) -> io::Result<()> {
    let filter = EventFilter {
        since_ms: Some(since_ms),
        ..EventFilter::default()
    };
    let mut follower = Follower::new(client, filter);
    spawn("events", move || {
        loop {
            let (happening, is_last) = match follower.next() {
                Ok(Step::Event(event)) => (Happening::Event(event), false),
                Ok(step) => match events::notice(&step) {
                    Some(text) => (Happening::Notice(text), false),
                    None => continue,
                },
                Err(error) => (Happening::Notice(error.to_string()), true),
            };
            if tell.send(happening).is_err() || is_last {
                return;
            }
        }
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
}
