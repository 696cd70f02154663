//! What both daemons need from the operating system: clocks, sockets, signals, configuration
//! files, logging and exit codes.
#![forbid(unsafe_code)]

pub mod buckets;
pub mod clock;
pub mod config;
pub mod diag;
pub mod exit;
pub mod filesystem;
pub mod limits;
pub mod lock;
pub mod log;
pub mod outgoing;
pub mod parking;
pub mod rate_limit;
pub mod runtime;
pub mod signal;
pub mod socket;
pub mod systemd;
pub mod udp;
pub mod units;
