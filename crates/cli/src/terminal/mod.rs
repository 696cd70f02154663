//! What is shown on a terminal, and read from a command line, the same way by all commands.
//!
//! ```text
//!   output   stdout: colours, the width, a reader that leaves
//!   style    colours      table    columns that fit      frame  lines that are redrawn in place
//!   escape   text from outside that could steer a terminal        wrap   long lines
//!   time, metric, words   times, measured values and the API's words, as people read and write them
//!   json     the same for scripts
//! ```

pub(crate) mod escape;
pub(crate) mod frame;
pub(crate) mod json;
pub(crate) mod metric;
pub(crate) mod output;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod words;
pub(crate) mod wrap;
