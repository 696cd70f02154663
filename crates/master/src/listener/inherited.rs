//! Listeners that the process was started with: those of a `.socket` unit, and those that the process
//! before has left with the service manager. On them nobody is refused while no process is there.

use std::net::{SocketAddr, TcpListener};

use crate::adoption::Parking;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<(String, TcpListener)>);

impl Inherited {
    /// With their names.
    pub(crate) fn new(listeners: Vec<(String, TcpListener)>) -> Self {
        Self(listeners)
    }

    /// The one that listens on `address`; `parking` holds it for the next process, too.
    pub(crate) fn take(&mut self, address: SocketAddr, parking: &Parking) -> Option<TcpListener> {
        let is_it = |(_, listener): &(String, TcpListener)| {
            let local = listener.local_addr();
            local.is_ok_and(|local| local == address)
        };
        let index = self.0.iter().position(is_it)?;
        let (name, listener) = self.0.swap_remove(index);
        tracing::info!(event = "listener_inherited", address = %address, name, "it was open while no master was there");
        parking.note_listener(name, address, &listener);
        Some(listener)
    }

    /// Closes those that nobody has taken.
    pub(super) fn close(self, parking: &Parking) {
        for (name, listener) in self.0 {
            let address = listener.local_addr().ok();
            let address = address.map(|address| address.to_string());
            parking.forget(&name);
            tracing::warn!(
                event = "listener_unwanted",
                address,
                name,
                "neither [listen] addresses nor [http] address has it: it is closed here; if it is a socket unit's, peers still connect there and nobody answers, so change the unit"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_address_whatever_its_name() {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, other) = (bind(), bind());
        let [first, second] = [&one, &other].map(|socket| socket.local_addr().unwrap());
        let parking = Parking::default();
        let named = vec![
            ("rollcall.socket".to_owned(), one),
            ("l1".to_owned(), other),
        ];
        let mut inherited = Inherited::new(named);
        let mut take = |address| inherited.take(address, &parking);
        assert!(take("127.0.0.1:1".parse().unwrap()).is_none());
        let found = take(second).unwrap();
        assert_eq!(found.local_addr().unwrap(), second);
        assert!(take(second).is_none());
        inherited.close(&parking);
        // It is closed: the port is free again.
        TcpListener::bind(first).unwrap();
    }
}
