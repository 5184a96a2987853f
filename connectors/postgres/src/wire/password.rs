//! Where the password comes from: the config, `PGPASSWORD`, then the passfile (manual, "The Password File").
//!
//! It is looked up anew at every connect, so a rotated password needs no restart.

use std::path::{Path, PathBuf};

use millrace_core::{Result, Secret};

use crate::PostgresConfig;

/// The password for this endpoint, or none.
pub fn find(config: &PostgresConfig) -> Result<Option<Secret>> {
    if let Some(source) = &config.password {
        return source.read().map(Some);
    }
    if let Some(password) = std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty()) {
        return Ok(Some(Secret::new(password)));
    }
    let Some(path) = passfile() else { return Ok(None) };
    if !path.is_file() {
        return Ok(None);
    }
    if open_to_others(&path) {
        tracing::warn!(path = %path.display(), "the passfile is ignored: others may read it (chmod 0600)");
        return Ok(None);
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the passfile cannot be read");
            return Ok(None);
        }
    };
    Ok(look_up(&text, config))
}

fn passfile() -> Option<PathBuf> {
    std::env::var_os("PGPASSFILE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pgpass")))
}

fn open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

/// The first line that matches wins.
fn look_up(text: &str, config: &PostgresConfig) -> Option<Secret> {
    // libpq calls the socket in its default folder "localhost".
    let default_folders = ["/tmp", "/var/run/postgresql", "/run/postgresql"];
    let host_is_default_folder = default_folders.contains(&config.host.trim_end_matches('/'));
    let port = config.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut line = Fields(line);
        let host = line.field()?;
        let host_matches =
            host.matches(&config.host) || (host_is_default_folder && host == Field::Exact("localhost".into()));
        let others = [port.as_str(), &config.database, &config.user];
        let mut others_match = true;
        for expected in others {
            others_match &= line.field()?.matches(expected);
        }
        (host_matches && others_match).then(|| Secret::new(unescape(line.0.trim_end_matches('\r'))))
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Any,
    Exact(String),
}

impl Field {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == text,
        }
    }
}

/// Fields end with a colon; a backslash takes the meaning from a colon or a backslash.
struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn field(&mut self) -> Option<Field> {
        let mut escaped = false;
        let end = self.0.char_indices().find_map(|(index, c)| {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == ':' {
                return Some(index);
            }
            None
        })?;
        let (field, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.strip_prefix(':')?;
        Some(if field == "*" { Field::Any } else { Field::Exact(unescape(field)) })
    }
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        // A backslash at the very end stands for itself.
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use millrace_core::{Tls, TlsMode};

    fn config(host: &str) -> PostgresConfig {
        PostgresConfig {
            host: host.into(),
            port: 5432,
            database: "shop".into(),
            user: "cdc".into(),
            password: None,
            tls: Tls { mode: TlsMode::Disable, ca_file: None },
            connect_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_first_matching_line_wins() {
        for (file, host, expected) in [
            ("db:5432:shop:cdc:one\ndb:*:*:*:two", "db", Some("one")),
            ("other:5432:shop:cdc:one\n*:*:*:*:two", "db", Some("two")),
            ("# db:5432:shop:cdc:no\n*:5433:*:*:no\n*:*:shop:cdc:yes", "db", Some("yes")),
            ("db:5432:shop:cdc:a\\:b\\\\c:d", "db", Some("a:b\\c:d")),
            ("fe80\\:\\:1:5432:shop:cdc:six", "fe80::1", Some("six")),
            ("localhost:5432:shop:cdc:sock", "/run/postgresql", Some("sock")),
            ("localhost:5432:shop:cdc:sock", "/srv/sockets", None),
            ("/srv/sockets:5432:shop:cdc:path", "/srv/sockets", Some("path")),
            ("db:5432:shop", "db", None),
            ("\\*:5432:shop:cdc:literal star", "db", None),
            ("", "db", None),
        ] {
            let found = look_up(file, &config(host));
            assert_eq!(found.as_ref().map(Secret::expose), expected, "{file:?} {host}");
        }
    }
}
