//! Events as they are recorded, each once, over restarts of the master.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::api::EventRow;
use rollcall_protocol::backoff::{Backoff, BackoffLimits};

use crate::client::{Client, ClientError, EventFilter, EventStream};

/// A person is waiting: short pauses, which still spread many watchers over a second.
const PAUSES: BackoffLimits = BackoffLimits {
    base: Duration::from_millis(250),
    cap: Duration::from_secs(5),
    reset_after: Duration::from_secs(10),
};

/// What a follower has to say.
#[derive(Debug)]
pub(crate) enum Step {
    /// A new event.
    Event(Box<EventRow>),
    /// The master is gone; it is being tried again.
    Lost(ClientError),
    /// The master is back; events go on where they ended.
    Back,
}

/// A stream of events that is taken up again, after the last event that was seen, whenever it ends.
#[derive(Debug)]
pub(crate) struct Follower {
    client: Arc<Client>,
    filter: EventFilter,
    stream: Option<EventStream>,
    backoff: Backoff,
    pause: Duration,
    is_lost: bool,
}

impl Follower {
    /// Follows the events after `filter.after`; all of them if that is none.
    pub(crate) fn new(client: Arc<Client>, filter: EventFilter) -> Self {
        Self {
            client,
            filter: EventFilter {
                after: Some(filter.after.unwrap_or(0)),
                limit: None,
                ..filter
            },
            stream: None,
            backoff: Backoff::new(PAUSES),
            pause: Duration::ZERO,
            is_lost: false,
        }
    }

    /// Waits for what comes next. A loss is told once, not at every attempt.
    ///
    /// # Errors
    /// What trying again does not mend.
    pub(crate) fn next(&mut self) -> Result<Step, ClientError> {
        loop {
            let result = match &mut self.stream {
                Some(stream) => stream.next().map(Some),
                None => self.open().map(|()| None),
            };
            match result {
                Ok(Some(event)) if self.is_new(&event) => {
                    self.filter.after = Some(event.id);
                    return Ok(Step::Event(Box::new(event)));
                }
                Ok(Some(_)) => {}
                Ok(None) if std::mem::take(&mut self.is_lost) => return Ok(Step::Back),
                Ok(None) => {}
                Err(error) if error.is_silence() => self.stream = None,
                Err(error) if error.is_passing() => {
                    self.stream = None;
                    let random = getrandom::u64().unwrap_or(u64::MAX);
                    self.pause = self.backoff.handle_down(clock::boot(), random);
                    if !std::mem::replace(&mut self.is_lost, true) {
                        return Ok(Step::Lost(error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn open(&mut self) -> Result<(), ClientError> {
        thread::sleep(std::mem::take(&mut self.pause));
        self.stream = Some(self.client.follow(&self.filter)?);
        self.backoff.handle_up(clock::boot());
        Ok(())
    }

    fn is_new(&self, event: &EventRow) -> bool {
        self.filter.after.is_none_or(|after| event.id > after)
    }
}
