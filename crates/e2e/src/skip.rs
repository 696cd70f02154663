//! Tests that need what not every machine has.
//!
//! They are skipped with a line that can't be overlooked, and fail where ROLLCALL_CI_STRICT=1 says
//! that everything must be there.

use std::env;
use std::io::Write;

use rustix::process::geteuid;

/// "1" makes a test that would be skipped fail.
pub const STRICT: &str = "ROLLCALL_CI_STRICT";

/// Says that the test `name` is skipped, and why.
///
/// # Panics
/// With `ROLLCALL_CI_STRICT=1`.
pub fn skip_loudly(name: &str, why: &str) {
    assert!(
        env::var_os(STRICT).is_none_or(|value| value != "1"),
        "{name} must not be skipped where {STRICT}=1: {why}"
    );
    // Not eprintln, which the test runner hides for tests that pass. A closed stderr hides it too.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {why}\n");
}

/// Whether this process is root. If it is not, says that the test `name` is skipped.
///
/// # Panics
/// With `ROLLCALL_CI_STRICT=1` and without root.
pub fn require_root_or_skip_loudly(name: &str) -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        skip_loudly(name, "it takes root");
    }
    is_root
}
