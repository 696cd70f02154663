//! Report frames of one exact size, made by copying a template and patching what differs.
//!
//! Encoding each report anew would cost the load generator more than the master spends on it. In a
//! template only the sequence has a length of its own, so there is one for each length of a varint.

use prost::Message;
use rollcall_protocol::frame::{self, TooLarge};
use rollcall_protocol::limits::{
    CHECK_TEXT_BYTES_MAX, CHECKS_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES,
};
use rollcall_protocol::wire::{Check, Report, Status, ToMaster, to_master};

/// Longest varint of a 64-bit number, in bytes.
const VARINT_BYTES_MAX: u32 = 10;
/// The smallest number whose varint has as many bytes as that of a present-day time in
/// milliseconds: from 2004 to 2109.
const TIME_MS_TEMPLATE: i64 = 1 << 40;
/// Bytes of that varint.
const TIME_BYTES: usize = 6;

/// Why no frame has the size that was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// Even without padding it is larger.
    #[error("a report of {wanted} bytes can't be made: the smallest has {smallest}")]
    TooSmall {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes of the smallest.
        smallest: usize,
    },
    /// Over the protocol's limit.
    #[error("a report of {0} bytes can't be sent: the largest has {FRAME_BYTES_MAX}")]
    TooLarge(usize),
    /// The length of a length grows here, and so no padding gives this very size.
    #[error("no report has exactly {wanted} bytes in this encoding; take {nearest}")]
    NoSuchSize {
        /// Bytes asked for.
        wanted: usize,
        /// The next size that can be made.
        nearest: usize,
    },
}

impl From<TooLarge> for TemplateError {
    fn from(error: TooLarge) -> Self {
        Self::TooLarge(error.bytes.saturating_add(FRAME_HEADER_BYTES))
    }
}

/// What differs between two reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// The slave's stream.
    pub(crate) stream: u64,
    /// From 1.
    pub(crate) sequence: u64,
    /// When it was taken, by the wall clock.
    pub(crate) time_ms: i64,
    /// Whether it is the newest of its slave.
    pub(crate) live: bool,
}

/// Report frames of one size.
#[derive(Debug)]
pub(crate) struct Templates {
    by_sequence_bytes: Vec<Template>,
}

impl Templates {
    /// Prepares frames of `frame_bytes` bytes each, header included.
    ///
    /// # Errors
    /// [`TemplateError`] when no frame has that size.
    pub(crate) fn new(frame_bytes: usize) -> Result<Self, TemplateError> {
        match Self::exactly(frame_bytes) {
            Ok(Some(templates)) => Ok(templates),
            Ok(None) => {
                let mut larger = frame_bytes + 1..frame_bytes.saturating_add(8);
                let nearest = larger.find(|size| matches!(Self::exactly(*size), Ok(Some(_))));
                let wanted = frame_bytes;
                let nearest = nearest.unwrap_or(frame_bytes);
                Err(TemplateError::NoSuchSize { wanted, nearest })
            }
            Err(error) => Err(error),
        }
    }

    fn exactly(frame_bytes: usize) -> Result<Option<Self>, TemplateError> {
        let by_sequence_bytes = (1..=VARINT_BYTES_MAX)
            .map(|length| Template::new(frame_bytes, length))
            .collect::<Result<Option<_>, _>>()?;
        Ok(by_sequence_bytes.map(|by_sequence_bytes| Self { by_sequence_bytes }))
    }

    /// Appends one frame.
    pub(crate) fn append(&self, patch: &Patch, out: &mut Vec<u8>) {
        let (sequence, length) = varint(patch.sequence);
        let template = &self.by_sequence_bytes[length - 1];
        let start = out.len();
        out.extend_from_slice(&template.bytes);
        let frame = &mut out[start..];
        let at = template.stream_at;
        frame[at..at + 8].copy_from_slice(&patch.stream.to_le_bytes());
        let at = template.sequence_at;
        frame[at..at + length].copy_from_slice(&sequence[..length]);
        let (time, time_bytes) = varint(patch.time_ms.cast_unsigned());
        if time_bytes == TIME_BYTES {
            let at = template.time_at;
            frame[at..at + TIME_BYTES].copy_from_slice(&time[..TIME_BYTES]);
        }
        frame[template.live_at] = u8::from(patch.live);
    }

    /// Appends one frame of a report that runs ahead of its place. It is encoded anew, two bytes
    /// larger than the others.
    pub(crate) fn append_preview(&self, patch: &Patch, out: &mut Vec<u8>) {
        let mut plain = Vec::new();
        self.append(patch, &mut plain);
        let message = ToMaster::decode(&plain[FRAME_HEADER_BYTES..]);
        if let Ok(Some(to_master::Kind::Report(mut report))) = message.map(|message| message.kind) {
            report.preview = true;
            let kind = Some(to_master::Kind::Report(report));
            // A report of the very largest size has no preview.
            let _ = frame::encode(&ToMaster { kind }, out);
        }
    }
}

/// A frame, and where in it the fields stand.
#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    stream_at: usize,
    sequence_at: usize,
    time_at: usize,
    live_at: usize,
}

impl Template {
    fn new(frame_bytes: usize, sequence_bytes: u32) -> Result<Option<Self>, TemplateError> {
        let sequence = 1 << (7 * (sequence_bytes - 1));
        let Some(report) = padded(frame_bytes, sequence)? else {
            return Ok(None);
        };
        // Protobuf writes fields in the order of their numbers: one byte of tag before each, and
        // before the report itself a tag and its length.
        let length_bytes = prost::length_delimiter_len(report.encoded_len());
        let kind = Some(to_master::Kind::Report(report));
        let mut bytes = Vec::new();
        frame::encode(&ToMaster { kind }, &mut bytes)?;
        let stream_at = FRAME_HEADER_BYTES + 1 + length_bytes + 1;
        let sequence_at = stream_at + 8 + 1;
        let time_at = sequence_at + varint(sequence).1 + 1;
        let live_at = time_at + TIME_BYTES + 1;
        Ok(Some(Self {
            bytes,
            stream_at,
            sequence_at,
            time_at,
            live_at,
        }))
    }
}

/// The report whose frame has exactly `frame_bytes` bytes; `None` if there is none.
fn padded(frame_bytes: usize, sequence: u64) -> Result<Option<Report>, TemplateError> {
    if frame_bytes > FRAME_BYTES_MAX {
        return Err(TemplateError::TooLarge(frame_bytes));
    }
    let smallest = frame_size(&report(u64::MAX, 0, None));
    if frame_bytes < smallest {
        let wanted = frame_bytes;
        return Err(TemplateError::TooSmall { wanted, smallest });
    }
    let unpadded = frame_size(&report(sequence, 0, None));
    // The length of a nested message takes a byte more where it passes 127 or 16383, and skips a
    // size there. A clock offset lies outside the checks and moves that place.
    for offset_ms in [None, Some(0), Some(1000)] {
        let mut text_bytes = frame_bytes - unpadded;
        loop {
            let report = report(sequence, text_bytes, offset_ms);
            let size = frame_size(&report);
            if size == frame_bytes {
                return Ok(Some(report));
            }
            // Near the aim in steps of one: a shorter text may save a byte of some length too.
            let step = match size.checked_sub(frame_bytes) {
                Some(over) if over > 64 => over / 2,
                Some(_) => 1,
                None => break,
            };
            match text_bytes.checked_sub(step) {
                Some(shorter) => text_bytes = shorter,
                None => break,
            }
        }
    }
    Ok(None)
}

fn report(sequence: u64, text_bytes: usize, clock_offset_ms: Option<i64>) -> Report {
    let checks = text_bytes
        .div_ceil(CHECK_TEXT_BYTES_MAX)
        .clamp(1, CHECKS_MAX);
    let checks = (0..checks).map(|index| {
        let before = index * CHECK_TEXT_BYTES_MAX;
        let text = "x".repeat((text_bytes - before).min(CHECK_TEXT_BYTES_MAX));
        Check {
            name: format!("c{index:02}"),
            text,
            ..Check::default()
        }
    });
    Report {
        stream: u64::MAX,
        sequence,
        time_ms: TIME_MS_TEMPLATE,
        live: true,
        status: Some(Status {
            checks: checks.collect(),
        }),
        clock_offset_ms,
        ..Report::default()
    }
}

fn frame_size(report: &Report) -> usize {
    let bytes = report.encoded_len();
    FRAME_HEADER_BYTES + 1 + prost::length_delimiter_len(bytes) + bytes
}

/// The varint of `value` and its length in bytes.
pub(crate) fn varint(mut value: u64) -> ([u8; 10], usize) {
    let mut bytes = [0; 10];
    let mut length = 0;
    loop {
        let low = value.to_le_bytes()[0];
        value >>= 7;
        bytes[length] = if value == 0 { low } else { low | 0x80 };
        length += 1;
        if value == 0 {
            return (bytes, length);
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::frame::Frame;
    use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;

    use super::*;

    fn decoded(bytes: &[u8]) -> Report {
        let frame = Frame::peek(bytes, FRAME_PAYLOAD_BYTES_MAX)
            .unwrap()
            .unwrap();
        assert_eq!(frame.taken, bytes.len());
        match frame.decode::<ToMaster>().unwrap().kind {
            Some(to_master::Kind::Report(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_size_is_met_exactly_whatever_the_sequence() {
        let mut impossible = Vec::new();
        for size in (64..700)
            .chain(2000..2100)
            .chain(16_300..16_420)
            .chain([40_000, 65_536])
        {
            match Templates::new(size) {
                Ok(templates) => {
                    for sequence in [1, 127, 128, 16_384, 1 << 42, u64::MAX] {
                        let patch = Patch {
                            stream: 1,
                            sequence,
                            time_ms: TIME_MS_TEMPLATE,
                            live: true,
                        };
                        let mut out = Vec::new();
                        templates.append(&patch, &mut out);
                        assert_eq!(out.len(), size, "sequence {sequence}");
                        assert_eq!(decoded(&out).sequence, sequence);
                    }
                }
                Err(TemplateError::NoSuchSize { nearest, .. }) => {
                    assert_eq!(nearest, size + 1);
                    impossible.push(size);
                }
                Err(error) => panic!("{error}"),
            }
        }
        // A report of 128 and of 16384 bytes: the length of the report itself grows by a byte.
        assert_eq!(impossible, [134, 16_391]);
    }

    #[test]
    fn what_was_patched_is_what_the_codec_reads() {
        let templates = Templates::new(200).unwrap();
        let mut out = vec![7; 3];
        let patch = Patch {
            stream: 0x0123_4567_89ab_cdef,
            sequence: 300,
            time_ms: 1_800_000_000_123,
            live: false,
        };
        templates.append(&patch, &mut out);
        let report = decoded(&out[3..]);
        let read = Patch {
            stream: report.stream,
            sequence: report.sequence,
            time_ms: report.time_ms,
            live: report.live,
        };
        assert_eq!(read, patch);
        let status = report.status.unwrap();
        assert!(status.checks[0].text.len() > 100);
        let longest = Templates::new(FRAME_BYTES_MAX).unwrap();
        out.clear();
        longest.append(&patch, &mut out);
        let checks = decoded(&out).status.unwrap().checks;
        assert!(
            checks
                .iter()
                .all(|check| check.text.len() <= CHECK_TEXT_BYTES_MAX)
        );
    }

    #[test]
    fn a_preview_says_so_and_is_live() {
        let patch = Patch {
            stream: 5,
            sequence: 8640,
            time_ms: 1_800_000_000_123,
            live: true,
        };
        let mut out = Vec::new();
        Templates::new(200)
            .unwrap()
            .append_preview(&patch, &mut out);
        let report = decoded(&out);
        assert_eq!(
            (report.preview, report.live, report.sequence),
            (true, true, 8640)
        );
    }

    #[test]
    fn a_size_outside_the_bounds_is_refused_with_the_bound() {
        let error = Templates::new(10).unwrap_err();
        assert!(
            matches!(
                error,
                TemplateError::TooSmall {
                    wanted: 10,
                    smallest: 40..=64
                }
            ),
            "{error}"
        );
        let error = Templates::new(FRAME_BYTES_MAX + 1).unwrap_err();
        assert_eq!(error, TemplateError::TooLarge(FRAME_BYTES_MAX + 1));
    }
}
