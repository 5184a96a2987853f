//! YAML as a tree that knows where everything stands. Scalars keep their exact text (a database may be called `012`), and
//! a duplicate key stays visible. Anchors, aliases and tags are refused: a config that fits a screen needs none.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Lists and maps may be nested as deep; the config itself needs six.
const DEPTH_MAX: usize = 32;

/// A place in the file; both count from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line().max(1), column: marker.col() + 1 }
    }
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// Any other scalar.
    Text {
        /// As written, without its quotes.
        text: String,
        /// Written without quotes, so that it may be a number or a boolean.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the file's order; duplicate keys are still there.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub at: Place,
    /// Its value.
    pub node: Node,
}

/// Text that is not YAML, or YAML that is not for configs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Where.
    pub at: Place,
    /// What is wrong, one sentence.
    pub what: String,
}

/// Parses a file of one document. An empty one is an empty map.
pub fn parse(text: &str) -> Result<Node, Malformed> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| Malformed { at: (*e.marker()).into(), what: e.info().to_string() })?;
        builder.take(event, span.start.into())?;
    }
    Ok(builder.root.unwrap_or(Node { at: Place { line: 1, column: 1 }, value: Value::Map(vec![]) }))
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
}

struct Open {
    at: Place,
    what: Collection,
}

enum Collection {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<(String, Place)>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Place) -> Result<(), Malformed> {
        let refuse = |what: &str| Err(Malformed { at, what: what.into() });
        match event {
            Event::Alias(_) => refuse("anchors and aliases are not supported"),
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                refuse("anchors and aliases are not supported")
            }
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                refuse("tags are not supported")
            }
            Event::Scalar(text, style, ..) => self.put(scalar(&text, style, at)),
            Event::SequenceStart(..) => self.push(at, Collection::List(vec![])),
            Event::MappingStart(..) => self.push(at, Collection::Map(vec![], None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return refuse("an end without a beginning") };
                let value = match open.what {
                    Collection::List(items) => Value::List(items),
                    Collection::Map(entries, _) => Value::Map(entries),
                };
                self.put(Node { at: open.at, value })
            }
            Event::DocumentStart(_) if self.root.is_some() => refuse("a config is one YAML document"),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn push(&mut self, at: Place, what: Collection) -> Result<(), Malformed> {
        if self.open.len() == DEPTH_MAX {
            return Err(Malformed { at, what: format!("nested deeper than {DEPTH_MAX} levels") });
        }
        self.open.push(Open { at, what });
        Ok(())
    }

    fn put(&mut self, node: Node) -> Result<(), Malformed> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.what {
            Collection::List(items) => items.push(node),
            Collection::Map(entries, key) => match (key.take(), node.value) {
                (Some((key, at)), value) => entries.push(Entry { key, at, node: Node { at: node.at, value } }),
                (None, Value::Text { text, .. }) => *key = Some((text, node.at)),
                (None, _) => return Err(Malformed { at: node.at, what: "a key must be text".into() }),
            },
        }
        Ok(())
    }
}

fn scalar(text: &str, style: ScalarStyle, at: Place) -> Node {
    let plain = style == ScalarStyle::Plain;
    let null = plain && matches!(text, "" | "~" | "null" | "Null" | "NULL");
    let value = if null { Value::Null } else { Value::Text { text: text.to_string(), plain } };
    Node { at, value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_and_exact_text_survive() {
        let root = parse("a: 012\nb:\n  - x y\n  - { c: '3', c: ~ }\n").unwrap();
        let Value::Map(entries) = root.value else { panic!("{root:?}") };
        assert_eq!(entries[0].node.value, Value::Text { text: "012".into(), plain: true });
        assert_eq!((entries[1].key.as_str(), entries[1].at), ("b", Place { line: 2, column: 1 }));
        let Value::List(items) = &entries[1].node.value else { panic!("{entries:?}") };
        assert_eq!(items[0].at, Place { line: 3, column: 5 });
        let Value::Map(inner) = &items[1].value else { panic!("{items:?}") };
        assert_eq!(inner.iter().map(|e| (e.key.as_str(), e.at.column)).collect::<Vec<_>>(), [("c", 7), ("c", 15)]);
        assert_eq!(inner[1].node.value, Value::Null);
    }

    #[test]
    fn what_is_not_for_configs_is_refused_with_its_place() {
        for (text, line, what) in [
            ("a: &x 1\nb: *x\n", 1, "anchors"),
            ("a: 1\nb: !secret x\n", 2, "tags"),
            ("a: 1\n---\nb: 2\n", 2, "one YAML document"),
            ("a: [1, 2\nb: 3\n", 2, ""),
            ("a: b: c\n", 1, ""),
            ("? [a]\n: b\n", 1, "a key must be text"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.what.contains(what), "{text:?}: {error:?}");
            assert_eq!(error.at.line, line, "{text:?}: {error:?}");
        }
        assert!(parse(&"[".repeat(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_gives_a_tree_or_an_error(text in "[ -~\\n]{0,200}") {
            if let Err(error) = parse(&text) {
                prop_assert!(!error.what.is_empty());
                prop_assert!(error.at.line >= 1);
            }
        }
    }
}
