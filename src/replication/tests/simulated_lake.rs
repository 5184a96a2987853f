//! A target in memory: an object is there whole or not at all, once published for ever. What is staged goes with the
//! process.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use arrow_array::{RecordBatch, cast::AsArray, types::Int64Type};
use async_trait::async_trait;
use millrace_core::{
    Error, Finding, Kind, Result,
    destination::{Destination, ObjectSpec, ObjectWriter, Published, Staged},
};

use super::Fuse;

/// A row of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LakeRow {
    pub id: i64,
    /// As `change_order` says.
    pub commit: u128,
    pub ordinal: u32,
    pub op: String,
    pub value: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub rows: Vec<LakeRow>,
    metadata: BTreeMap<String, String>,
}

/// What survives our process, and what goes wrong.
#[derive(Debug, Default)]
pub struct Objects {
    pub there: BTreeMap<String, Object>,
    /// So many of the next uploads fail; some of them arrive all the same.
    pub failures: u64,
}

#[derive(Default)]
struct Spool {
    /// How many were ever staged.
    count: u64,
    staged: BTreeMap<PathBuf, Object>,
}

/// One life of the target's client.
pub struct SimulatedLake {
    objects: Arc<Mutex<Objects>>,
    spool: Arc<Mutex<Spool>>,
    fuse: Arc<Fuse>,
}

impl SimulatedLake {
    pub fn new(objects: Arc<Mutex<Objects>>, fuse: Arc<Fuse>) -> Self {
        Self { objects, spool: Arc::default(), fuse }
    }
}

#[async_trait]
impl Destination for SimulatedLake {
    async fn check(&self) -> Vec<Finding> {
        vec![]
    }

    fn location(&self, key: &str) -> String {
        key.into()
    }

    async fn sweep(&self) -> Result<()> {
        self.spool.lock().unwrap().staged.clear();
        Ok(())
    }

    fn stage(&self, spec: ObjectSpec) -> Result<Box<dyn ObjectWriter>> {
        let object = Object { rows: vec![], metadata: spec.metadata };
        Ok(Box::new(SimulatedWriter { spool: self.spool.clone(), key: spec.key, object }))
    }

    fn stage_bytes(&self, key: &str, _: &[u8]) -> Result<Staged> {
        Err(Error::new(Kind::Internal, format!("staging {key}: no row is ever rejected")))
    }

    async fn publish(&self, staged: Staged) -> Result<Published> {
        self.fuse.wait().await;
        let failed = Err(Error::new(Kind::Target, format!("uploading {}: no answer", staged.key)));
        let object = self.spool.lock().unwrap().staged[&staged.path].clone();
        let (was_there, is_lost) = {
            let mut objects = self.objects.lock().unwrap();
            let fails = objects.failures > 0;
            objects.failures -= u64::from(fails);
            if fails && self.fuse.below(2) == 0 {
                return failed;
            }
            match objects.there.get(&staged.key) {
                Some(other) if (other.rows.len(), &other.metadata) != (object.rows.len(), &object.metadata) => {
                    return Err(Error::new(
                        Kind::TargetConflict,
                        format!("uploading {}: another is there", staged.key),
                    ));
                }
                Some(_) => (true, fails),
                None => {
                    objects.there.insert(staged.key.clone(), object);
                    (false, fails)
                }
            }
        };
        self.fuse.wait().await;
        if is_lost {
            return failed;
        }
        self.spool.lock().unwrap().staged.remove(&staged.path);
        let Staged { key, rows, bytes, .. } = staged;
        Ok(Published { location: key.clone(), key, rows, bytes, was_there })
    }

    async fn read(&self, key: &str) -> Result<Vec<u8>> {
        Err(Error::new(Kind::Internal, format!("reading {key}: there are no dead letters")))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        Err(Error::new(Kind::Internal, format!("looking at {key}: nobody asks in a simulation")))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.fuse.wait().await;
        self.objects.lock().unwrap().there.remove(key);
        self.fuse.wait().await;
        Ok(())
    }
}

struct SimulatedWriter {
    spool: Arc<Mutex<Spool>>,
    key: String,
    object: Object,
}

impl ObjectWriter for SimulatedWriter {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>();
        let number = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
        // It is renamed again and again.
        let schema = batch.schema();
        let value = schema.fields().iter().map(|field| field.name()).find(|name| name.starts_with("value")).unwrap();
        let (op, order, id, value) = (text("Op"), text("change_order"), number("id"), number(value));
        self.object.rows.extend((0..batch.num_rows()).map(|row| {
            let (commit, ordinal) = order.value(row).split_at(32);
            LakeRow {
                id: id.value(row),
                commit: u128::from_str_radix(commit, 16).unwrap(),
                ordinal: u32::from_str_radix(ordinal, 16).unwrap(),
                op: op.value(row).into(),
                value: value.value(row),
            }
        }));
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn size_so_far(&self) -> u64 {
        self.object.rows.len() as u64 * 16
    }

    fn finish(self: Box<Self>) -> Result<Staged> {
        let mut spool = self.spool.lock().unwrap();
        spool.count += 1;
        let path = PathBuf::from(format!("staged-{}", spool.count));
        let (rows, metadata) = (self.object.rows.len() as u64, self.object.metadata.clone());
        spool.staged.insert(path.clone(), self.object);
        Ok(Staged { key: self.key, path, rows, bytes: rows * 16, metadata })
    }
}
