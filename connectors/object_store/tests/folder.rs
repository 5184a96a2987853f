//! Objects in a folder: whole or not there, and never replaced.

mod objects;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use millrace_core::{Kind, destination::Destination};
use millrace_object_store::{Compression, ObjectStore, ObjectStoreConfig, Place};
use objects::{batch, spec, stage};

fn store(root: &Path, spool: &Path, compression: Compression) -> ObjectStore {
    let config = ObjectStoreConfig { place: Place::Folder(root.into()), compression };
    ObjectStore::new(config, spool.into()).unwrap()
}

fn files_below(root: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string())
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn an_object_is_invisible_until_published_and_whole_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("lake");
    for (compression, key) in [(Compression::Zstd, "z"), (Compression::Snappy, "s"), (Compression::None, "n")] {
        let store = store(&root, folder.path(), compression);
        let key = format!("public/orders/{key}.parquet");
        let staged = stage(&store, spec(&key, "1-2"), &[batch(0..70_000), batch(70_000..70_001)]);
        assert!(!root.join(&key).exists());
        assert_eq!(staged.rows, 70_001);
        let published = store.publish(staged).await.unwrap();
        assert_eq!(published.location, root.join(&key).to_str().unwrap());
        assert_eq!((published.rows, published.was_there), (70_001, false));
        assert_eq!(published.bytes, fs::metadata(root.join(&key)).unwrap().len());
        objects::assert_reads_back(&fs::read(root.join(&key)).unwrap(), 70_001);
    }
    assert_eq!(files_below(&root).len(), 3, "nothing stays staged");
}

// trap: 43
#[tokio::test]
async fn the_same_object_again_counts_as_done_another_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("lake");
    let store = store(&root, folder.path(), Compression::Zstd);
    let key = "public/orders/a.parquet";
    store.publish(stage(&store, spec(key, "1-2"), &[batch(0..10)])).await.unwrap();
    let before = fs::read(root.join(key)).unwrap();
    assert!(store.publish(stage(&store, spec(key, "1-2"), &[batch(0..10)])).await.unwrap().was_there);
    for other in [stage(&store, spec(key, "1-2"), &[batch(0..11)]), stage(&store, spec(key, "1-3"), &[batch(0..10)])] {
        let path = other.path.clone();
        assert_eq!(store.publish(other).await.unwrap_err().kind, Kind::TargetConflict);
        assert!(path.exists(), "a staged file is the caller's after an error");
        fs::remove_file(path).unwrap();
    }
    assert_eq!(fs::read(root.join(key)).unwrap(), before);
    fs::write(root.join("public/orders/b.parquet"), "no parquet").unwrap();
    let foreign = stage(&store, spec("public/orders/b.parquet", "1-2"), &[batch(0..10)]);
    assert_eq!(store.publish(foreign).await.unwrap_err().kind, Kind::TargetConflict);
}

#[tokio::test]
async fn small_objects_of_bytes_are_compared_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("lake"), folder.path(), Compression::Zstd);
    let key = "_dead_letters/public/orders/a.jsonl";
    assert!(!store.publish(store.stage_bytes(key, b"{}\n").unwrap()).await.unwrap().was_there);
    assert!(store.publish(store.stage_bytes(key, b"{}\n").unwrap()).await.unwrap().was_there);
    let other = store.publish(store.stage_bytes(key, b"{ }\n").unwrap()).await.unwrap_err();
    assert_eq!(other.kind, Kind::TargetConflict);
    store.delete(key).await.unwrap();
    store.delete(key).await.unwrap();
    assert!(!folder.path().join("lake").join(key).exists());
}

// trap: 43 (crash)
#[tokio::test]
async fn sweeping_takes_what_a_crash_left_and_only_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("lake");
    let ours = store(&root, &folder.path().join("spool/a"), Compression::Zstd);
    let other = store(&root, &folder.path().join("spool/b"), Compression::Zstd);
    let left = stage(&ours, spec("public/orders/a.parquet", "1-2"), &[batch(0..10)]).path;
    let theirs = stage(&other, spec("public/orders/b.parquet", "1-2"), &[batch(0..10)]);
    let dropped = ours.stage(spec("public/orders/c.parquet", "1-2")).unwrap();
    drop(dropped);
    ours.sweep().await.unwrap();
    assert!(!left.exists());
    other.publish(theirs).await.unwrap();
    assert_eq!(files_below(&root), ["public/orders/b.parquet"]);
}

#[tokio::test]
async fn check_finds_a_folder_that_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let good = store(&folder.path().join("new/lake"), folder.path(), Compression::Zstd);
    assert_eq!(good.check().await, []);
    assert_eq!(files_below(&folder.path().join("new/lake")), Vec::<String>::new(), "the probe is gone");
    assert_eq!(fs::read_dir(folder.path().join("new/lake/_staging")).unwrap().count(), 0);

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let findings = store(&file, folder.path(), Compression::Zstd).check().await;
    assert_eq!(findings.iter().map(|f| f.code.as_str()).collect::<Vec<_>>(), ["FOLDER-NOT-WRITABLE"]);

    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        eprintln!("skipped: this user may write everywhere, so a closed folder cannot be tried");
        return;
    }
    let findings = store(&closed, folder.path(), Compression::Zstd).check().await;
    assert_eq!(findings[0].code, "FOLDER-NOT-WRITABLE");
    assert!(findings[0].fix.iter().any(|line| line.contains("ReadWritePaths=")), "{findings:?}");
}
