//! Two hosts with a cable between them: network namespaces, in one of which masters run, and slaves
//! in the other. Loopback's exceptions (the early reuse of TIME_WAIT, addresses that are always
//! there) do not apply to what runs over the cable.

use std::net::SocketAddr;
use std::path::Path;

use rollcall_protocol::api::SlaveRow;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::{Master, Namespace, Slave};

/// The interface at both ends of the cable.
pub const INTERFACE: &str = "rollcall0";
/// The masters' end.
pub const FAR: &str = "10.77.0.1";
/// The slaves' end.
pub const NEAR: &str = "10.77.0.2";
/// The name of the slave.
pub const NAME: &str = "web-1";

/// See the module's documentation.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    /// Where the masters are.
    pub far: Namespace,
    /// Where the slaves are.
    pub near: Namespace,
}

impl Site {
    /// The two with their cable: 10.77.0.1, fd00:77::1 and fe80::1 at the masters' end, the same
    /// with 2 at the slaves'. `None` without the right to make them: it is said loudly then that
    /// the test `name` is skipped.
    ///
    /// # Panics
    /// With `ROLLCALL_CI_STRICT=1` instead of skipping.
    #[track_caller]
    pub fn new_or_skip_loudly(name: &str) -> Option<Self> {
        let far = Namespace::new_or_skip_loudly(name)?;
        let near = Namespace::new_or_skip_loudly(name)?;
        far.connect(&near, &format!("{FAR}/24"), &format!("{NEAR}/24"));
        for (end, number) in [(&far, 1), (&near, 2)] {
            for network in ["fd00:77::", "fe80::"] {
                end.ip(&format!(
                    "-6 address add {network}{number}/64 dev {INTERFACE} nodad"
                ));
            }
        }
        let folder = match tempfile::tempdir() {
            Ok(folder) => folder,
            Err(error) => panic!("no folder: {error}"),
        };
        Some(Self { folder, far, near })
    }

    /// Where files go.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A master that does not run yet, to be started by [`Self::start_master`]. It listens on this
    /// port of every address.
    pub fn master(&self, name: &str, port: u16) -> Master {
        let mut master = self.far.run(|| Master::new(self.folder(), name));
        let addresses = vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")];
        master
            .config
            .set("listen.addresses", addresses)
            .set("tls.mode", "off")
            // Of an interval of 100 ms a busy machine takes more than the half that is usual.
            .set("presence.late_after", 100.0)
            .set("presence.missing_after", 200.0);
        master
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_master(&self, master: &mut Master) {
        self.far.run(|| master.start());
    }

    /// A slave of these masters that reports every 100 ms and does not run yet, to be started by
    /// [`Self::start_slave`].
    pub fn slave(&self, masters: &[&str]) -> Slave {
        let mut slave = Slave::new(self.folder(), NAME, &[] as &[SocketAddr], "100ms");
        slave
            .config
            .set("connection.masters", masters.to_vec())
            .set("tls.mode", "off");
        slave
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_slave(&self, slave: &mut Slave) {
        self.near.run(|| slave.start());
    }

    /// Starts `program` at the slaves' end.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn spawn_near(&self, name: &str, program: &Path, arguments: &[&str]) -> Daemon {
        let spawn = || Daemon::spawn(name, program, arguments, self.folder());
        self.near.run(spawn)
    }

    /// Waits until the slave has a row that `is_as_wanted`.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for_row(
        &self,
        master: &Master,
        what: &str,
        is_as_wanted: impl Fn(&SlaveRow) -> bool + Send,
    ) -> SlaveRow {
        self.far
            .run(|| master.wait_for_row(NAME, what, is_as_wanted))
    }
}
