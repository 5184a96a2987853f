//! Finds everything at once that would keep deliveries from working, by doing what a delivery does.

use std::{
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use millrace_core::{Finding, Kind, secret::SecretSource};
use object_store::Error as StoreError;

use crate::{
    bucket::{Bucket, Patience, Trouble},
    config::S3Config,
    folder::Folder,
};

/// Servers say a page in HTML or XML; one line of it is enough.
const SAID_CHARS_MAX: usize = 300;

fn probe_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("_millrace_probe_{now:x}_{:x}", std::process::id())
}

/// Checks a folder. Blocking.
pub fn check_folder(folder: &Folder) -> Vec<Finding> {
    let root = &folder.root;
    if let Err(error) = fs::create_dir_all(&folder.staging) {
        return vec![not_writable(root, &folder.staging, &error)];
    }
    let (probe, link) = (folder.staging.join(probe_name()), root.join(probe_name()));
    let mut findings = vec![];
    match fs::write(&probe, b"probe").and_then(|()| fs::write(&link, b"probe")) {
        Err(error) => findings.push(not_writable(root, root, &error)),
        Ok(()) => {
            // The name is taken, so the link must be refused; then it is free, so the link must be made.
            let refused = fs::hard_link(&probe, &link);
            let made = fs::remove_file(&link).and_then(|()| fs::hard_link(&probe, &link));
            let enforced = refused.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists);
            if let Some(error) = made.err().or((!enforced).then(|| io::Error::other("an existing name was replaced"))) {
                findings.push(no_hard_link(root, &error));
            }
        }
    }
    let _ = fs::remove_file(&link);
    let _ = fs::remove_file(&probe);
    // Goes only while it is empty.
    let _ = fs::remove_dir(&folder.staging);
    findings
}

fn not_writable(root: &Path, path: &Path, error: &io::Error) -> Finding {
    Finding::error("FOLDER-NOT-WRITABLE", format!("the target folder {} cannot be written to", root.display()))
        .detail(format!("the system said about {}: {error}", path.display()))
        .fix(format!("sudo install -d -o \"$DAEMON_USER\" {}", root.display()))
        .fix(format!("and in the systemd unit: ReadWritePaths={}", root.display()))
}

fn no_hard_link(root: &Path, error: &io::Error) -> Finding {
    Finding::error("FOLDER-HARD-LINK", format!("the filesystem of {} makes no hard links", root.display()))
        .detail(format!("the system said: {error}"))
        .detail("an object appears by a hard link, so that it is never half visible and never replaces another")
        .fix("put the target on a filesystem with hard links (ext4, xfs, btrfs, zfs, NFS)")
}

/// Checks a bucket.
pub async fn check_bucket(config: &S3Config) -> Vec<Finding> {
    let unread: Vec<Finding> =
        [&config.access_key_id, &config.secret_access_key].into_iter().flatten().filter_map(unreadable).collect();
    if !unread.is_empty() {
        return unread;
    }
    if config.access_key_id.is_some() != config.secret_access_key.is_some() {
        let summary = "only one of `access-key-id` and `secret-access-key` is set";
        return vec![Finding::error("S3-CREDENTIALS", summary).fix("set both, or neither to take the environment's")];
    }
    let bucket = match Bucket::new(config.clone(), Patience::Check) {
        Ok(bucket) => bucket,
        Err(error) => {
            return vec![Finding::error("S3-CONNECT", error.to_string()).fix("correct the endpoint's settings")];
        }
    };
    probe_bucket(&bucket).await
}

fn unreadable(source: &SecretSource) -> Option<Finding> {
    let error = source.read().err()?;
    Some(
        Finding::error("S3-CREDENTIALS", "the credentials cannot be read")
            .detail(error.to_string())
            .fix("make the file or variable readable for the daemon's user, or correct its name in the config"),
    )
}

async fn probe_bucket(bucket: &Bucket) -> Vec<Finding> {
    let key = probe_name();
    let probe = Bytes::from_static(b"probe");
    if let Err(error) = bucket.create(&key, probe.clone()).await {
        return vec![refused(bucket, "write to", &error)];
    }
    let mut findings = vec![];
    match bucket.create(&key, probe.clone()).await {
        Err(StoreError::AlreadyExists { .. }) => {}
        Ok(()) => findings.push(not_enforced(bucket)),
        Err(error) => findings.push(refused(bucket, "write conditionally to", &error)),
    }
    match bucket.read(&key).await {
        Ok(there) if there == probe => {}
        Ok(_) => findings.push(
            Finding::error("S3-ERROR", format!("{} gives back other bytes than were written", bucket.location(&key)))
                .fix("check what stands between here and the bucket: it alters objects"),
        ),
        Err(error) => findings.push(refused(bucket, "read from", &error)),
    }
    if let Err(error) = bucket.delete(&key).await {
        findings.push(
            Finding::error(
                if error.kind == Kind::Permission { "S3-DENIED" } else { "S3-ERROR" },
                format!("cannot delete {}", bucket.location(&key)),
            )
            .detail(format!("the server said: {}", shorten(&error.to_string())))
            .detail("files that a reload replaced could not be removed")
            .fix(Trouble::Denied.fix(&bucket.config).join(" ")),
        );
    }
    findings
}

fn refused(bucket: &Bucket, doing: &str, error: &StoreError) -> Finding {
    let trouble = Trouble::of(error);
    let mut finding = Finding::error(trouble.code(), format!("cannot {doing} {}", bucket.location("")))
        .detail(format!("the server said: {}", said(error)));
    finding.fix = trouble.fix(&bucket.config);
    finding
}

fn not_enforced(bucket: &Bucket) -> Finding {
    let endpoint = bucket.config.endpoint.as_deref().unwrap_or("Amazon S3");
    Finding::error("S3-IF-NONE-MATCH", format!("{endpoint} ignores `If-None-Match: *`"))
        .detail("a second PUT of the same key with that header succeeded; it must be refused with status 412")
        .detail("without it an object that readers already use could be overwritten after a crash")
        .fix("use an endpoint that enforces conditional writes, as Amazon S3 does,")
        .fix("or deliver to a folder: target: file:///var/lib/millrace/lake/")
}

/// The innermost cause: what stands around it tells of tries, durations and the probe's name, which differ every time.
fn said(error: &StoreError) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    shorten(&innermost.to_string())
}

fn shorten(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().take(SAID_CHARS_MAX).collect()
}
