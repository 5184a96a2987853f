//! `{ file: … }`, `{ env: … }`, `{ credential: … }` or `{ value: … }`: where a secret comes from. Never by substitution in
//! the text of the config.

use millrace_core::{Secret, SecretSource};

use super::{
    Surroundings,
    section::{Reader, Shape},
    tree::{Node, Place, Value},
};

pub(super) static SECRET: Shape = Shape { name: "secret", keys: &["file", "env", "credential", "value"] };

/// Reads where a secret comes from. One that stands in the config itself is taken with a warning.
pub(super) fn secret(
    reader: &mut Reader,
    node: &Node,
    what: &str,
    surroundings: &Surroundings,
) -> Option<SecretSource> {
    if let Value::Text { text, .. } = &node.value {
        warn_plain(reader, node.at, what);
        return Some(SecretSource::Value(Secret::new(text)));
    }
    let section = reader.section(node, &SECRET, what)?;
    let given: Vec<&str> = SECRET.keys.iter().copied().filter(|key| section.get(key).is_some()).collect();
    let [key] = given[..] else {
        let fix = "write one of { file: /path }, { env: NAME }, { credential: NAME }";
        reader.wrong(node.at, "CFG-VALUE", format!("{what} needs exactly one place to come from"), fix);
        return None;
    };
    let text = section.read(reader, key, Reader::text)?;
    Some(match key {
        "file" => SecretSource::File(surroundings.resolve(&text)),
        "env" => SecretSource::Env(text),
        "credential" if text.contains('/') => {
            reader.wrong(node.at, "CFG-VALUE", format!("{what} names a credential with a slash"), "write { file: … }");
            return None;
        }
        "credential" => SecretSource::File(surroundings.credentials.join(text)),
        _ => {
            warn_plain(reader, node.at, what);
            SecretSource::Value(Secret::new(text))
        }
    })
}

/// Warns of a secret in the config.
pub(super) fn warn_plain(reader: &mut Reader, at: Place, what: &str) {
    let fix = "put it in a file of mode 0600 and write { file: /path }";
    reader.warn(at, "CFG-PLAIN-SECRET", format!("{what} stands in the config for everybody who can read it"), fix);
}
