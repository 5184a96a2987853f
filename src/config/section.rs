//! Reads sections of the tree: every unknown key, wrong type and bad value becomes a problem with its place, and reading
//! goes on, so that all of them are told at once.

use std::{collections::BTreeSet, fmt::Display, time::Duration};

use millrace_core::Finding;

use super::{
    tree::{Entry, Malformed, Node, Place, Value},
    units::{parse_duration, parse_size},
};

/// Something wrong, or worth a warning, in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` for the file as a whole.
    pub at: Option<Place>,
    /// What, and what to do.
    pub finding: Finding,
}

/// A kind of section and its keys.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    /// What the section is called in messages and tests.
    pub name: &'static str,
    /// Every key it may have.
    pub keys: &'static [&'static str],
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Reader {
    /// What makes the config wrong.
    pub problems: Vec<Problem>,
    /// What does not.
    pub warnings: Vec<Problem>,
    /// Section kinds and keys that were met: a test holds `every-option.yaml` against it.
    pub seen: BTreeSet<(&'static str, &'static str)>,
}

impl Reader {
    /// Records a problem.
    pub fn wrong(&mut self, at: Place, code: &str, summary: impl Into<String>, fix: impl Into<String>) {
        self.problems.push(Problem { at: Some(at), finding: Finding::error(code, summary).fix(fix) });
    }

    /// Records a warning.
    pub fn warn(&mut self, at: Place, code: &str, summary: impl Into<String>, fix: impl Into<String>) {
        self.warnings.push(Problem { at: Some(at), finding: Finding::warning(code, summary).fix(fix) });
    }

    /// Records that the text is not YAML.
    pub fn malformed(&mut self, error: Malformed) {
        let finding =
            Finding::error("CFG-YAML", error.what).fix("correct the YAML there: indentation, quotes, brackets");
        self.problems.push(Problem { at: Some(error.at), finding });
    }

    /// Opens a mapping as a section: unknown and duplicate keys are problems. `None` if it is no mapping.
    pub fn section<'a>(&mut self, node: &'a Node, shape: &'static Shape, what: impl Display) -> Option<Section<'a>> {
        let what = what.to_string();
        let entries = self.entries(node, &what)?;
        let mut known = vec![];
        for entry in entries {
            let Some(key) = shape.keys.iter().find(|key| **key == entry.key) else {
                let fix = match nearest(&entry.key, shape.keys) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("keys of {what}: {}", shape.keys.join(", ")),
                };
                self.wrong(entry.at, "CFG-UNKNOWN-KEY", format!("unknown key \"{}\" in {what}", entry.key), fix);
                continue;
            };
            self.seen.insert((shape.name, key));
            known.push((*key, &entry.node));
        }
        Some(Section { what, at: node.at, entries: known })
    }

    /// The entries of a mapping with free keys; duplicates are problems, and the first one counts.
    pub fn entries<'a>(&mut self, node: &'a Node, what: &str) -> Option<Vec<&'a Entry>> {
        let Value::Map(all) = &node.value else {
            self.wrong_type(node, what, "a mapping (key: value)");
            return None;
        };
        let mut entries: Vec<&Entry> = vec![];
        for entry in all {
            if let Some(first) = entries.iter().find(|other| other.key == entry.key) {
                let fix = format!("keep one of them; the first is in line {}", first.at.line);
                self.wrong(entry.at, "CFG-DUPLICATE-KEY", format!("key \"{}\" stands twice in {what}", entry.key), fix);
                continue;
            }
            entries.push(entry);
        }
        Some(entries)
    }

    /// The items of a sequence.
    pub fn list<'a>(&mut self, node: &'a Node, what: &str) -> Option<&'a [Node]> {
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        self.wrong_type(node, what, "a list ([a, b], or lines that begin with \"- \")");
        None
    }

    /// A scalar's text.
    pub fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        if let Value::Text { text, .. } = &node.value {
            return Some(text.clone());
        }
        self.wrong_type(node, what, "text");
        None
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match plain(node) {
            Some("true") => return Some(true),
            Some("false") => return Some(false),
            _ => self.wrong_type(node, what, "true or false"),
        }
        None
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, node: &Node, what: &str, bounds: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let number = plain(node).and_then(|text| text.parse::<u64>().ok()).filter(|number| bounds.contains(number));
        if number.is_none() {
            self.wrong_type(node, what, &format!("a whole number from {} to {}", bounds.start(), bounds.end()));
        }
        number
    }

    /// A duration.
    pub fn duration(&mut self, node: &Node, what: &str) -> Option<Duration> {
        let duration = scalar(node).and_then(parse_duration);
        if duration.is_none() {
            self.wrong_type(node, what, "a duration with its unit, such as 500ms, 60s, 5m, 24h or 7d");
        }
        duration
    }

    /// A size in bytes.
    pub fn size(&mut self, node: &Node, what: &str) -> Option<u64> {
        let size = scalar(node).and_then(parse_size);
        if size.is_none() {
            self.wrong_type(node, what, "a size with its unit, such as 64MiB or 8GB");
        }
        size
    }

    /// One of a few words.
    pub fn word<T: Clone>(&mut self, node: &Node, what: &str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let names: Vec<&'static str> = words.iter().map(|(word, _)| *word).collect();
        let fix = match nearest(&text, &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("{what} is one of: {}", names.join(", ")),
        };
        self.wrong(node.at, "CFG-VALUE", format!("{what} cannot be \"{text}\""), fix);
        None
    }

    /// Records that a value is of the wrong type. The value is not repeated: it may be a secret.
    pub fn wrong_type(&mut self, node: &Node, what: &str, wanted: &str) {
        let is = match &node.value {
            Value::Null => "empty",
            Value::Text { plain: true, .. } => "something else",
            Value::Text { plain: false, .. } => "quoted text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        };
        self.wrong(node.at, "CFG-VALUE", format!("{what} is {is}"), format!("write {wanted}"));
    }
}

/// The text of a scalar. A duration or a size is text to YAML, with quotes or without.
fn scalar(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text { text, .. } => Some(text),
        _ => None,
    }
}

/// The text of a scalar without quotes.
fn plain(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text { text, plain: true } => Some(text),
        _ => None,
    }
}

/// The name that was probably meant.
pub fn nearest<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let scored = names.iter().map(|name| (strsim::jaro_winkler(&lower, name), *name));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// A mapping with known keys.
#[derive(Debug)]
pub struct Section<'a> {
    /// What it is, for messages: `endpoint lake`.
    pub what: String,
    /// Where it begins.
    pub at: Place,
    entries: Vec<(&'static str, &'a Node)>,
}

impl<'a> Section<'a> {
    /// A key's value; `None` if it is not there.
    pub fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(name, _)| *name == key).map(|(_, node)| *node)
    }

    /// A key's value; a problem if it is not there.
    pub fn require(&self, reader: &mut Reader, key: &str) -> Option<&'a Node> {
        let node = self.get(key);
        if node.is_none() {
            reader.wrong(
                self.at,
                "CFG-MISSING-KEY",
                format!("{} has no \"{key}\"", self.what),
                format!("add {key}: …"),
            );
        }
        node
    }

    /// What a key is called in messages.
    pub fn name(&self, key: &str) -> String {
        format!("\"{key}\" of {}", self.what)
    }

    /// Reads a key if it is there: `section.read(reader, "size", Reader::size)`.
    pub fn read<T>(
        &self,
        reader: &mut Reader,
        key: &str,
        read: impl FnOnce(&mut Reader, &Node, &str) -> Option<T>,
    ) -> Option<T> {
        read(reader, self.get(key)?, &self.name(key))
    }
}
