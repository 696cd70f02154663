//! Credit: what the backlogs of all slaves together may take of the master.
//!
//! After an outage every slave comes back with a backlog. Live reports go at once, as always;
//! backlog is read in shares, so that a live report never waits behind more than one round of them:
//!
//! ```text
//!   a share   one look at one connection: SHARE_FRAMES frames of backlog at most, and one buffer
//!   a round   some shares, given to those who wait in the order in which they asked
//!
//!   round ── somebody takes a share ──> the round ends ── durable ──> a pause as long ──> round …
//! ```
//! So backlogs have at most half of the time, and a group at most one round of backlog. The slower
//! the disk the larger is a round, because a live report waits for the disk anyway. What is not read
//! stays in the kernel: the slave's window and TCP hold back the rest, and nothing queues here but
//! the connections themselves.

use std::cell::Cell;
use std::time::Duration;

use rollcall_os::clock;
use tokio::sync::{Notify, Semaphore};

use super::Reactor;

/// Shares of the smallest round: enough to make a commit worth while.
const SHARES_MIN: usize = 8;
/// Shares of the largest round: connections whose backlog goes into one group at most.
pub(crate) const SHARES_MAX: usize = 64;
/// A round has a share for each such part of the time that the last one took: some four times what
/// it takes to read one, so that reading stays a small part of it.
const SHARE_TIME: Duration = Duration::from_micros(100);
/// Frames of backlog that one share is good for. It is also the window of a slave that comes with a
/// backlog: a share takes all that it has under way, and what it reports live meanwhile waits in the
/// kernel for one share at most.
pub(crate) const SHARE_FRAMES: u32 = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Credit {
    /// What is left of the round. The queue of those who wait is in here, and it is fair.
    shares: Semaphore,
    /// Somebody has taken one.
    begun: Cell<bool>,
    beginning: Notify,
}

impl Credit {
    /// With the first round.
    pub(super) fn new() -> Self {
        Self {
            shares: Semaphore::new(SHARES_MIN),
            begun: Cell::default(),
            beginning: Notify::new(),
        }
    }

    /// Takes a share as soon as those who asked before have theirs.
    pub(crate) async fn share(&self) {
        // Nobody closes it.
        if let Ok(share) = self.shares.acquire().await {
            share.forget();
            self.begin();
        }
    }

    /// Takes a share if one is left; whoever waits goes first.
    pub(crate) fn try_share(&self) -> bool {
        let taken = self.shares.try_acquire().map(|share| share.forget());
        if taken.is_ok() {
            self.begin();
        }
        taken.is_ok()
    }

    fn begin(&self) {
        if !self.begun.replace(true) {
            self.beginning.notify_one();
        }
    }

    /// Resolves once a share of the round is taken.
    async fn round_begun(&self) {
        while !self.begun.get() {
            self.beginning.notified().await;
        }
    }

    /// What was not taken is gone: the shares of a round come together, and those of two rounds
    /// never.
    fn end_round(&self) {
        self.shares.forget_permits(SHARES_MAX);
    }

    /// The last round took `took`.
    fn next_round(&self, took: Duration) {
        self.begun.set(false);
        self.shares.add_permits(shares_after(took));
    }
}

/// Shares of a round after one that took `took`.
fn shares_after(took: Duration) -> usize {
    let shares = took.as_micros() / SHARE_TIME.as_micros();
    usize::try_from(shares).map_or(SHARES_MAX, |shares| shares.clamp(SHARES_MIN, SHARES_MAX))
}

impl Reactor {
    /// Round after round, for as long as the daemon lives.
    pub(crate) async fn share_out(&self) {
        let credit = self.credit();
        loop {
            credit.round_begun().await;
            let begun = clock::boot();
            // Whoever else is ready in this turn of the loop belongs to the round.
            tokio::task::yield_now().await;
            credit.end_round();
            self.durable().await;
            let took = clock::boot().saturating_since(begun);
            tokio::time::sleep(took).await;
            credit.next_round(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    fn poll(future: impl Future<Output = ()>) -> bool {
        future.now_or_never().is_some()
    }

    fn waits(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        future.now_or_never().is_none()
    }

    fn take_all(credit: &Credit) -> usize {
        std::iter::from_fn(|| credit.try_share().then_some(())).count()
    }

    #[test]
    fn a_round_begins_when_a_share_is_taken_and_what_is_left_is_not_saved() {
        let credit = Credit::new();
        for round in 0..4 {
            assert!(!poll(credit.round_begun()), "round {round}");
            assert!(poll(credit.share()));
            assert!(poll(credit.round_begun()));
            if round % 2 == 1 {
                assert_eq!(take_all(&credit), SHARES_MIN - 1, "round {round}");
            }
            credit.end_round();
            assert!(!credit.try_share() && !poll(credit.share()));
            credit.next_round(Duration::ZERO);
        }
    }

    #[test]
    fn rounds_grow_with_the_time_that_a_group_takes_within_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(shares_after(Duration::ZERO), SHARES_MIN);
        assert_eq!(shares_after(ms(2)), 20);
        assert_eq!(shares_after(ms(3_600_000)), SHARES_MAX);
        let credit = Credit::new();
        credit.end_round();
        credit.next_round(ms(2));
        assert_eq!(take_all(&credit), 20);
    }

    #[test]
    fn shares_go_to_those_who_asked_first_and_nobody_overtakes_them() {
        let credit = Credit::new();
        credit.end_round();
        let got = RefCell::new(Vec::new());
        let wait = |name: usize| {
            let (credit, got) = (&credit, &got);
            Box::pin(async move {
                credit.share().await;
                got.borrow_mut().push(name);
            })
        };
        let mut waiting: Vec<_> = (0..SHARES_MIN + 3).map(wait).collect();
        assert!(waiting.iter_mut().all(waits));
        // One of them gives up: its connection has ended.
        drop(waiting.remove(2));
        credit.next_round(Duration::ZERO);
        assert!(!credit.try_share(), "past those who wait");
        let mut late = pin!(credit.share());
        assert!(late.as_mut().now_or_never().is_none());
        let left: Vec<_> = waiting.iter_mut().rev().map(waits).collect();
        assert_eq!(left.iter().filter(|waits| **waits).count(), 2);
        let mut first = got.take();
        first.sort_unstable();
        let expected = (0..).filter(|name| *name != 2).take(SHARES_MIN);
        assert_eq!(first, Vec::from_iter(expected));
        credit.end_round();
        credit.next_round(Duration::ZERO);
        assert!(
            waiting[SHARES_MIN..]
                .iter_mut()
                .all(|one| one.now_or_never().is_some())
        );
        assert!(late.now_or_never().is_some());
    }
}
