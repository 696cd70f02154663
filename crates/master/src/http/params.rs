//! Query parameters: each known, once, and in range, or the answer names the one that is not.

use std::ops::RangeInclusive;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use super::problem::Problem;

/// How near an unknown parameter must be to a known one for a guess, from 0 to 1.
const LIKENESS_MIN: f64 = 0.7;

/// The query of a request, before it is looked at.
pub(super) type RawParams = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The parameters of a request, each of them known and given once.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Checks the names against those that the path knows.
    pub(super) fn of(raw: RawParams, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = raw.map_err(|error| Problem::parameter("query", error.body_text()))?;
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(unknown(name, known));
            }
            if pairs[..index].iter().any(|(other, _)| other == name) {
                return Err(Problem::parameter(name, "is given twice"));
            }
        }
        Ok(Self(pairs))
    }

    /// The text of a parameter.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let (_, text) = self.0.iter().find(|(other, _)| other == name)?;
        Some(text)
    }

    /// A whole number within a range.
    pub(super) fn number(
        &self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Problem> {
        self.text(name)
            .map(|text| whole_number(name, text, range))
            .transpose()
    }
}

/// Reads a whole number within a range.
pub(super) fn whole_number(
    name: &str,
    text: &str,
    range: RangeInclusive<i64>,
) -> Result<i64, Problem> {
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(Problem::parameter(
            name,
            format!(
                "{text:?} is not a whole number from {} to {}",
                range.start(),
                range.end()
            ),
        )),
    }
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let nearest = known
        .iter()
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let advice = match nearest {
        Some((_, nearest)) => format!("did you mean {nearest:?}?"),
        None if known.is_empty() => "this path takes none".to_owned(),
        None => format!("there are: {}", known.join(", ")),
    };
    Problem::parameter(name, format!("unknown parameter; {advice}"))
}
