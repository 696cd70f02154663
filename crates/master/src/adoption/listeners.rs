//! Listeners that outlive the process: the service manager has them, or a copy is passed on to the
//! program that takes the process over.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use rollcall_os::parking::Keeper;
use rollcall_os::systemd::store::Store;

/// Who connects to a listener. Its letter begins the name under which the store holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Slaves.
    Slaves,
    /// Readers, over HTTP.
    Readers,
}

impl Side {
    const ALL: [Self; 2] = [Self::Slaves, Self::Readers];

    const fn letter(self) -> char {
        match self {
            Self::Slaves => 'l',
            Self::Readers => 'h',
        }
    }

    /// Short, and without the colon, which separates names.
    fn name(self, address: SocketAddr) -> String {
        let address = address.to_string().replace(':', "_");
        format!("{}{address}", self.letter())
    }
}

/// A copy of a listener that is in use.
#[derive(Debug)]
struct Kept {
    name: String,
    address: SocketAddr,
    copy: TcpListener,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    store: Option<Store>,
    kept: RefCell<Vec<Kept>>,
}

impl Listeners {
    pub(super) fn new(store: Option<Store>) -> Self {
        Self {
            store,
            ..Self::default()
        }
    }

    /// One that this process has bound.
    pub(super) fn keep(&self, side: Side, address: SocketAddr, socket: &TcpListener) {
        // The next process would not know a port that the kernel has chosen.
        if address.port() == 0 {
            return;
        }
        let name = side.name(address);
        if let Some(store) = self.store
            && let Err(error) = store.keep(&name, &[socket.as_fd()])
        {
            tracing::warn!(event = "listener_not_kept", address = %address, error = %error, "the listener is not held for the next process: a restart refuses connections for a moment");
        }
        self.note(name, address, socket);
    }

    /// One that is held under `name` already.
    pub(super) fn note(&self, name: String, address: SocketAddr, socket: &TcpListener) {
        match socket.try_clone() {
            Ok(copy) => self.kept.borrow_mut().push(Kept {
                name,
                address,
                copy,
            }),
            Err(error) => {
                tracing::warn!(event = "listener_not_kept", address = %address, error = %error, "the listener is not held for the next process: a restart refuses connections for a moment");
            }
        }
    }

    /// The one at `address` is about to be closed. Its copies would keep it open.
    pub(super) fn forget(&self, address: SocketAddr) {
        let is_it = |kept: &mut Kept| kept.address == address;
        let gone: Vec<_> = self.kept.borrow_mut().extract_if(.., is_it).collect();
        for kept in gone {
            self.forget_name(&kept.name);
        }
    }

    /// The service manager need not hold what is under `name`, if this is a name of ours.
    pub(super) fn forget_name(&self, name: &str) {
        let is_ours = Side::ALL.iter().any(|side| name.starts_with(side.letter()));
        if let Some(store) = self.store.filter(|_| is_ours) {
            // If it can't be told, the manager is gone, and what it held with it.
            let _ = store.forget(name);
        }
    }

    /// None is left for a successor.
    pub(super) fn give_up(&self) {
        for kept in self.kept.take() {
            self.forget_name(&kept.name);
        }
    }

    /// All, for the program that takes this process over.
    pub(super) fn pass_on(&self) -> impl Iterator<Item = (String, OwnedFd)> {
        let kept = self.kept.take().into_iter();
        kept.map(|kept| (kept.name, kept.copy.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_colon_and_says_whose_it_is() {
        let name = |side: Side, text: &str| side.name(text.parse().unwrap());
        assert_eq!(name(Side::Slaves, "127.0.0.1:7412"), "l127.0.0.1_7412");
        assert_eq!(name(Side::Slaves, "[::1]:7412"), "l[__1]_7412");
        assert_eq!(name(Side::Readers, "127.0.0.1:7413"), "h127.0.0.1_7413");
    }

    #[test]
    fn a_listener_that_is_forgotten_is_closed_with_its_owner() {
        let listeners = Listeners::default();
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (slaves, readers) = (bind(), bind());
        let [one, other] = [&slaves, &readers].map(|socket| socket.local_addr().unwrap());
        listeners.keep(Side::Slaves, one, &slaves);
        listeners.note("socket-unit".to_owned(), other, &readers);
        let any = "127.0.0.1:0".parse().unwrap();
        listeners.keep(Side::Slaves, any, &slaves);
        drop((slaves, readers));
        let connect = std::net::TcpStream::connect;
        connect(one).expect("the copy listens");
        listeners.forget(one);
        connect(one).expect_err("nobody listens");
        let passed: Vec<_> = listeners.pass_on().collect();
        assert_eq!(passed.len(), 1);
        assert_eq!(passed[0].0, "socket-unit");
        connect(other).expect("the copy listens");
        drop(passed);
        connect(other).expect_err("nobody listens");
    }
}
