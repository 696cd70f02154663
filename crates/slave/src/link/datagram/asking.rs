//! A question on its way: sent again until it is answered, or of no more use.

use std::io;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::{Resend, open_answer};
use rollcall_protocol::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_SAFE};
use rollcall_protocol::session::slave::Silence;
use rollcall_protocol::wire::{Gap, ToSlave};

use super::LARGE_TRIES;
use super::line::{Line, Sent, fate_of};
use super::question::Question;
use crate::link::Link;
use crate::link::dial::ConnectError;
use crate::link::end::LinkError;
use crate::link::exchange::CLOSE_WAIT;
use crate::random;

/// What became of a question. What the master lacks and was not told comes back.
pub(super) enum Asked {
    /// It was answered; and whether it had been sent once, so that the answer is to that.
    Answered((Vec<ToSlave>, bool)),
    /// It does not fit the path, as the kernel knows now.
    TooLarge(Vec<Gap>),
    /// It may be too large for a part of the path that does not say so.
    Swallowed(Vec<Gap>),
    /// The master can't be reached, or is silent.
    Lost(LinkError),
    /// There was no time left.
    Drained,
}

impl Link {
    /// Asks until the answer comes.
    pub(super) async fn put(&mut self, line: &Line, question: &mut Question) -> Asked {
        let patience = self.config.timeouts.welcome;
        let give_up = clock::boot() + patience;
        let is_large = question.bytes().len() > DATAGRAM_BYTES_SAFE;
        let mut resend = Resend::new(self.config.resend);
        let mut again = clock::boot();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let stop = self.stop.clone();
        loop {
            let now = clock::boot();
            let drained = self.drained_at(question);
            if drained.is_some_and(|drained| now >= drained) {
                return Asked::Drained;
            }
            if now >= give_up {
                return Asked::Lost(Silence::NoWelcome(patience).into());
            }
            if now >= again {
                if is_large && resend.sent() >= LARGE_TRIES {
                    return Asked::Swallowed(std::mem::take(&mut question.owed));
                }
                let fate = line.send(question.bytes()).await;
                if let Some(failed) = failed(line, question, fate) {
                    return failed;
                }
                again = now + resend.handle_sent(random::bits());
            }
            let wake = drained.into_iter().chain([again, give_up]).min();
            let left = wake.unwrap_or(now).saturating_since(now);
            tokio::select! {
                received = line.receive(&mut buffer) => {
                    let once = resend.sent() == 1;
                    let received = received.map(|length| &buffer[..length]);
                    if let Some(asked) = heard(line, question, received, once) {
                        return asked;
                    }
                }
                () = tokio::time::sleep(left) => {}
                () = stop.cancelled(), if self.drain_until.is_none() => self.begin_stop(),
            }
        }
    }

    /// When there is no time left for the question, once the slave is to stop.
    fn drained_at(&self, question: &Question) -> Option<Moment> {
        let until = self.drain_until?;
        Some(if question.is_goodbye {
            until + CLOSE_WAIT
        } else {
            until
        })
    }
}

/// What a datagram from the master means, or what the kernel says instead of one; `None` if the
/// answer is still to come.
fn heard(
    line: &Line,
    question: &mut Question,
    received: io::Result<&[u8]>,
    once: bool,
) -> Option<Asked> {
    let bytes = match received {
        Ok(bytes) => bytes,
        Err(error) => return failed(line, question, fate_of(error)),
    };
    match open_answer(bytes, question.number) {
        Ok(answer) => Some(Asked::Answered((answer, once))),
        Err(error) => {
            tracing::debug!(event = "answer_ignored", peer = %line.peer(), error = %error, "a datagram from the master is not the answer that is waited for");
            None
        }
    }
}

/// What the fate of a datagram means for the question; `None` if it is on its way.
fn failed(line: &Line, question: &mut Question, fate: io::Result<Sent>) -> Option<Asked> {
    match fate {
        Ok(Sent::Away) => None,
        Ok(Sent::TooLarge) => Some(Asked::TooLarge(std::mem::take(&mut question.owed))),
        Err(source) => {
            let address = line.peer();
            Some(Asked::Lost(
                ConnectError::Refused { address, source }.into(),
            ))
        }
    }
}
