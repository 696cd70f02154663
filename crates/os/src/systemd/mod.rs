//! The service manager: what a daemon tells it and gets from it. Nothing here has an effect, or is needed,
//! where none has started the process; [`manager`] is such a manager itself.

pub mod manager;
pub mod notify;
pub mod store;
