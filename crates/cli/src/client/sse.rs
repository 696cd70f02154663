//! Server-sent events: the text of a stream, cut into messages.

use std::io::{self, BufRead, Read};

/// Longest message in bytes; a master's events are far below it.
const MESSAGE_BYTES_MAX: u64 = 1024 * 1024;

/// One message of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its kind; empty means the default kind.
    pub(crate) event: String,
    /// Its lines, joined by line ends.
    pub(crate) data: String,
}

/// Reads messages from a stream.
#[derive(Debug)]
pub(crate) struct Messages<R> {
    stream: R,
}

impl<R: BufRead> Messages<R> {
    /// Reads from `stream`.
    pub(crate) fn new(stream: R) -> Self {
        Self { stream }
    }

    /// The next message that has data; none at the end of the stream, where a message that was
    /// cut off is dropped.
    ///
    /// # Errors
    /// Those of the stream; [`io::ErrorKind::InvalidData`] on a message that is too long or no UTF-8.
    pub(crate) fn next(&mut self) -> io::Result<Option<Message>> {
        let mut message = Message::default();
        let mut left = MESSAGE_BYTES_MAX;
        let mut has_data = false;
        loop {
            let Some(line) = self.line(&mut left)? else {
                return Ok(None);
            };
            if line.is_empty() {
                if has_data {
                    return Ok(Some(message));
                }
                message = Message::default();
                left = MESSAGE_BYTES_MAX;
                continue;
            }
            // A line that begins with a colon is a comment: the master's sign of life.
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut message.event),
                "data" => {
                    if has_data {
                        message.data.push('\n');
                    }
                    has_data = true;
                    message.data.push_str(value);
                }
                _ => {}
            }
        }
    }

    fn line(&mut self, left: &mut u64) -> io::Result<Option<String>> {
        let mut bytes = Vec::new();
        let mut bounded = (&mut self.stream).take(*left);
        bounded.read_until(b'\n', &mut bytes)?;
        *left = bounded.limit();
        if bytes.pop_if(|last| *last == b'\n').is_none() {
            return if *left == 0 {
                Err(invalid("a message of the event stream is too long"))
            } else {
                Ok(None)
            };
        }
        bytes.pop_if(|last| *last == b'\r');
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| invalid("the event stream is not UTF-8"))
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn messages(text: &str, chunk_bytes: usize) -> Vec<Message> {
        let mut reader = Messages::new(BufReader::with_capacity(chunk_bytes, text.as_bytes()));
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    #[test]
    fn messages_are_the_same_however_the_bytes_arrive() {
        let text = ":hello\n\nid: 7\r\nevent: event\r\ndata: {\"a\":1}\r\n\r\n\
                    retry: 5\n\n:alive\ndata:one\ndata: two\n\ndata: cut o";
        let expected = [
            Message {
                event: "event".to_owned(),
                data: "{\"a\":1}".to_owned(),
            },
            Message {
                event: String::new(),
                data: "one\ntwo".to_owned(),
            },
        ];
        for chunk_bytes in 1..text.len() {
            assert_eq!(messages(text, chunk_bytes), expected, "{chunk_bytes}");
        }
    }

    #[test]
    fn a_line_without_end_is_not_gathered_forever() {
        let mut reader = Messages::new(BufReader::new(io::repeat(b'x')));
        assert_eq!(
            reader.next().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
