//! The floor of the house: what every connector and the daemon share.
//!
//! A source connector turns wire bytes into [`ColumnVec`]s once and never again; a target connector writes
//! [`arrow_array::RecordBatch`]es made of the same memory. Nothing here opens a socket or the state.
//!
//! - [`types`]: the column types; [`table`]: tables, columns and their identity
//! - [`position`]: where a transaction stands in its source's log, and what may be confirmed
//! - [`columns`], [`bitmap`], [`batch`], [`builder`]: rows of one table as plain vectors, and the exact text of values
//!   that do not fit them; [`values`]: what becomes of such values
//! - [`source`], [`destination`]: the traits a connector implements
//! - [`error`], [`finding`]: how trouble is told, with its remedy
//! - [`throttle`]: the rate limit of full loads; [`secret`]: values that no log can print; [`tls`]: encryption of a
//!   source's connections

pub mod batch;
pub mod bitmap;
pub mod builder;
pub mod columns;
pub mod destination;
pub mod error;
mod exact;
pub mod finding;
pub mod position;
mod reclaim;
mod rows;
pub mod secret;
pub mod source;
pub mod table;
pub mod throttle;
pub mod tls;
pub mod types;
pub mod values;

pub use batch::{Absent, Change, ChangeBatch, Changes, Ddl, Op, Reject};
pub use bitmap::Bitmap;
pub use builder::BatchBuilder;
pub use columns::{ColumnVec, Columns, Values};
pub use error::{Error, Kind, Result};
pub use finding::{Finding, Severity};
pub use position::{Durable, Order, Position};
pub use reclaim::Spare;
pub use secret::{Secret, SecretSource};
pub use table::{Capture, Column, Part, PartChanges, Selection, Table, TableName, TablePattern};
pub use tls::{Tls, TlsMode};
pub use types::ColumnType;
pub use values::{Becomes, Unfit, ValueRule, ValueRules};
