//! Which points are swept, and how they are worked off.

use std::env;
use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::strace::{Calls, Fault, SWEPT};

/// "all" runs every point; a number, about that many of each test.
pub const CRASH_POINTS: &str = "ROLLCALL_CRASH_POINTS";
/// Workers: a point mostly waits.
const WORKERS: usize = 4;

/// While it lives, a panic is told together with this.
#[derive(Debug)]
pub struct Naming<'a, T: Display>(pub &'a T);

impl<T: Display> Drop for Naming<'_, T> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- at {}", self.0);
        }
    }
}

/// How many of the points of one test are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Every one.
    All,
    /// About so many, spread evenly.
    Sample(usize),
}

impl Share {
    /// What the environment variable `name` says; `sample` without it.
    ///
    /// # Panics
    /// If it is neither "all" nor a number.
    pub fn from_environment(name: &str, sample: usize) -> Self {
        match env::var(name).as_deref() {
            Ok("all") => Self::All,
            Ok(text) => match text.parse() {
                Ok(count) => Self::Sample(count),
                Err(_) => panic!("{name} must be \"all\" or a number, not {text:?}"),
            },
            Err(_) => Self::Sample(sample),
        }
    }

    /// The chosen ones: always the same of the same list.
    pub fn of<T: Clone>(self, all: &[T]) -> Vec<T> {
        match self {
            Self::Sample(count) if count < all.len() => (0..count)
                .map(|at| all[(2 * at + 1) * all.len() / (2 * count)].clone())
                .collect(),
            _ => all.to_vec(),
        }
    }
}

/// kill -9 at every swept call of a run in which these `calls` were made.
pub fn kills(calls: &Calls) -> Vec<Fault> {
    let most = calls.most_by_thread();
    let points = |syscall: &&str| {
        let count = most.get(syscall).copied().unwrap_or(0);
        let syscall = (*syscall).to_owned();
        (1..=count).map(move |when| Fault::kill(&syscall, when))
    };
    SWEPT.iter().flat_map(points).collect()
}

/// Works off all `items`, several at a time, and returns what came of each.
///
/// # Panics
/// If the work on one of them does.
pub fn work_off<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        for _ in 0..WORKERS.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(item);
                    if let Ok(mut done) = done.lock() {
                        done.push(result);
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_and_always_the_same() {
        let all: Vec<_> = (0..10).collect();
        assert_eq!(Share::Sample(2).of(&all), [2, 7]);
        assert_eq!(Share::Sample(20).of(&all), all);
        assert_eq!(Share::All.of(&all), all);
    }

    #[test]
    fn everything_is_worked_off_once() {
        let all: Vec<_> = (0..100).collect();
        let mut done = work_off(&all, |&item| item);
        done.sort_unstable();
        assert_eq!(done, all);
    }
}
