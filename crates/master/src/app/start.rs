//! What the daemon is made of, and how much of it fits.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use rollcall_os::clock;
use rollcall_os::exit::{Exit, ExitWith};
use rollcall_os::parking;
use rollcall_os::socket::{ListenError, ListenOptions};
use rollcall_os::systemd::store as descriptors;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::adoption::{Parking, Side};
use crate::config::Config;
use crate::http::{self, Limits, Readers};
use crate::listener::{self, Inherited, Rules};
use crate::reactor::{Publication, Reactor};
use crate::roll::{Durable, Roll, Stamp};
use crate::stats::Stats;
use crate::store::{Loaded, Store};
use crate::view::ReportsAsked;

/// Events that a follower may be behind before it reads them from the store.
const EVENTS_BEHIND_MAX: usize = 1024;
/// Descriptors that are no served connections: listeners, the store, readers, and peers that are told
/// why they are not let in.
const DESCRIPTORS_RESERVED: u64 = 704;

/// The roll's owner and what readers see of it.
pub(super) struct Restored {
    pub(super) reactor: Rc<Reactor>,
    pub(super) readers: Readers,
}

/// The reactor, with the roll as the store had it, and what readers read from. `files` may be open.
pub(super) fn restore(
    config: &Config,
    loaded: Loaded,
    questions: mpsc::Sender<ReportsAsked>,
    files: u64,
) -> anyhow::Result<Restored> {
    let stamp = Stamp {
        at: clock::boot(),
        wall_ms: clock::wall_ms(),
    };
    let text = match (loaded.listening_at_ms, &loaded.set_aside) {
        (_, Some(path)) => format!(
            "its store was damaged and is set aside as {}",
            path.display()
        ),
        (Some(at_ms), None) => {
            let away_ms = stamp.wall_ms.saturating_sub(at_ms).max(0);
            format!(
                "it had not been listening for {}.{} s",
                away_ms / 1000,
                away_ms % 1000 / 100
            )
        }
        (None, None) => "its store is new".to_owned(),
    };
    let durable = Durable {
        records: loaded.records,
        redo: loaded.redo,
        next_group: loaded.next_group,
        next_event: loaded.next_event,
    };
    let mut roll =
        Roll::restore(durable, config.presence, config.rings, stamp.at).exit_with(Exit::Store)?;
    let stats = Arc::new(Stats::default());
    let set_aside = u64::try_from(loaded.set_aside_files).unwrap_or(u64::MAX);
    stats.set_aside.set(set_aside);
    let (roll_sender, roll_receiver) = watch::channel(Arc::default());
    let (events_sender, _) = broadcast::channel(EVENTS_BEHIND_MAX);
    let readers = Readers {
        roll: roll_receiver,
        stats: Arc::clone(&stats),
        events: Store::database(&config.state_directory),
        new_events: events_sender.clone(),
        reports: questions,
    };
    let publication = Publication {
        roll: roll_sender,
        events: events_sender,
        stats,
    };
    // What is on disk is published before anything new is to be committed.
    let published = roll.publish().unwrap_or_default();
    roll.handle_start(text, stamp);
    let reactor = Reactor::new(
        roll,
        published,
        config.session,
        loaded.master_id,
        publication,
    );
    let store = descriptors::Store::find();
    let reactor = Rc::new(reactor.with_parking(Parking::new(store, files)));
    Ok(Restored { reactor, readers })
}

/// Where readers connect: on the socket that was open before this process, or on one of its own.
///
/// # Errors
/// [`ListenError`] with the remedy.
pub(super) async fn http_listener(
    address: SocketAddr,
    options: &ListenOptions,
    inherited: &mut Inherited,
    parking: &Parking,
) -> Result<TcpListener, ListenError> {
    let listener = match inherited.take(address, parking) {
        Some(listener) => listener,
        None => {
            let listener = listener::bind(address, options).await?;
            parking.keep_listener(Side::Readers, address, &listener);
            listener
        }
    };
    if let Ok(address) = listener.local_addr() {
        listener::warn_of_ephemeral_port(address);
    }
    Ok(listener)
}

/// Starts the HTTP server's thread; what comes out of the channel is why it ended.
pub(super) fn serve_http(
    listener: TcpListener,
    readers: Readers,
    stop: CancellationToken,
) -> anyhow::Result<oneshot::Receiver<String>> {
    let (ended_sender, ended) = oneshot::channel();
    thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            let reason = match http::serve(listener, readers, Limits::STANDARD, stop) {
                Ok(()) => "it was told to".to_owned(),
                Err(error) => error.to_string(),
            };
            // Nobody listens any more once the daemon is ending.
            let _ = ended_sender.send(reason);
        })
        .context("can't start the HTTP thread")?;
    Ok(ended)
}

/// Raises the limit of open files as far as this process may, and returns it.
pub(super) fn open_files() -> anyhow::Result<u64> {
    rollcall_os::limits::raise_open_files().context("can't raise the limit of open files")
}

/// Keeps the connections within the limit of open `files`.
pub(super) fn within(files: u64, mut rules: Rules) -> Rules {
    // The shards in which connections are parked have to be open, too.
    let reserved = DESCRIPTORS_RESERVED.saturating_add(parking::shard_descriptors(files));
    let room = usize::try_from(files.saturating_sub(reserved))
        .unwrap_or(usize::MAX)
        .max(16);
    let configured = rules.limits.connections_max;
    if configured > room {
        tracing::warn!(
            event = "connections_limited",
            configured,
            possible = room,
            "[limits] connections_max does not fit into the limit of open files: raise LimitNOFILE"
        );
    }
    rules.limits.connections_max = match configured {
        0 => room,
        configured => configured.min(room),
    };
    rules
}
