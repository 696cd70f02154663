//! Frames out of a stream that comes in pieces. Nothing is held between whole frames.

use rollcall_protocol::frame::{Frame, FrameError, Frames};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;

/// What one connection has received of a frame that is not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    partial: Vec<u8>,
}

impl Inbox {
    /// Hands each frame that `bytes` makes whole to `take`, with all the bytes that it took.
    ///
    /// # Errors
    /// A length out of bounds, or the first error of `take`; the connection is of no use then.
    pub(crate) fn feed<E: From<FrameError>>(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Frame<'_>, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.partial.is_empty() {
            let taken = each(bytes, &mut take)?;
            self.partial.extend_from_slice(&bytes[taken..]);
            return Ok(());
        }
        self.partial.extend_from_slice(bytes);
        let taken = each(&self.partial, &mut take)?;
        self.partial.drain(..taken);
        if self.partial.is_empty() {
            // Most connections need it once in a while, and there are many of them.
            self.partial = Vec::new();
        }
        Ok(())
    }
}

fn each<E: From<FrameError>>(
    bytes: &[u8],
    take: &mut impl FnMut(Frame<'_>, &[u8]) -> Result<(), E>,
) -> Result<usize, E> {
    let mut frames = Frames::new(bytes, FRAME_PAYLOAD_BYTES_MAX);
    let mut start = 0;
    while let Some(frame) = frames.next_frame()? {
        take(frame, &bytes[start..frames.taken()])?;
        start = frames.taken();
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_stream_is_cut() {
        let stream = [0, 0, 0, 2, 7, 8, 0, 0, 0, 1, 9, 0, 0, 0, 3, 1, 2, 3];
        for size in 1..=stream.len() {
            let mut inbox = Inbox::default();
            let mut found = Vec::new();
            for part in stream.chunks(size) {
                let result: Result<(), FrameError> = inbox.feed(part, |frame, whole| {
                    assert_eq!(&whole[4..], frame.payload);
                    found.push(frame.payload.to_vec());
                    Ok(())
                });
                result.unwrap();
            }
            assert_eq!(
                found,
                [vec![7, 8], vec![9], vec![1, 2, 3]],
                "cut every {size} bytes"
            );
            assert_eq!(inbox.partial.capacity(), 0, "cut every {size} bytes");
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_an_error() {
        let result: Result<(), FrameError> = Inbox::default().feed(&[0; 4], |_, _| Ok(()));
        assert!(result.is_err());
    }
}
