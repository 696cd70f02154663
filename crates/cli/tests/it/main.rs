//! The program as a whole: run as an operator runs it.
#![cfg(test)]

mod commands;
mod fake;
mod up;
