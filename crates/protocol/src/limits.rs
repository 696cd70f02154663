//! Every limit of the protocol in one place. The configuration may lower some, never raise them.

use core::time::Duration;

/// Major versions of the protocol that this build speaks.
pub const VERSION_MIN: u32 = 1;
/// See [`VERSION_MIN`].
pub const VERSION_MAX: u32 = 1;

/// Bytes of the length before each frame.
pub const FRAME_HEADER_BYTES: usize = 4;
/// Largest payload of a frame, in bytes, either way.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 64 * 1024 - FRAME_HEADER_BYTES;
/// Largest whole frame in bytes: one read buffer holds it.
pub const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;

/// Bytes of a slave's or a master's id.
pub const ID_BYTES: usize = 16;
/// Longest name of a slave, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest agent version in Hello, in bytes.
pub const AGENT_VERSION_BYTES_MAX: usize = 64;
/// Most labels of a slave.
pub const LABELS_MAX: usize = 32;
/// Longest key or value of a label, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;

/// Most streams that a Hello may announce, and that the master remembers of each slave.
pub const STREAMS_MAX: usize = 32;
/// Most streams of earlier processes that a Hello may name.
pub const PREVIOUS_MAX: usize = 8;
/// Most checks in a report.
pub const CHECKS_MAX: usize = 256;
/// Longest name of a check, in bytes.
pub const CHECK_NAME_BYTES_MAX: usize = 128;
/// Longest text of a check, in bytes.
pub const CHECK_TEXT_BYTES_MAX: usize = 1024;

/// Shortest interval between two reports that a slave may announce.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Longest interval between two reports that a slave may announce.
pub const INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reports and gaps that may be unacked on one connection, unless the master says less.
pub const WINDOW: u32 = 64;
/// Largest window that a master may grant.
pub const WINDOW_MAX: u32 = 4096;
/// Most frames that one per-message connection carries.
pub const PER_MESSAGE_FRAMES_MAX: u32 = 16;

/// Largest datagram either way: what UDP over IPv4 can carry (65,535 bytes less both headers).
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// A datagram of this size is taken to fit every path (as in QUIC, RFC 9000, section 14).
pub const DATAGRAM_BYTES_SAFE: usize = 1200;
/// Streams of one slave of which the newest question is remembered.
pub const QUESTIONS_REMEMBERED: usize = 4;
