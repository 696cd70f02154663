//! What both daemons need from the operating system: clocks, sockets, signals, configuration
//! files, logging and exit codes.
#![forbid(unsafe_code)]

pub mod clock;
