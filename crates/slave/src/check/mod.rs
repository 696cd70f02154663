//! Check plugins by the Nagios plugin API, and the machinery that runs them.
//!
//! ```text
//!   Scheduler ── one task a check: wait for its tick, take a permit ──> child::run
//!       ^                                                                  │ Run
//!       └────────── results (bounded channel) <── Finding <── plugin::judge ┘
//! ```

pub(crate) mod child;
pub(crate) mod finding;
mod group;
mod output;
mod perfdata;
mod plugin;
pub(crate) mod schedule;
pub(crate) mod text;
