//! A state in memory, for tests.

use std::{collections::BTreeMap, sync::Mutex};

use millrace_core::Result;

use super::{Put, StateStore, expectation_failed};

/// Forgets everything when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryState {
    rows: Mutex<BTreeMap<String, String>>,
}

impl StateStore for MemoryState {
    fn get(&self, key: &str) -> Result<Option<String>> {
        Ok(self.rows.lock().expect("no panic while locked").get(key).cloned())
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let rows = self.rows.lock().expect("no panic while locked");
        let from = rows.range(prefix.to_string()..);
        Ok(from.take_while(|(key, _)| key.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn commit(&self, puts: &[Put]) -> Result<()> {
        let mut rows = self.rows.lock().expect("no panic while locked");
        for put in puts {
            if put.expect.as_ref().is_some_and(|expected| rows.get(&put.key) != expected.as_ref()) {
                return Err(expectation_failed(&put.key));
            }
        }
        for put in puts {
            match &put.value {
                Some(value) => rows.insert(put.key.clone(), value.clone()),
                None => rows.remove(&put.key),
            };
        }
        Ok(())
    }
}
