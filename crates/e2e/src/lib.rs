//! Tests that run the real binaries, and what they need for it.
//!
//! ```text
//!   binaries   builds the programs once, or takes them from ROLLCALL_E2E_BIN_DIR
//!   config     a configuration file, key by key; configuration makes the document of all keys
//!   daemon     a running process: its log, its signals, its end. Dropping it ends it
//!   master     a master with ports, state and configuration of its own, over any number of starts
//!   slave      the same for a slave
//!   api        reads a master over HTTP
//!   peer       speaks the wire protocol, rightly or wrongly
//!   bench      runs rollcall-bench
//!   disk       a small file system that can be filled
//!   machine    a booted systemd in a container
//!   image      a file system that can be frozen, turned read-only and limited by a quota
//!   netns      network namespaces of a test's own
//!   relay      something between slave and master that keeps the master's close back
//!   site       two hosts with a cable between them
//!   faults     kills and failures at system calls, damaged files, and those who check
//!   source     the repository's own files
//!   unnoticed  what nobody may notice over restarts
//!   supervisor plays the service manager: holds descriptors from one start of a daemon to the next
//! ```
//!
//! Nothing here sleeps and hopes: whatever is waited for is polled for, with a limit, and named when
//! it does not come. Ports are picked by the kernel and stay reserved for the test. Only processes
//! that a test started are ended, by their pid.
//!
//! Environment: `ROLLCALL_E2E_BIN_DIR` has programs that are built already, for example
//! `target/release`; `ROLLCALL_E2E_OLD_BIN_DIR` those of an earlier build, for tests/versions;
//! `ROLLCALL_E2E_PACKAGES` has packages, for example `target/debian`.
//! `ROLLCALL_CI_STRICT=1` makes tests fail that would be skipped for want of root or of check plugins.
//! `ROLLCALL_RESTARTS` is how often tests/restarts.rs kills the master (20), `ROLLCALL_FLEET` how many
//! slaves tests/systemd connects (1000). `UPDATE_DOCS=1` has tests/docs.rs write
//! `docs/configuration.md` anew.
#![forbid(unsafe_code)]

pub mod api;
pub mod bench;
pub mod binaries;
pub mod config;
pub mod configuration;
pub mod daemon;
pub mod disk;
pub mod events;
pub mod faults;
pub mod image;
pub mod log;
pub mod machine;
pub mod master;
pub mod netns;
pub mod peer;
pub mod ports;
pub mod relay;
pub mod site;
pub mod skip;
pub mod slave;
pub mod source;
pub mod supervisor;
pub mod unnoticed;
pub mod wait;

pub use api::Api;
pub use daemon::Daemon;
pub use log::LogLine;
pub use master::Master;
pub use netns::Namespace;
pub use peer::Peer;
pub use site::Site;
pub use slave::Slave;
pub use supervisor::Supervisor;
pub use wait::wait_until;
