//! The tree of the defaults with the operator's file laid over it; each value knows its place.

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::ConfigError;
use super::fault::{FAULTS_MAX, Fault, Position};
use super::path::{Shown, Step};

type Value<'a> = Spanned<DeValue<'a>>;

/// A longer line is not shown with its fault of syntax.
const EXCERPT_BYTES_MAX: usize = 200;

/// The two texts share one range of offsets, in which the file's begin behind the defaults' last:
/// an offset tells which of the two a value comes from.
pub(super) struct Document<'a> {
    origin: &'a str,
    text: &'a str,
    text_start: usize,
    defaults: Value<'a>,
    file: Value<'a>,
    merged: Value<'a>,
}

/// What of the operator's file a path leads to.
struct Blamed {
    /// How many steps of the path are set by the file.
    depth: usize,
    key_start: usize,
    value_start: usize,
}

impl<'a> Document<'a> {
    pub(super) fn parse(
        defaults: &'a str,
        text: &'a str,
        origin: &'a str,
    ) -> Result<Self, ConfigError> {
        let text_start = defaults.len() + 1;
        let defaults = DeTable::parse(defaults)
            .map_err(|error| ConfigError::Defaults(error.to_string()))?
            .into_inner();
        let defaults = root(defaults);
        let (file, mut errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            errors.sort_by_key(|error| error.span().map(|span| span.start));
            let faults = errors
                .iter()
                .take(FAULTS_MAX)
                .map(|error| syntax_fault(origin, text, error));
            return Err(ConfigError::Faulty(faults.collect()));
        }
        let file = shifted(root(file.into_inner()), text_start);
        // The root stands in neither text: its offset must not be that of the first table.
        let merged = overlaid(defaults.clone(), file.clone()).into_inner();
        Ok(Self {
            origin,
            text,
            text_start,
            defaults,
            file,
            merged: Spanned::new(0..0, merged),
        })
    }

    /// The tree as it is now.
    pub(super) fn merged(&self) -> &Value<'a> {
        &self.merged
    }

    /// A fault of the value at `path`, at its place in the file.
    pub(super) fn value_fault(&self, path: &[Step], message: String) -> Fault {
        self.fault(path, message, |blamed| blamed.value_start)
    }

    /// A fault of the key at `path` itself.
    pub(super) fn key_fault(&self, path: &[Step], message: String) -> Fault {
        self.fault(path, message, |blamed| blamed.key_start)
    }

    fn fault(&self, path: &[Step], message: String, place: fn(&Blamed) -> usize) -> Fault {
        Fault {
            origin: self.origin.to_owned(),
            position: self
                .blame(path)
                .map(|blamed| Position::of(self.text, place(&blamed) - self.text_start)),
            key: Shown(&self.path_in_file(path)).to_string(),
            message,
            excerpt: None,
        }
    }

    /// The offset of the value at `path`. No two tables have the same.
    pub(super) fn offset(&self, path: &[Step]) -> Option<usize> {
        get(&self.merged, path).map(|value| value.span().start)
    }

    /// The path to the table with this [`Self::offset`].
    pub(super) fn path_to_table(&self, offset: usize) -> Option<Vec<Step>> {
        path_to_table(&self.merged, offset)
    }

    /// Whether the value at `path` or one around it is from the operator's file.
    pub(super) fn is_from_file(&self, path: &[Step]) -> bool {
        self.blame(path).is_some()
    }

    /// Puts a value of no text into the table at `path`.
    pub(super) fn insert(&mut self, path: &[Step], key: &str, value: DeValue<'static>) {
        if let Some(DeValue::Table(table)) = get_mut(&mut self.merged, path) {
            let key = DeString::Owned(key.to_owned());
            table.insert(Spanned::new(0..0, key), Spanned::new(0..0, value));
        }
    }

    /// Takes the value at `path`, or the nearest around it that the operator's file has set, out
    /// of the tree; its default comes back. Returns the path of what was taken out.
    pub(super) fn revert(&mut self, path: &[Step]) -> Option<Vec<Step>> {
        let depth = self.blame(path)?.depth;
        let path = path.get(..depth)?;
        let (last, parents) = path.split_last()?;
        let default = get_entry(&self.defaults, path);
        match (get_mut(&mut self.merged, parents)?, last) {
            (DeValue::Array(array), Step::Index(removed)) => {
                *array = std::mem::replace(array, DeArray::new())
                    .into_iter()
                    .enumerate()
                    .filter(|(index, _)| index != removed)
                    .map(|(_, element)| element)
                    .collect();
            }
            (DeValue::Table(table), Step::Key(key)) => {
                table.remove(key.as_str());
                if let Some((key, value)) = default {
                    table.insert(key, value);
                }
            }
            _ => return None,
        }
        Some(path.to_vec())
    }

    /// Reads a path in its written form. A key may hold dots and brackets, as labels do, so the
    /// longest key of the tree that fits wins.
    pub(super) fn parse_path(&self, text: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let index = rest.strip_prefix('[').and_then(|rest| {
                let (index, rest) = rest.split_once(']')?;
                Some((index.parse().ok()?, rest))
            });
            if let Some((index, behind)) = index {
                steps.push(Step::Index(index));
                rest = behind.strip_prefix('.').unwrap_or(behind);
                continue;
            }
            let length = match get(&self.merged, &steps).map(Spanned::get_ref) {
                Some(DeValue::Table(table)) => longest_key(table, rest),
                _ => None,
            };
            let length = length.unwrap_or_else(|| rest.find(['.', '[']).unwrap_or(rest.len()));
            let (key, behind) = rest.split_at(length);
            steps.push(Step::Key(key.to_owned()));
            rest = behind.strip_prefix('.').unwrap_or(behind);
            if length == 0 && rest.len() == behind.len() {
                break;
            }
        }
        steps
    }

    /// The deepest value along `path` that the operator's file has set.
    fn blame(&self, path: &[Step]) -> Option<Blamed> {
        let mut blamed = None;
        let mut value = &self.merged;
        for (index, step) in path.iter().enumerate() {
            let (key_start, next) = match (value.get_ref(), step) {
                (DeValue::Table(table), Step::Key(key)) => {
                    let Some((key, next)) = table.get_key_value(key.as_str()) else {
                        break;
                    };
                    (key.span().start, next)
                }
                (DeValue::Array(array), Step::Index(index)) => {
                    let Some(next) = array.get(*index) else {
                        break;
                    };
                    (next.span().start, next)
                }
                _ => break,
            };
            value = next;
            let value_start = value.span().start;
            if key_start >= self.text_start && value_start >= self.text_start {
                blamed = Some(Blamed {
                    depth: index + 1,
                    key_start,
                    value_start,
                });
            }
        }
        blamed
    }

    /// The same path with the indices that the elements have in the file, from which some may
    /// have been taken out.
    fn path_in_file(&self, path: &[Step]) -> Vec<Step> {
        let mut shown = path.to_vec();
        for depth in 0..path.len() {
            let Some(Step::Index(_)) = path.get(depth) else {
                continue;
            };
            let start = path
                .get(..=depth)
                .and_then(|element| get(&self.merged, element))
                .map(|element| element.span().start);
            let array = shown.get(..depth).and_then(|array| get(&self.file, array));
            let (Some(start), Some(DeValue::Array(array))) = (start, array.map(Spanned::get_ref))
            else {
                continue;
            };
            let found = array
                .iter()
                .position(|element| element.span().start == start);
            if let (Some(index), Some(step)) = (found, shown.get_mut(depth)) {
                *step = Step::Index(index);
            }
        }
        shown
    }
}

fn root(table: DeTable<'_>) -> Value<'_> {
    Spanned::new(0..0, DeValue::Table(table))
}

fn get<'t, 'a>(root: &'t Value<'a>, path: &[Step]) -> Option<&'t Value<'a>> {
    path.iter()
        .try_fold(root, |value, step| match (value.get_ref(), step) {
            (DeValue::Table(table), Step::Key(key)) => table.get(key.as_str()),
            (DeValue::Array(array), Step::Index(index)) => array.get(*index),
            _ => None,
        })
}

fn get_mut<'t, 'a>(root: &'t mut Value<'a>, path: &[Step]) -> Option<&'t mut DeValue<'a>> {
    path.iter()
        .try_fold(root, |value, step| match (value.get_mut(), step) {
            (DeValue::Table(table), Step::Key(key)) => table.get_mut(key.as_str()),
            (DeValue::Array(array), Step::Index(index)) => array.get_mut(*index),
            _ => None,
        })
        .map(Spanned::get_mut)
}

fn path_to_table(value: &Value<'_>, offset: usize) -> Option<Vec<Step>> {
    if value.span().start == offset && value.get_ref().is_table() {
        return Some(Vec::new());
    }
    let (step, rest) = match value.get_ref() {
        DeValue::Table(table) => table.iter().find_map(|(key, value)| {
            let rest = path_to_table(value, offset)?;
            Some((Step::Key(key.get_ref().clone().into_owned()), rest))
        }),
        DeValue::Array(array) => array
            .iter()
            .enumerate()
            .find_map(|(index, value)| Some((Step::Index(index), path_to_table(value, offset)?))),
        _ => None,
    }?;
    Some(std::iter::once(step).chain(rest).collect())
}

fn get_entry<'a>(root: &Value<'a>, path: &[Step]) -> Option<(Spanned<DeString<'a>>, Value<'a>)> {
    let (last, parents) = path.split_last()?;
    match (get(root, parents)?.get_ref(), last) {
        (DeValue::Table(table), Step::Key(key)) => table
            .get_key_value(key.as_str())
            .map(|(key, value)| (key.clone(), value.clone())),
        _ => None,
    }
}

fn longest_key(table: &DeTable<'_>, text: &str) -> Option<usize> {
    table
        .keys()
        .map(|key| key.get_ref().as_ref())
        .filter(|key| {
            text.strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
        .map(str::len)
        .max()
}

/// Tables are merged key by key; anything else, arrays of tables too, replaces what was there.
fn overlaid<'a>(base: Value<'a>, over: Value<'a>) -> Value<'a> {
    let span = over.span();
    match (base.into_inner(), over.into_inner()) {
        (DeValue::Table(mut merged), DeValue::Table(over)) => {
            for (key, value) in over {
                let value = match merged.remove(key.get_ref().as_ref()) {
                    Some(default) => overlaid(default, value),
                    None => value,
                };
                merged.insert(key, value);
            }
            Spanned::new(span, DeValue::Table(merged))
        }
        (_, over) => Spanned::new(span, over),
    }
}

fn shifted(value: Value<'_>, by: usize) -> Value<'_> {
    let span = value.span();
    let moved = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, value)| {
                    let span = key.span();
                    let key = Spanned::new(span.start + by..span.end + by, key.into_inner());
                    (key, shifted(value, by))
                })
                .collect(),
        ),
        DeValue::Array(array) => {
            DeValue::Array(array.into_iter().map(|value| shifted(value, by)).collect())
        }
        scalar => scalar,
    };
    Spanned::new(span.start + by..span.end + by, moved)
}

fn syntax_fault(origin: &str, text: &str, error: &toml::de::Error) -> Fault {
    let position = error.span().map(|span| Position::of(text, span.start));
    let excerpt = position.and_then(|Position { line, column }| {
        let shown = text.lines().nth(line - 1)?;
        if shown.len() > EXCERPT_BYTES_MAX {
            return None;
        }
        // Tabs stay tabs, so that the caret stands under its character.
        let indent: String = shown
            .chars()
            .map(|character| if character == '\t' { '\t' } else { ' ' })
            .chain(std::iter::repeat(' '))
            .take(column - 1)
            .collect();
        Some(format!("  | {shown}\n  | {indent}^"))
    });
    Fault {
        origin: origin.to_owned(),
        position,
        key: String::new(),
        message: format!("not TOML: {}", error.message()),
        excerpt,
    }
}
