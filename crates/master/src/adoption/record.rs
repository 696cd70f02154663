//! What is parked with a connection: what never changes while its session lasts. Where its streams
//! stand is durable in the roll.

use prost::Message;
use rollcall_protocol::limits::STREAMS_MAX;
use rollcall_protocol::wire::Hello;

use crate::view::SlaveId;

/// One session. Fields are only ever added: the next version of the master reads it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ParkedSession {
    /// The slave's id.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) slave_id: Vec<u8>,
    /// The streams that its Hello announced; the last one is its own.
    #[prost(fixed64, repeated, tag = "2")]
    pub(crate) streams: Vec<u64>,
    /// When the session was opened, in milliseconds since 1970.
    #[prost(int64, tag = "3")]
    pub(crate) since_ms: i64,
}

/// As many bytes as it may take: 8 for each stream, and the rest.
const BYTES_MAX: usize = 8 * STREAMS_MAX + 64;
const _: () = assert!(BYTES_MAX <= rollcall_os::parking::RECORD_BYTES_MAX);

impl ParkedSession {
    /// The session that `hello` opens.
    pub(crate) fn new(hello: &Hello, since_ms: i64) -> Self {
        let pending = hello.pending.iter();
        Self {
            slave_id: hello.slave_id.clone(),
            streams: pending.map(|pending| pending.stream).collect(),
            since_ms,
        }
    }

    /// The slave, if it is told.
    pub(crate) fn slave(&self) -> Option<SlaveId> {
        SlaveId::try_from(self.slave_id.as_slice()).ok()
    }
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::wire::Pending;

    use super::*;

    #[test]
    fn the_longest_fits() {
        let pending = Pending {
            stream: u64::MAX,
            first: 1,
        };
        let hello = Hello {
            slave_id: vec![7; 16],
            pending: vec![pending; STREAMS_MAX],
            ..Hello::default()
        };
        let session = ParkedSession::new(&hello, i64::MAX);
        let bytes = session.encode_to_vec();
        assert!(bytes.len() <= BYTES_MAX, "{}", bytes.len());
        assert_eq!(ParkedSession::decode(&*bytes).unwrap(), session);
        assert_eq!(session.slave(), Some([7; 16]));
    }
}
