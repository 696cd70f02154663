//! Binding at a start: with patience, since the port may be about to be free.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::socket::{self, ListenError, ListenOptions};

/// How long a bind is tried again while a process that was killed still lets go of its port.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// Listens on `address`, with patience while the port is only about to be free.
///
/// # Errors
/// [`ListenError`] with the remedy.
pub(crate) async fn bind(
    address: SocketAddr,
    options: &ListenOptions,
) -> Result<TcpListener, ListenError> {
    let give_up = clock::boot() + BIND_PATIENCE;
    let mut told = false;
    loop {
        match socket::listen_with(address, options) {
            Err(error) if error.is_in_use() && clock::boot() < give_up => {
                if !told {
                    told = true;
                    tracing::warn!(event = "bind_retried", address = %address, error = %error, "the port is taken; trying for a moment in case its holder is just ending");
                }
                tokio::time::sleep(BIND_PAUSE).await;
            }
            result => return result.map_err(ListenError::reported),
        }
    }
}
