//! Measured values as people read them.

use rollcall_protocol::api::MetricRow;

use crate::terminal::escape::escape;

/// Binary units of bytes, each 1024 times the one before.
const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Metrics in one line.
pub(crate) fn in_one_line(metrics: &[MetricRow]) -> String {
    let words: Vec<_> = metrics
        .iter()
        .map(|row| format!("{}={}", escape(&row.name), value(row)))
        .collect();
    words.join(" ")
}

/// The value of a metric with its unit, safe for a terminal.
pub(crate) fn value(metric: &MetricRow) -> String {
    let Some(number) = metric.value else {
        return "-".to_owned();
    };
    match metric.unit.as_str() {
        "B" => bytes(number),
        "s" if number != 0.0 && number.abs() < 1.0 => format!("{}ms", short(number * 1000.0)),
        "c" => short(number),
        unit => format!("{}{}", short(number), escape(unit)),
    }
}

fn bytes(number: f64) -> String {
    let mut scaled = number;
    let mut unit = BYTE_UNITS[0];
    for larger in &BYTE_UNITS[1..] {
        if scaled.abs() < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    if unit == BYTE_UNITS[0] {
        format!("{} {unit}", short(scaled))
    } else {
        format!("{scaled:.1} {unit}")
    }
}

/// At most three decimals, and none that are zero.
fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_unit() {
        for (number, unit, text) in [
            (0.5, "", "0.5"),
            (100.0, "", "100"),
            (12.3456, "%", "12.346%"),
            (0.0, "s", "0s"),
            (0.0123, "s", "12.3ms"),
            (2.5, "s", "2.5s"),
            (7.0, "c", "7"),
            (100.0, "B", "100 B"),
            (1536.0, "B", "1.5 KiB"),
            (-3.0 * 1024.0 * 1024.0, "B", "-3.0 MiB"),
            (1e30, "B", "867361737988.4 EiB"),
            (5.0, "\u{1b}", "5\\u{1b}"),
        ] {
            let metric = MetricRow {
                name: String::new(),
                value: Some(number),
                unit: unit.to_owned(),
            };
            assert_eq!(value(&metric), text);
        }
    }

    #[test]
    fn what_is_no_number_is_a_dash() {
        let metric = MetricRow {
            name: "x".to_owned(),
            value: None,
            unit: "B".to_owned(),
        };
        assert_eq!(value(&metric), "-");
    }
}
