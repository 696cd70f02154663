//! docs/protocol.md.
