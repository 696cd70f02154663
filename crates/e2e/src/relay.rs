//! Something in between a slave and its master that forwards everything but the master's close: the
//! slave has to close first, and is left with the TIME_WAIT.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// See the module's documentation. It goes on until the test's process ends.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Relay {
    /// Listens on `address`, in the network namespace of the calling thread, and forwards to
    /// `master`.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn start(address: SocketAddr, master: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        // Threads are in the namespace of the one that starts them.
        thread::spawn(move || {
            for slave in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || forward(&slave, master));
            }
        });
        Ok(Self {
            address,
            connections,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of connections that came.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Forwards one connection until the slave closes it. An end by an error is one as well.
fn forward(slave: &TcpStream, master: SocketAddr) {
    let Ok(upstream) = TcpStream::connect(master) else {
        return;
    };
    for end in [slave, &upstream] {
        // Else it is slower.
        let _ = end.set_nodelay(true);
    }
    thread::scope(|scope| {
        scope.spawn(|| copy(&upstream, slave));
        copy(slave, &upstream);
        // The slave has closed.
        let _ = upstream.shutdown(Shutdown::Both);
        let _ = slave.shutdown(Shutdown::Both);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
