//! A descriptor that is held for the moment in which there is no other.
//!
//! With none left, accept(2) fails and the peer stays in the queue, where it hears nothing until its
//! own patience ends. So one descriptor is given up, the peer is accepted, told to come back, and
//! closed, and the descriptor is taken again.

use std::fs::File;

/// Anything that takes a place in both tables, the process's (EMFILE) and the system's (ENFILE).
const ANYTHING: &str = "/dev/null";

/// The reserved descriptor, unless somebody else was quicker.
#[derive(Debug)]
pub(super) struct Reserve(Option<File>);

impl Reserve {
    /// Takes it.
    pub(super) fn new() -> Self {
        Self(File::open(ANYTHING).ok())
    }

    /// Does `work` with the descriptor given up, or returns `None` if it is not there.
    pub(super) fn spend<T>(&mut self, work: impl FnOnce() -> T) -> Option<T> {
        let held = self.0.take();
        let done = held.map(|held| {
            drop(held);
            work()
        });
        *self = Self::new();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_up_for_the_work_and_taken_again() {
        let mut reserve = Reserve::new();
        for _ in 0..3 {
            let worked = reserve.spend(|| 7);
            assert_eq!(worked, Some(7));
            assert!(reserve.0.is_some());
        }
        let mut lost = Reserve(None);
        assert_eq!(lost.spend(|| 7), None);
        assert!(lost.0.is_some(), "tried again");
    }
}
