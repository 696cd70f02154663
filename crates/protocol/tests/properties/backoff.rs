//! Pauses stay within their bounds, whatever has happened before.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use rollcall_protocol::Moment;
use rollcall_protocol::backoff::{Backoff, BackoffLimits, WINDOW_KEPT, WINDOW_KEPT_LEAST};

#[derive(Clone, Debug)]
enum Act {
    /// A session stands for so long and ends.
    Session { ms: u32, random: u64 },
    /// An attempt fails.
    Failure { random: u64 },
    /// The master tells a window.
    Window(u32, u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    vec(
        prop_oneof![
            2 => (any::<u32>(), any::<u64>()).prop_map(|(ms, random)| Act::Session { ms, random }),
            4 => any::<u64>().prop_map(|random| Act::Failure { random }),
            1 => (any::<u32>(), any::<u32>()).prop_map(|(min, max)| Act::Window(min, max)),
        ],
        0..60,
    )
}

fn limits() -> impl Strategy<Value = BackoffLimits> {
    let ms = |range: std::ops::Range<u64>| range.prop_map(Duration::from_millis);
    (ms(1..10_000), ms(1..600_000), ms(0..600_000)).prop_map(|(base, cap, reset_after)| {
        BackoffLimits {
            base,
            cap,
            reset_after,
        }
    })
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// How far pauses have grown after `away` without a master by one who was told a window of this width.
fn grown(away: Duration, width: Duration) -> Duration {
    if width.is_zero() {
        return away;
    }
    let beyond = away.checked_sub(WINDOW_KEPT).unwrap_or_default();
    beyond.max(WINDOW_KEPT_LEAST.min(away / 4)).max(width)
}

/// Mostly a kill or a boot, seldom longer: that takes many attempts.
fn away_ms() -> impl Strategy<Value = u64> {
    prop_oneof![7 => 0_u64..60_000, 1 => 60_000_u64..400_000]
}

/// The bounds of a pause that is not told, after `away` without a master.
fn bounds(limits: &BackoffLimits, is_first: bool, away: Duration) -> (Duration, Duration) {
    let bound = away.max(limits.base);
    if bound >= limits.cap * 3 / 2 {
        (limits.cap / 2, limits.cap / 2 + limits.cap)
    } else if is_first {
        (Duration::ZERO, bound)
    } else {
        (bound / 4, bound)
    }
}

proptest! {
    #[test]
    fn every_pause_lies_in_the_window_of_its_attempt(limits in limits(), acts in acts()) {
        let mut backoff = Backoff::new(limits);
        let mut now = Moment::ZERO;
        let (mut attempts, mut told) = (0, None);
        let (mut since, mut width) = (now, Duration::ZERO);
        for act in acts {
            let random = match act {
                Act::Window(min, max) => {
                    backoff.handle_window(millis(min), millis(max));
                    told = Some((millis(min), millis(max).max(millis(min))));
                    continue;
                }
                Act::Session { ms, random } => {
                    backoff.handle_up(now);
                    now = now + millis(ms);
                    if millis(ms) >= limits.reset_after {
                        attempts = 0;
                    }
                    random
                }
                Act::Failure { random } => random,
            };
            if attempts == 0 {
                since = now;
            }
            let away = grown(now.saturating_since(since), width);
            let (min, max) = match told.take() {
                Some((min, max)) => {
                    width = max - min;
                    (min, max)
                }
                None => bounds(&limits, attempts == 0, away),
            };
            let pause = backoff.handle_down(now, random);
            prop_assert!((min..=max).contains(&pause), "{pause:?} not in {min:?}..={max:?}");
            attempts += 1;
            prop_assert_eq!(backoff.attempts(), attempts);
            now = now + pause;
        }
    }

    #[test]
    fn a_herd_is_spread_over_the_whole_window(away_ms in 0_u64..60_000) {
        let limits = BackoffLimits {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        };
        let mut fresh = Backoff::new(limits);
        fresh.handle_down(Moment::ZERO, 0);
        let away = Duration::from_millis(away_ms);
        let (min, max) = bounds(&limits, false, away);
        let mut tenths = [0_u32; 10];
        for slave in 0..1_000_u64 {
            let random = slave * (u64::MAX / 1_000);
            let pause = fresh.clone().handle_down(Moment::ZERO + away, random);
            let share = (pause - min).as_secs_f64() / (max - min).as_secs_f64();
            let tenth = (0..10).rev().find(|&tenth| share >= f64::from(tenth) / 10.0);
            tenths[usize::try_from(tenth.unwrap_or(0)).unwrap()] += 1;
        }
        prop_assert!(tenths.iter().all(|&count| (95..=105).contains(&count)), "{tenths:?}");
    }

    /// A master that was away for any time meets its fleet evenly, and soon: the peak of a tenth of
    /// the time is below three times the mean, and the last is back within the window that was told.
    #[test]
    fn a_fleet_comes_back_evenly(away_ms in away_ms(), window_ms in 100_u64..20_000, seed in any::<u64>()) {
        const SLAVES: usize = 2_000;
        let limits = BackoffLimits {
            base: Duration::from_millis(200),
            cap: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        };
        let (away, window) = (Duration::from_millis(away_ms), Duration::from_millis(window_ms));
        let mut random = fastrand::Rng::with_seed(seed);
        let mut back = Vec::with_capacity(SLAVES);
        for _ in 0..SLAVES {
            let mut slave = Backoff::new(limits);
            slave.handle_window(Duration::ZERO, window);
            let mut now = Moment::ZERO;
            loop {
                now = now + slave.handle_down(now, random.u64(..));
                if now >= Moment::ZERO + away {
                    break;
                }
            }
            back.push(now.saturating_since(Moment::ZERO + away));
        }
        let last = *back.iter().max().unwrap();
        let longest = grown(away, window).min(limits.cap * 3 / 2);
        prop_assert!(last <= longest, "{last:?}");
        let mut tenths = [0_usize; 10];
        for back in &back {
            let tenth = back.as_nanos() * 10 / (last.as_nanos() + 1);
            tenths[usize::try_from(tenth).unwrap()] += 1;
        }
        let peak = *tenths.iter().max().unwrap();
        prop_assert!(peak * 10 < SLAVES * 3, "{tenths:?}, the last after {last:?}");
    }
}
