//! Figures of each listener, for `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::stats::Counter;

/// Why a peer was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// All connections that there may be are open.
    Full,
    /// Its address has as many as one address may have.
    PerAddress,
    /// The listener is for privileged source ports.
    SourcePort,
    /// No descriptor is left.
    NoDescriptor,
}

impl Reason {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [
        Self::Full,
        Self::PerAddress,
        Self::SourcePort,
        Self::NoDescriptor,
    ];

    /// Its name in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::PerAddress => "per_address",
            Self::SourcePort => "source_port",
            Self::NoDescriptor => "no_descriptor",
        }
    }
}

/// What one listener has done. It counts on if the listener is removed and comes back.
#[derive(Debug, Default)]
pub(crate) struct ListenerFigures {
    /// 1 while it listens: a gauge.
    pub(crate) is_up: Counter,
    /// Connections accepted, those that were refused then included.
    pub(crate) accepted: Counter,
    refused: [Counter; Reason::ALL.len()],
}

impl ListenerFigures {
    /// Peers that were refused for `reason`.
    pub(crate) fn refused(&self, reason: Reason) -> &Counter {
        match reason {
            Reason::Full => &self.refused[0],
            Reason::PerAddress => &self.refused[1],
            Reason::SourcePort => &self.refused[2],
            Reason::NoDescriptor => &self.refused[3],
        }
    }
}

/// The figures of all listeners that there have been since the start, by their configured address.
#[derive(Debug, Default)]
pub(crate) struct Figures(Mutex<BTreeMap<SocketAddr, Arc<ListenerFigures>>>);

impl Figures {
    /// Those of the listener on `address`, which are made if they are new.
    pub(crate) fn of(&self, address: SocketAddr) -> Arc<ListenerFigures> {
        Arc::clone(self.lock().entry(address).or_default())
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(SocketAddr, Arc<ListenerFigures>)> {
        let figures = self.lock();
        let all = figures.iter();
        all.map(|(address, figures)| (*address, Arc::clone(figures)))
            .collect()
    }

    /// Held for a look only, at a change of listeners and at a scrape.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<ListenerFigures>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
