//! What earlier versions have written is read, and what they say is understood.
//!
//! `fixtures/vX.Y.Z/` has a store and a spool as that version's daemons left them, and what was in them.
//! `ROLLCALL_WRITE_FIXTURES=1 cargo test -p rollcall-e2e --test versions` writes those of the present
//! version if they are missing: with every release, before anything else is changed. Files that exist
//! are never written.
//!
//! The daemons of this build beside those of an earlier one take programs of that one, whichever it is.
//! They are made once by `git worktree add --detach ../rollcall-earlier COMMIT && cargo build --locked --bins
//! -p rollcall-master -p rollcall-slave --manifest-path ../rollcall-earlier/Cargo.toml`, and tested by
//! `ROLLCALL_E2E_OLD_BIN_DIR=../rollcall-earlier/target/debug cargo test -p rollcall-e2e --test versions`.
//! Without the variable those tests say that nothing was tested.

mod content;
mod downgrades;
mod pair;
mod stores;
mod upgrades;
mod wire;

/// As sysexits.h and the daemons' --help have it.
const EXIT_STORE: i32 = 74;
