//! The slave agent.

mod link;
mod check;
mod collect;
mod config {
    pub(crate) mod check;
    pub(crate) mod probe;
}
mod probe;
mod spool;

fn main() {}
