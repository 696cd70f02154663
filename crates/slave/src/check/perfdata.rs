//! Performance data of the Nagios plugin API: `'label'=value[unit];[warn];[crit];[min];[max] …`.

use rollcall_protocol::wire::Metric;

/// What could be read of a plugin's performance data.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Perfdata {
    /// The figures, units as the plugin wrote them. A value of `U` (not known) gives none.
    pub(crate) metrics: Vec<Metric>,
    /// How many items did not follow the grammar and were skipped.
    pub(crate) malformed: usize,
}

/// Reads all items of `text`; items are separated by white space.
pub(crate) fn parse(text: &str) -> Perfdata {
    let mut found = Perfdata::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (item, after) = item(rest);
        match item {
            Item::Metric(metric) => found.metrics.push(metric),
            Item::Undetermined => {}
            Item::Malformed => found.malformed += 1,
        }
        rest = after.trim_start();
    }
    found
}

enum Item {
    Metric(Metric),
    Undetermined,
    Malformed,
}

/// The first item of `text`, and what comes after it. `text` begins with no white space.
fn item(text: &str) -> (Item, &str) {
    let Some((label, after_label)) = label(text) else {
        return (Item::Malformed, word(text).1);
    };
    let (values, after) = word(after_label);
    // Thresholds and range are the plugin's own business: its exit code has judged them.
    let value = values.split(';').next().unwrap_or_default();
    let item = match (label.is_empty(), value) {
        (true, _) => Item::Malformed,
        (false, "U") => Item::Undetermined,
        (false, value) => quantity(value).map_or(Item::Malformed, |(value, unit)| {
            Item::Metric(Metric {
                name: label,
                value,
                unit: unit.to_owned(),
            })
        }),
    };
    (item, after)
}

/// The label before `=`, unquoted, and what comes after the `=`.
fn label(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('\'') else {
        let (label, after) = text.split_once('=')?;
        return (!label.contains(char::is_whitespace)).then(|| (label.to_owned(), after));
    };
    let mut label = String::new();
    loop {
        let (part, after) = rest.split_once('\'')?;
        label.push_str(part);
        // Two quotes in a row stand for one.
        match after.strip_prefix('\'') {
            Some(after) => {
                label.push('\'');
                rest = after;
            }
            None => return Some((label, after.strip_prefix('=')?)),
        }
    }
}

/// The text up to the next white space, and the rest.
fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

/// A finite number and its unit.
fn quantity(text: &str) -> Option<(f64, &str)> {
    let digits = text
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits + exponent(&text[digits..]));
    let value: f64 = number.parse().ok()?;
    let unit_is_sane =
        !unit.contains(|c: char| c.is_ascii_digit() || matches!(c, '\'' | '"' | ','));
    (value.is_finite() && unit_is_sane).then_some((value, unit))
}

/// How many bytes of `text` are an exponent such as `e-05`.
fn exponent(text: &str) -> usize {
    let Some(after_e) = text.strip_prefix(['e', 'E']) else {
        return 0;
    };
    let after_sign = after_e.strip_prefix(['+', '-']).unwrap_or(after_e);
    let digits = after_sign.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return 0;
    }
    text.len() - after_sign.len() + digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (Vec<(String, f64, String)>, usize) {
        let found = parse(text);
        let metrics = found
            .metrics
            .into_iter()
            .map(|metric| (metric.name, metric.value, metric.unit))
            .collect();
        (metrics, found.malformed)
    }

    fn one(name: &str, value: f64, unit: &str) -> (String, f64, String) {
        (name.to_owned(), value, unit.to_owned())
    }

    #[test]
    fn real_plugins_are_read() {
        // check_load, check_disk, check_ping, check_http of monitoring-plugins 2.3
        let (metrics, malformed) = read(
            "load1=0.150;5.000;10.000;0; load5=0.080;4.000;6.000;0; /=11906MiB;206424;232227;0;258031 \
             rta=0.045000ms;100.000000;500.000000;0.000000 pl=0%;20;60;0 time=0.000312s;;;0.000000;10.000000 size=45B;;;0",
        );
        let expected = [
            one("load1", 0.15, ""),
            one("load5", 0.08, ""),
            one("/", 11906.0, "MiB"),
            one("rta", 0.045, "ms"),
            one("pl", 0.0, "%"),
            one("time", 0.000_312, "s"),
            one("size", 45.0, "B"),
        ];
        assert_eq!((metrics.as_slice(), malformed), (expected.as_slice(), 0));
    }

    #[test]
    fn labels_may_be_quoted() {
        let (metrics, malformed) = read("'C:\\ used'=12%;80;90 'it''s = odd'=3 ''=1 'open=2");
        assert_eq!(
            metrics,
            [one("C:\\ used", 12.0, "%"), one("it's = odd", 3.0, "")]
        );
        assert_eq!(malformed, 2, "an empty and an open label");
    }

    #[test]
    fn numbers_may_be_signed_broken_and_scientific() {
        let (metrics, malformed) = read("a=-1.5C b=+2 c=1e3 d=2.5E-05s e=.5 f=7e g=1EB");
        let expected = [
            one("a", -1.5, "C"),
            one("b", 2.0, ""),
            one("c", 1000.0, ""),
            one("d", 0.000_025, "s"),
            one("e", 0.5, ""),
            one("f", 7.0, "e"),
            one("g", 1.0, "EB"),
        ];
        assert_eq!((metrics.as_slice(), malformed), (expected.as_slice(), 0));
    }

    #[test]
    fn what_is_no_number_gives_no_metric() {
        let (metrics, malformed) =
            read("unknown=U;1;2 a=nan b=inf c=1,5s d= e f=1-2 Physical Memory=4 g=1e999");
        assert_eq!(metrics, [one("Memory", 4.0, "")]);
        assert_eq!(malformed, 8);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            for metric in parse(&text).metrics {
                prop_assert!(metric.value.is_finite());
                prop_assert!(!metric.name.is_empty());
            }
        }

        #[test]
        fn any_label_and_value_come_back(label in "[^\\s][^\\x00]{0,20}", value in -1e12_f64..1e12) {
            let text = format!("'{}'={value}s;;", label.replace('\'', "''"));
            prop_assert_eq!(read(&text), (vec![one(&label, value, "s")], 0));
        }
    }
}
