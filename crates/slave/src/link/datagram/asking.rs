//! A question on its way: sent again until it is answered, or of no more use.

use rollcall_os::clock;
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
        let unreachable = |source| {
            let address = line.peer();
            Asked::Lost(ConnectError::Refused { address, source }.into())
        };
        let stop = self.stop.clone();
        loop {
            let now = clock::boot();
            let drained = self.drain_until.map(|until| {
                if question.is_goodbye {
                    until + CLOSE_WAIT
                } else {
                    until
                }
            });
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
                match line.send(question.bytes()).await {
                    Ok(Sent::Away) => again = now + resend.handle_sent(random::bits()),
                    Ok(Sent::TooLarge) => {
                        return Asked::TooLarge(std::mem::take(&mut question.owed));
                    }
                    Err(source) => return unreachable(source),
                }
            }
            let wake = drained.into_iter().chain([again, give_up]).min();
            let left = wake.unwrap_or(now).saturating_since(now);
            tokio::select! {
                received = line.receive(&mut buffer) => match received {
                    Ok(length) => match open_answer(&buffer[..length], question.number) {
                        Ok(answer) => {
                            return Asked::Answered((answer, resend.sent() == 1));
                        }
                        Err(error) => {
                            tracing::debug!(event = "answer_ignored", peer = %line.peer(), error = %error, "a datagram from the master is not the answer that is waited for");
                        }
                    },
                    Err(error) => match fate_of(error) {
                        Ok(Sent::Away) => {}
                        Ok(Sent::TooLarge) => {
                            return Asked::TooLarge(std::mem::take(&mut question.owed));
                        }
                        Err(source) => return unreachable(source),
                    },
                },
                () = tokio::time::sleep(left) => {}
                () = stop.cancelled(), if self.drain_until.is_none() => self.begin_stop(),
            }
        }
    }
}
