//! The way of the HTTP thread to the events on disk: a few connections on threads that may block.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::{AcquireError, Semaphore};
use tokio::task::JoinError;

use crate::stats::Stats;
use crate::store::Store;
use crate::store::events::{EventPage, EventQuery, EventReader, Stretch};

/// Queries that run at once; further ones wait.
pub(super) const READERS_MAX: usize = 4;

/// Why the history did not answer.
#[derive(Debug, Error)]
pub(super) enum HistoryError {
    /// SQLite says no.
    #[error("cannot read the events in {}: {source}", path.display())]
    Read {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The query panicked.
    #[error("reading the events failed: {0}")]
    Panicked(#[from] JoinError),
    /// Nobody closes the semaphore while the history is used.
    #[error("the history is closed")]
    Closed(#[from] AcquireError),
}

/// The events on disk.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
    stats: Arc<Stats>,
    /// Held by a query until its thread is done, even if nobody waits for the answer any more.
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<EventReader>>,
}

impl History {
    /// The events in a store's database. It is opened when it is first asked.
    pub(super) fn new(path: PathBuf, stats: Arc<Stats>) -> Self {
        Self {
            path,
            stats,
            permits: Arc::new(Semaphore::new(READERS_MAX)),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Asks for events.
    pub(super) async fn query(
        self: &Arc<Self>,
        query: EventQuery,
    ) -> Result<EventPage, HistoryError> {
        let page = self.read(move |reader| reader.query(&query)).await?;
        self.stats.events_damaged.add(page.damaged);
        Ok(page)
    }

    /// Asks for one slave's events in a stretch of time.
    pub(super) async fn stretch(
        self: &Arc<Self>,
        stretch: Stretch,
    ) -> Result<EventPage, HistoryError> {
        let page = self.read(move |reader| reader.stretch(&stretch)).await?;
        self.stats.events_damaged.add(page.damaged);
        Ok(page)
    }

    /// The id of the newest event.
    pub(super) async fn newest(self: &Arc<Self>) -> Result<i64, HistoryError> {
        self.read(|reader| reader.newest()).await
    }

    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&mut EventReader) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await?;
        let history = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            history.read_blocking(ask)
        })
        .await?
    }

    fn read_blocking<T>(
        &self,
        ask: impl FnOnce(&mut EventReader) -> rusqlite::Result<T>,
    ) -> Result<T, HistoryError> {
        let fault = |source| {
            Store::suspect(&self.path, &source);
            HistoryError::Read {
                path: self.path.clone(),
                source,
            }
        };
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => EventReader::open(&self.path).map_err(fault)?,
        };
        // A reader that failed is not used again.
        let answer = ask(&mut reader).map_err(fault)?;
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(reader);
        Ok(answer)
    }
}
