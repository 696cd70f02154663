//! Pauses stay within their bounds, whatever has happened before.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use rollcall_protocol::Moment;
use rollcall_protocol::backoff::{Backoff, BackoffLimits};

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

/// The bounds of the pause after `attempts` failures, worked out the slow way.
fn bounds(limits: &BackoffLimits, attempts: u32) -> (Duration, Duration) {
    let mut bound = limits.base;
    for _ in 0..attempts {
        if bound >= limits.cap {
            break;
        }
        bound *= 2;
    }
    if bound < limits.cap {
        (Duration::ZERO, bound)
    } else {
        (limits.cap / 2, limits.cap / 2 + limits.cap)
    }
}

proptest! {
    #[test]
    fn every_pause_lies_in_the_window_of_its_attempt(limits in limits(), acts in acts()) {
        let mut backoff = Backoff::new(limits);
        let mut now = Moment::ZERO;
        let (mut attempts, mut told) = (0, None);
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
            let (min, max) = told.take().unwrap_or_else(|| bounds(&limits, attempts));
            let pause = backoff.handle_down(now, random);
            prop_assert!((min..=max).contains(&pause), "{pause:?} not in {min:?}..={max:?}");
            attempts += 1;
            prop_assert_eq!(backoff.attempts(), attempts);
            now = now + pause;
        }
    }

    #[test]
    fn a_herd_is_spread_over_the_whole_window(attempts in 0_u32..40) {
        let limits = BackoffLimits {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        };
        let mut fresh = Backoff::new(limits);
        for _ in 0..attempts {
            fresh.handle_down(Moment::ZERO, 0);
        }
        let (min, max) = bounds(&limits, attempts);
        let mut tenths = [0_u32; 10];
        for slave in 0..1_000_u64 {
            let random = slave * (u64::MAX / 1_000);
            let pause = fresh.clone().handle_down(Moment::ZERO, random);
            let share = (pause - min).as_secs_f64() / (max - min).as_secs_f64();
            let tenth = (0..10).rev().find(|&tenth| share >= f64::from(tenth) / 10.0);
            tenths[usize::try_from(tenth.unwrap_or(0)).unwrap()] += 1;
        }
        prop_assert!(tenths.iter().all(|&count| (95..=105).contains(&count)), "{tenths:?}");
    }
}
