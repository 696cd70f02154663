//! What the kernel knows of this host's sockets and ports, and what it means for an operator.
//!
//! Errors 98 (EADDRINUSE) and 99 (EADDRNOTAVAIL) say nothing about who and why. The answers are all
//! in the kernel: [`sockets`] asks it over sock_diag(7), [`owner`] finds the processes in /proc,
//! [`ports`] knows which local ports connections may take, and [`bind`] and [`exhaustion`] make one
//! line of it: who, since when, and what helps. Neither `ss` nor root is needed; what only root can
//! see is said to be hidden.
//!
//! Everything here is one network namespace: the caller's. All of it blocks for as long as the
//! kernel takes to list its sockets (some 100 ms for 100,000 of them), so an async caller gives it a
//! thread of its own unless it is about to end anyway.

pub mod address;
pub mod bind;
pub mod destination;
pub mod exhaustion;
mod netlink;
pub mod owner;
pub mod ports;
pub mod sockets;
pub mod sysctl;
#[cfg(test)]
mod testing;
mod text;
