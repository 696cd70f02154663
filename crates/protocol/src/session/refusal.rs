//! Why the master ends a connection.

use alloc::string::{String, ToString};
use core::time::Duration;

use crate::frame::FrameError;
use crate::wire::{self, ErrorCode, ToSlave, to_slave};

/// The reason for which the master ends a connection, as it goes to the slave and into the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The kind of reason.
    pub code: ErrorCode,
    /// For people: what was wrong, and what to do.
    pub text: String,
    /// When the same may succeed; `None` if it never will.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal that trying again does not mend.
    pub fn for_good(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            retry_after: None,
        }
    }

    /// A refusal that may be over after `retry_after`.
    pub fn for_now(code: ErrorCode, text: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            code,
            text: text.into(),
            retry_after: Some(retry_after),
        }
    }

    /// The Error frame that tells the slave.
    pub fn to_message(&self) -> ToSlave {
        let retry_after = self.retry_after.unwrap_or_default();
        ToSlave {
            kind: Some(to_slave::Kind::Error(wire::Error {
                code: self.code.into(),
                text: self.text.clone(),
                retry: self.retry_after.is_some(),
                retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
            })),
        }
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        let code = match error {
            FrameError::Length { .. } => ErrorCode::FrameLength,
            FrameError::Payload(_) => ErrorCode::Protocol,
        };
        Self::for_good(code, error.to_string())
    }
}
