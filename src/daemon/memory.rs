//! How much memory the process may have, and whether that is enough for its tasks.
//!
//! The limit is the smallest of the process's control group and those above it: `memory.max` of version 2,
//! `memory.limit_in_bytes` of version 1 (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).

use std::{
    fs,
    path::{Path, PathBuf},
};

use tracing::warn;

use crate::config::Config;

/// What the process needs besides its tasks.
const PROCESS_BYTES: u64 = 128 << 20;
/// What a task needs at most: two times 32 MiB of Parquet writers, 72 MiB of pulls and appends in flight, what of these is
/// encoded and decoded at the moment, and a value of `max-value` that is held several times over. Measured: with one task
/// a transaction of 530 MiB needs up to 512 MiB in all, and 384 MiB were too little (docs/reliability.md, 16).
const TASK_BYTES: u64 = 384 << 20;
/// The kernel's way to write that there is no limit in version 1: rounded down to pages.
const UNLIMITED_BYTES: u64 = 1 << 62;

/// Says in the log where the limit is below what the tasks may need.
pub fn compare(config: &Config) {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(limit_bytes) = limit(&groups, Path::new("/sys/fs/cgroup")) else { return };
    let tasks = config.tasks.values().filter(|task| !task.removed).count() as u64;
    let needed_bytes = needed(tasks);
    if limit_bytes < needed_bytes {
        let fix = "raise the limit (systemd: MemoryMax=), or spread the tasks over several daemons";
        warn!(
            limit_bytes,
            needed_bytes, tasks, fix, "the memory limit is below what the tasks may need in a huge transaction"
        );
    }
}

fn needed(tasks: u64) -> u64 {
    PROCESS_BYTES + tasks * TASK_BYTES
}

/// The smallest limit that applies to the groups of `/proc/self/cgroup`.
fn limit(groups: &str, mounted: &Path) -> Option<u64> {
    let mut smallest = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, name): (PathBuf, _) = match controllers {
            "" => (mounted.into(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => (mounted.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        for folder in Path::new(group.trim_start_matches('/')).ancestors() {
            let text = fs::read_to_string(root.join(folder).join(name)).unwrap_or_default();
            let found: Option<u64> = text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED_BYTES);
            smallest = found.into_iter().chain(smallest).min();
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = |groups: &str| limit(groups, folder.path());
        assert_eq!(found("0::/a/b\n"), None, "there is no such group");
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000\n");
        assert_eq!(found("0::/a/b\n"), Some(1000));
        write("a/b/memory.max", "900\n");
        assert_eq!(found("0::/a/b\n"), Some(900));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/c/memory.limit_in_bytes", "800\n");
        assert_eq!(found("8:pids:/a\n4:cpu,memory:/c\n"), Some(800));
        assert_eq!(found("4:memory:/\n"), None);
        assert_eq!(found("nonsense"), None);
    }

    #[test]
    fn one_task_needs_what_was_measured() {
        assert_eq!((needed(1), needed(3)), (512 << 20, 1280 << 20));
    }
}
