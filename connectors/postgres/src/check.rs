//! Stub.
use crate::{Names, PostgresConfig};
use millrace_core::{Finding, source::Scope};
/// c
pub async fn check(_config: &PostgresConfig, _names: &Names, _scope: &Scope) -> Vec<Finding> {
    vec![]
}
