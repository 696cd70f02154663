//! Questions that wait for their answer: each once, and no more than there is room for.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use foldhash::{HashSet, HashSetExt};

/// Memory that all questions in hand may take together, in bytes.
const BYTES_MAX: usize = 16 << 20;

/// Who asks what.
type Key = (SocketAddr, u64);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct InHand {
    questions: RefCell<HashSet<Key>>,
    questions_max: usize,
    bytes: Cell<usize>,
}

/// Why a question is not taken in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// It is in hand already.
    Repeat,
    /// There are too many.
    Full,
}

/// The right to be answered. It is given back when it is dropped.
#[derive(Debug)]
pub(super) struct InHandPlace {
    all: Rc<InHand>,
    key: Key,
    bytes: usize,
}

impl InHand {
    /// Room for `questions_max`.
    pub(super) fn new(questions_max: usize) -> Rc<Self> {
        Rc::new(Self {
            questions: RefCell::new(HashSet::new()),
            questions_max,
            bytes: Cell::new(0),
        })
    }

    /// Takes in hand the question `number` of `peer`, of `bytes` bytes.
    ///
    /// # Errors
    /// [`NoRoom`]
    pub(super) fn enter(
        self: &Rc<Self>,
        peer: SocketAddr,
        number: u64,
        bytes: usize,
    ) -> Result<InHandPlace, NoRoom> {
        let key = (peer, number);
        let mut questions = self.questions.borrow_mut();
        if questions.contains(&key) {
            return Err(NoRoom::Repeat);
        }
        let all = self.bytes.get() + bytes;
        if questions.len() >= self.questions_max || all > BYTES_MAX {
            return Err(NoRoom::Full);
        }
        questions.insert(key);
        self.bytes.set(all);
        Ok(InHandPlace {
            all: Rc::clone(self),
            key,
            bytes,
        })
    }
}

impl Drop for InHandPlace {
    fn drop(&mut self) {
        let all = &self.all;
        all.questions.borrow_mut().remove(&self.key);
        all.bytes.set(all.bytes.get().saturating_sub(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_in_hand_once_and_gives_its_place_back() {
        let in_hand = InHand::new(2);
        let [one, other] = ["192.0.2.1:1", "192.0.2.1:2"].map(|peer| peer.parse().unwrap());
        let enter = |peer, number| in_hand.enter(peer, number, 100);
        let first = enter(one, 7).unwrap();
        assert_eq!(enter(one, 7).unwrap_err(), NoRoom::Repeat);
        let second = enter(other, 7).unwrap();
        assert_eq!(enter(one, 8).unwrap_err(), NoRoom::Full);
        drop(first);
        let _third = enter(one, 8).unwrap();
        drop(second);
        assert_eq!(in_hand.bytes.get(), 100);
        assert_eq!(in_hand.questions.borrow().len(), 1);
    }

    #[test]
    fn large_questions_are_bounded_by_their_bytes() {
        let in_hand = InHand::new(usize::MAX);
        let peer = "192.0.2.1:1".parse().unwrap();
        let places: Vec<_> = (0..)
            .map_while(|number| in_hand.enter(peer, number, 60_000).ok())
            .collect();
        assert_eq!(places.len(), BYTES_MAX / 60_000);
    }
}
