//! Values that can be switched off.

use std::fmt;

use rollcall_os::units::Duration;
use serde::de::value::StrDeserializer;
use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number, or "off".
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit(pub(super) Option<f64>);

/// A duration, or "off".
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DurationLimit(pub(super) Option<Duration>);

const OFF: &str = "off";

/// A range check for garde, as `within` is for a duration.
pub(super) fn off_or_within(
    min: Duration,
    max: Duration,
) -> impl Fn(&DurationLimit, &()) -> garde::Result {
    move |limit, ()| match limit.0 {
        Some(value) if value < min || value > max => Err(garde::Error::new(format!(
            "out of range: {value} is neither within {min} to {max} nor \"off\""
        ))),
        _ => Ok(()),
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrOff;

        impl Visitor<'_> for NumberOrOff {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or \"off\"")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Limit, E> {
                Ok(Limit(Some(value)))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Limit, E> {
                i32::try_from(value)
                    .map(|value| Limit(Some(value.into())))
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Limit, E> {
                if text == OFF {
                    return Ok(Limit(None));
                }
                Err(E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(NumberOrOff)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(value) => serializer.serialize_f64(value),
            None => serializer.serialize_str(OFF),
        }
    }
}

impl<'de> Deserialize<'de> for DurationLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DurationOrOff;

        impl Visitor<'_> for DurationOrOff {
            type Value = DurationLimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10m\", or \"off\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DurationLimit, E> {
                if text == OFF {
                    return Ok(DurationLimit(None));
                }
                let inner: StrDeserializer<'_, E> = text.into_deserializer();
                Duration::deserialize(inner).map(|value| DurationLimit(Some(value)))
            }
        }

        deserializer.deserialize_str(DurationOrOff)
    }
}

impl Serialize for DurationLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(OFF),
        }
    }
}
