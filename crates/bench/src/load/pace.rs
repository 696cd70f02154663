//! When reports are made, and when no more are.

use std::time::Duration;

use rollcall_protocol::Moment;

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Reports are made for this long.
    Duration(Duration),
    /// This many reports are made in all.
    Count(u64),
    /// Reports are made until the backlog that others replay is acked.
    Replay,
}

/// The schedule of one run. The rate is that of all slaves together: one makes a report after the
/// other, so their phases are spread over the interval by themselves.
#[derive(Debug)]
pub(crate) struct Pace {
    started: Moment,
    until: Option<Moment>,
    left: Option<u64>,
    /// Reports per second of all slaves; `None` in a closed loop.
    rate: Option<f64>,
    slaves: u32,
    ticks: u64,
}

impl Pace {
    /// A run of `slaves` that starts at `now`; `rate` is per slave and second, `None` for a closed loop.
    pub(crate) fn new(now: Moment, slaves: u32, rate: Option<f64>, bound: Bound) -> Self {
        let (until, left) = match bound {
            Bound::Duration(duration) => (Some(now + duration), None),
            Bound::Count(count) => (None, Some(count)),
            Bound::Replay => (None, None),
        };
        let rate = rate.map(|rate| rate * f64::from(slaves));
        Self {
            started: now,
            until,
            left,
            rate,
            slaves,
            ticks: 0,
        }
    }

    /// No report is to be made any more.
    pub(crate) fn end(&mut self) {
        self.left = Some(0);
    }

    /// Whether reports are made as fast as acks allow.
    pub(crate) fn is_closed_loop(&self) -> bool {
        self.rate.is_none()
    }

    /// Whether no report will be made any more.
    pub(crate) fn is_over(&self, now: Moment) -> bool {
        self.left == Some(0) || self.until.is_some_and(|until| now >= until)
    }

    /// Takes the right to make one report; `false` if the run is over.
    pub(crate) fn take(&mut self, now: Moment) -> bool {
        if self.is_over(now) {
            return false;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        true
    }

    /// Which slave's turn it is by now, in an open loop; `None` if none is due. Each call is one turn.
    pub(crate) fn take_turn(&mut self, now: Moment) -> Option<u32> {
        if self.next_turn()? > now || !self.take(now) {
            return None;
        }
        let slave = u32::try_from(self.ticks % u64::from(self.slaves)).ok()?;
        self.ticks += 1;
        Some(slave)
    }

    /// When the next turn is due; `None` in a closed loop.
    pub(crate) fn next_turn(&self) -> Option<Moment> {
        let rate = self.rate?;
        // Exact enough: a double tells microseconds apart for centuries.
        let after = Duration::try_from_secs_f64(self.ticks_f64() / rate);
        Some(self.started + after.unwrap_or(Duration::MAX))
    }

    /// When reports stop being made, if that is known beforehand.
    pub(crate) fn until(&self) -> Option<Moment> {
        self.until
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "2^53 reports take longer than anybody waits"
    )]
    fn ticks_f64(&self) -> f64 {
        self.ticks as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::new(Duration::from_millis(ms))
    }

    #[test]
    fn turns_are_spread_evenly_and_come_at_the_rate() {
        let bound = Bound::Duration(Duration::from_secs(1));
        let mut pace = Pace::new(at(0), 4, Some(10.0), bound);
        let mut turns = Vec::new();
        for ms in 0..2000 {
            while let Some(slave) = pace.take_turn(at(ms)) {
                turns.push((ms, slave));
            }
        }
        assert_eq!(turns[..5], [(0, 0), (25, 1), (50, 2), (75, 3), (100, 0)]);
        assert_eq!(turns.len(), 40);
        assert!(pace.is_over(at(1000)));
    }

    #[test]
    fn a_late_loop_catches_up() {
        let mut pace = Pace::new(at(0), 2, Some(100.0), Bound::Count(1000));
        assert_eq!(std::iter::from_fn(|| pace.take_turn(at(99))).count(), 20);
        assert_eq!(pace.next_turn(), Some(at(100)));
    }

    #[test]
    fn a_count_is_never_exceeded() {
        let mut pace = Pace::new(at(0), 3, None, Bound::Count(5));
        assert!(pace.is_closed_loop());
        assert_eq!(pace.take_turn(at(10)), None);
        assert_eq!((0..10).filter(|_| pace.take(at(10))).count(), 5);
        assert!(pace.is_over(at(10)));
    }
}
