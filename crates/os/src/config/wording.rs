//! serde's and garde's messages in the words of somebody who edits a file.

/// serde's message without Rust's names: `invalid type: string "x", expected u16` becomes
/// `wrong type: found the string "x", expected a whole number from 0 to 65535`.
pub(super) fn of_serde(message: &str) -> String {
    if let Some(key) = quoted(message, "unknown field ") {
        return unknown("key", key, &choices(message));
    }
    if let Some(value) = quoted(message, "unknown variant ") {
        return unknown("value", value, &choices(message));
    }
    if let Some(key) = missing_key(message) {
        return format!("missing key {key:?}");
    }
    for (prefix, what) in [
        ("invalid type: ", "wrong type"),
        ("invalid value: ", "out of range"),
    ] {
        let parts = message
            .strip_prefix(prefix)
            .and_then(|rest| rest.rsplit_once(", expected "));
        if let Some((found, expected)) = parts {
            return format!(
                "{what}: found {}, expected {}",
                plain(found),
                kind(expected)
            );
        }
    }
    message.to_owned()
}

/// The key that serde misses in a table.
pub(super) fn missing_key(message: &str) -> Option<&str> {
    quoted(message, "missing field ")
}

/// Whether serde's message is about a key and not about its value.
pub(super) fn is_unknown_key(message: &str) -> bool {
    quoted(message, "unknown field ").is_some()
}

/// garde's message of its `range` rule, so that all range faults begin alike.
pub(super) fn range(message: &str) -> String {
    if let Some(min) = message.strip_prefix("lower than ") {
        format!("out of range: must be at least {min}")
    } else if let Some(max) = message.strip_prefix("greater than ") {
        format!("out of range: must be at most {max}")
    } else {
        message.to_owned()
    }
}

fn unknown(what: &str, found: &str, choices: &[&str]) -> String {
    match nearest(found, choices) {
        Some(near) => format!("unknown {what} {found:?}; did you mean {near:?}?"),
        None if choices.is_empty() => format!("unknown {what} {found:?}; none belongs here"),
        None => format!(
            "unknown {what} {found:?}; expected one of {}",
            choices.join(", ")
        ),
    }
}

/// The choice that a typing mistake could have turned into `found`.
fn nearest<'a>(found: &str, choices: &[&'a str]) -> Option<&'a str> {
    let found = found.to_lowercase().replace('-', "_");
    choices
        .iter()
        .map(|choice| {
            let plain = choice.replace('-', "_");
            (strsim::damerau_levenshtein(&found, &plain), *choice)
        })
        .min()
        .filter(|(edits, choice)| *edits <= 1.max(choice.chars().count() / 3))
        .map(|(_, choice)| choice)
}

/// What stands in backticks right after `prefix`. The text may hold backticks itself, but serde
/// puts a comma or the end behind the closing one.
fn quoted<'a>(message: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = message.strip_prefix(prefix)?.strip_prefix('`')?;
    rest.split_once("`, ")
        .map(|(text, _)| text)
        .or_else(|| rest.strip_suffix('`'))
}

/// The names in backticks after "expected": `a`, `a` or `b`, one of `a`, `b`, `c`.
fn choices(message: &str) -> Vec<&str> {
    message
        .rsplit_once("`, expected ")
        .map(|(_, list)| list.split('`').skip(1).step_by(2).collect())
        .unwrap_or_default()
}

/// serde's word for what it found.
fn plain(found: &str) -> String {
    match found {
        "map" => String::from("a table"),
        "sequence" => String::from("an array"),
        _ => match found.split_once(' ') {
            Some(("floating", value)) => {
                format!(
                    "the number {}",
                    value.trim_start_matches("point ").replace('`', "")
                )
            }
            Some(("integer", value)) => format!("the number {}", value.replace('`', "")),
            Some(("boolean", value)) => value.replace('`', ""),
            Some(("string", _)) => format!("the {found}"),
            _ => found.to_owned(),
        },
    }
}

/// serde's word for what a Rust type expects.
fn kind(expected: &str) -> String {
    let numbers = |min: i128, max: i128| format!("a whole number from {min} to {max}");
    match expected {
        "u8" => numbers(0, u8::MAX.into()),
        "u16" => numbers(0, u16::MAX.into()),
        "u32" => numbers(0, u32::MAX.into()),
        "u64" | "usize" => String::from("a whole number, 0 or more"),
        "i8" => numbers(i8::MIN.into(), i8::MAX.into()),
        "i16" => numbers(i16::MIN.into(), i16::MAX.into()),
        "i32" => numbers(i32::MIN.into(), i32::MAX.into()),
        "i64" | "isize" => String::from("a whole number"),
        "f32" | "f64" => String::from("a number"),
        "a boolean" => String::from("true or false"),
        "a sequence" => String::from("an array"),
        "a map" => String::from("a table"),
        _ if expected.starts_with("struct ") => String::from("a table"),
        _ if expected.starts_with("a nonzero ") => String::from("a whole number, 1 or more"),
        _ => expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{of_serde, range};

    #[test]
    fn serdes_words_become_the_files() {
        for (serde, ours) in [
            (
                "unknown field `intervall`, expected one of `name`, `interval`, `timeout`",
                r#"unknown key "intervall"; did you mean "interval"?"#,
            ),
            (
                "unknown field `timeuot`, expected `timeout`",
                r#"unknown key "timeuot"; did you mean "timeout"?"#,
            ),
            (
                "unknown field `late-after`, expected `late_after` or `x`",
                r#"unknown key "late-after"; did you mean "late_after"?"#,
            ),
            (
                "unknown field `colour`, expected `late_after` or `x`",
                r#"unknown key "colour"; expected one of late_after, x"#,
            ),
            (
                "unknown field `a`, there are no fields",
                r#"unknown key "a"; none belongs here"#,
            ),
            (
                "unknown field ``, expected `x`",
                r#"unknown key ""; did you mean "x"?"#,
            ),
            (
                "unknown field `a`, b`, expected `late_after`",
                r#"unknown key "a"; expected one of late_after"#,
            ),
            (
                "unknown variant `Pooled`, expected `pooled` or `per-message`",
                r#"unknown value "Pooled"; did you mean "pooled"?"#,
            ),
            (
                "unknown variant `per_mesage`, expected `pooled` or `per-message`",
                r#"unknown value "per_mesage"; did you mean "per-message"?"#,
            ),
            ("missing field `command`", r#"missing key "command""#),
            (
                "invalid type: string \"x, expected y\", expected u16",
                r#"wrong type: found the string "x, expected y", expected a whole number from 0 to 65535"#,
            ),
            (
                "invalid value: integer `70000`, expected u16",
                "out of range: found the number 70000, expected a whole number from 0 to 65535",
            ),
            (
                "invalid value: integer `-1`, expected u64",
                "out of range: found the number -1, expected a whole number, 0 or more",
            ),
            (
                "invalid type: floating point `1.5`, expected i64",
                "wrong type: found the number 1.5, expected a whole number",
            ),
            (
                "invalid type: boolean `true`, expected a string",
                "wrong type: found true, expected a string",
            ),
            (
                "invalid type: map, expected a sequence",
                "wrong type: found a table, expected an array",
            ),
            (
                "invalid type: sequence, expected struct Log",
                "wrong type: found an array, expected a table",
            ),
            ("anything else", "anything else"),
        ] {
            assert_eq!(of_serde(serde), ours, "{serde}");
        }
    }

    #[test]
    fn range_faults_begin_alike() {
        assert_eq!(range("lower than 1s"), "out of range: must be at least 1s");
        assert_eq!(range("greater than 10"), "out of range: must be at most 10");
        assert_eq!(range("is empty"), "is empty");
    }
}
