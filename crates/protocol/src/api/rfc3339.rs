//! Times in JSON: RFC 3339 in UTC with milliseconds, as in the log.

use alloc::string::String;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    // A slave's clock may say anything: what no calendar has is told as its end.
    let end = if *ms < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    let time = Timestamp::from_millisecond(*ms).unwrap_or(end);
    serializer.collect_str(&format_args!("{time:.3}"))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time: Timestamp = text.parse().map_err(D::Error::custom)?;
    Ok(time.as_millisecond())
}

/// The same for a time that may be absent.
pub(super) mod option {
    use super::{Deserialize, Deserializer, Serializer, String, Timestamp};
    use serde::de::Error as _;

    #[expect(
        clippy::ref_option,
        reason = "serde calls it with a reference to the field"
    )]
    pub(crate) fn serialize<S: Serializer>(
        ms: &Option<i64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match ms {
            Some(ms) => super::serialize(ms, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<i64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let time: Timestamp = text.parse().map_err(D::Error::custom)?;
        Ok(Some(time.as_millisecond()))
    }
}
