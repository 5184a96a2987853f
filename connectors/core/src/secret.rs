//! Secrets: where they come from, and a value that no log can print.

use std::{fmt, path::PathBuf};

use crate::error::{Context, Kind, Result};

/// A secret value; its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret comes from. It is read anew at every connect, so a rotated one needs no restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// Written in the config itself (the daemon warns).
    Value(Secret),
    /// The first line of a file, such as a systemd credential.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl SecretSource {
    /// Reads it.
    pub fn read(&self) -> Result<Secret> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path)
                    .context(Kind::Config, || format!("reading the secret file {}", path.display()))?;
                Ok(Secret::new(text.lines().next().unwrap_or_default()))
            }
            Self::Env(name) => std::env::var(name)
                .map(Secret::new)
                .context(Kind::Config, || format!("reading the environment variable {name}")),
        }
    }
}
