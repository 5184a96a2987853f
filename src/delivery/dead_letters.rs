//! Dead letters.
use crate::catalog::DataFile;
use millrace_core::{Reject, Result, TableName, destination::Destination};
/// Publishes.
pub async fn publish(
    _d: &dyn Destination,
    _t: &TableName,
    _time_us: i64,
    _name: &str,
    _r: &[Reject],
) -> Result<DataFile> {
    todo!()
}
