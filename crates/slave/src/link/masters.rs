//! Which master comes next.

/// Walks the list of masters in order of preference.
///
/// A session that is lost is taken up with the same master, since a restart is what usually ends
/// one. A master that can't be reached or refuses is followed by the next in the list at once; when
/// all have failed in a row, there is a pause.
#[derive(Debug)]
pub(super) struct Masters {
    list: Vec<String>,
    at: usize,
    failed: usize,
}

impl Masters {
    /// Begins with the most preferred one, the first of the list, which has at least one.
    pub(super) fn new(list: Vec<String>) -> Self {
        Self {
            list,
            at: 0,
            failed: 0,
        }
    }

    /// The one to try now.
    pub(super) fn current(&self) -> &str {
        &self.list[self.at]
    }

    /// The most preferred one.
    pub(super) fn first(&self) -> &str {
        &self.list[0]
    }

    /// Whether there is one that is preferred to the current one.
    pub(super) fn is_fallback(&self) -> bool {
        self.at > 0
    }

    /// The session with the current one is open.
    pub(super) fn opened(&mut self) {
        self.failed = 0;
    }

    /// The current one can't be had. Returns true if all have failed in a row.
    pub(super) fn failed(&mut self) -> bool {
        self.at = (self.at + 1) % self.list.len();
        self.failed += 1;
        if self.failed < self.list.len() {
            return false;
        }
        self.failed = 0;
        true
    }

    /// The most preferred one is to be tried again.
    pub(super) fn go_back(&mut self) {
        self.at = 0;
        self.failed = 0;
    }

    /// Takes over a new list and begins with its first.
    pub(super) fn replace(&mut self, list: Vec<String>) {
        if self.list != list {
            *self = Self::new(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Masters;

    #[test]
    fn all_are_tried_before_there_is_a_pause() {
        let mut masters = Masters::new(vec!["a".into(), "b".into(), "c".into()]);
        assert_eq!(masters.current(), "a");
        assert!(!masters.failed());
        assert_eq!(masters.current(), "b");
        assert!(!masters.failed());
        assert!(masters.failed());
        assert_eq!(masters.current(), "a");
        assert!(!masters.failed());
        masters.opened();
        assert!(masters.is_fallback());
        // Lost, and now nobody answers: again all of them.
        assert!(!masters.failed());
        assert!(!masters.failed());
        assert!(masters.failed());
        masters.go_back();
        assert!(!masters.is_fallback());
    }
}
