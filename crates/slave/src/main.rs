//! The slave agent.

mod check;
mod collect;
mod link;
mod config {
    pub(crate) mod check;
    pub(crate) mod probe;
}
mod probe;
mod spool;

fn main() {}
