//! The service manager: what a daemon tells it and gets from it. Nothing here has an effect, or is needed,
//! where systemd did not start the process.

pub mod notify;
pub mod store;
