//! A target endpoint: an S3 bucket or a local folder, and the format of its objects.

use std::path::{Component, PathBuf};

use millrace_core::{Secret, SecretSource};
use millrace_object_store::{Compression, ObjectStoreConfig, Place, S3Config};
use percent_encoding::percent_decode_str;

use super::{
    Surroundings,
    secret::secret,
    section::{Reader, Section, Shape},
    tree::{Node, Value},
};

pub(super) static S3: Shape = Shape {
    name: "s3",
    keys: &[
        "type",
        "url",
        "bucket",
        "prefix",
        "endpoint",
        "region",
        "path-style",
        "access-key-id",
        "secret-access-key",
        "format",
        "buffer",
    ],
};
pub(super) static FILE: Shape = Shape { name: "file", keys: &["type", "url", "path", "format", "buffer"] };
pub(super) static FORMAT: Shape = Shape { name: "format", keys: &["type", "compression"] };

const COMPRESSIONS: [(&str, Compression); 3] =
    [("zstd", Compression::Zstd), ("snappy", Compression::Snappy), ("none", Compression::None)];

/// `s3://bucket/prefix/` or `file:///folder/`.
pub(super) fn from_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<ObjectStoreConfig> {
    let place = if text.starts_with("file:") {
        Place::Folder(folder_of_url(reader, node, what, text)?)
    } else {
        let (bucket, prefix) = bucket_of_url(reader, node, what, text)?;
        Place::S3(S3Config {
            bucket,
            prefix,
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            path_style: false,
        })
    };
    Some(ObjectStoreConfig { place, compression: Compression::default() })
}

/// The mapping, of either kind.
pub(super) fn from_section(
    reader: &mut Reader,
    section: &Section<'_>,
    surroundings: &Surroundings,
) -> Option<ObjectStoreConfig> {
    let compression = format(reader, section);
    let url = section.get("url").and_then(|node| reader.text(node, &section.name("url")).map(|text| (node, text)));
    let is_file = match (section.get("type"), &url) {
        (Some(Node { value: Value::Text { text, .. }, .. }), _) => text == "file",
        (_, Some((_, url))) => url.starts_with("file:"),
        _ => false,
    };
    let place = if is_file {
        Place::Folder(folder(reader, section, url)?)
    } else {
        Place::S3(bucket(reader, section, url, surroundings)?)
    };
    Some(ObjectStoreConfig { place, compression })
}

fn format(reader: &mut Reader, section: &Section<'_>) -> Compression {
    let inner = section.get("format").and_then(|node| reader.section(node, &FORMAT, section.name("format")));
    let Some(inner) = inner else { return Compression::default() };
    inner.read(reader, "type", |r, n, w| r.word(n, w, &[("parquet", ())]));
    inner.read(reader, "compression", |r, n, w| r.word(n, w, &COMPRESSIONS)).unwrap_or_default()
}

fn folder(reader: &mut Reader, section: &Section<'_>, url: Option<(&Node, String)>) -> Option<PathBuf> {
    if let Some((node, text)) = url {
        return folder_of_url(reader, node, &section.name("url"), &text);
    }
    let node = section.require(reader, "path")?;
    let name = section.name("path");
    let path = reader.text(node, &name)?;
    absolute(reader, node, &name, &path)
}

fn folder_of_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<PathBuf> {
    let rest = text.strip_prefix("file://").unwrap_or_default();
    let Ok(path) = percent_decode_str(rest).decode_utf8() else {
        reader.wrong(node.at, "CFG-URL", format!("{what}: the path is not UTF-8"), "write file:///folder/");
        return None;
    };
    absolute(reader, node, what, &path)
}

fn absolute(reader: &mut Reader, node: &Node, what: &str, path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
        return Some(path.components().collect());
    }
    let fix = "write the whole path, without \"..\": file:///var/lib/millrace/lake/ (three slashes)";
    reader.wrong(node.at, "CFG-URL", format!("{what} is not an absolute folder"), fix);
    None
}

fn bucket(
    reader: &mut Reader,
    section: &Section<'_>,
    url: Option<(&Node, String)>,
    surroundings: &Surroundings,
) -> Option<S3Config> {
    let (mut bucket, mut prefix) = match url {
        Some((node, text)) => bucket_of_url(reader, node, &section.name("url"), &text)?,
        None => (String::new(), String::new()),
    };
    if let Some(text) = section.read(reader, "bucket", Reader::text) {
        bucket = text;
    }
    if let Some(text) = section.read(reader, "prefix", Reader::text) {
        prefix = text.trim_matches('/').to_string();
    }
    let endpoint = section.read(reader, "endpoint", Reader::text);
    if let Some(text) = &endpoint
        && !(text.starts_with("http://") || text.starts_with("https://"))
    {
        let at = section.get("endpoint").map_or(section.at, |node| node.at);
        let fix = "write http://host:port or https://host";
        reader.wrong(at, "CFG-URL", format!("{} is no HTTP address", section.name("endpoint")), fix);
    }
    let region = section.read(reader, "region", Reader::text);
    let path_style = section.read(reader, "path-style", Reader::boolean).unwrap_or(endpoint.is_some());
    let access_key_id = section.read(reader, "access-key-id", |r, n, w| match &n.value {
        // An id is no secret: it may stand in the config without a warning.
        Value::Text { text, .. } => Some(SecretSource::Value(Secret::new(text))),
        _ => secret(r, n, w, surroundings),
    });
    let secret_access_key = section.read(reader, "secret-access-key", |r, n, w| secret(r, n, w, surroundings));
    if section.get("access-key-id").is_some() != section.get("secret-access-key").is_some() {
        let fix = "give both access-key-id and secret-access-key, or neither to take them from the environment";
        reader.wrong(section.at, "CFG-MISSING-KEY", format!("{} has half of its credentials", section.what), fix);
    }
    if bucket.is_empty() {
        section.require(reader, "bucket")?;
        return None;
    }
    Some(S3Config { bucket, prefix, endpoint, region, access_key_id, secret_access_key, path_style })
}

fn bucket_of_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<(String, String)> {
    let rest = text.strip_prefix("s3://").unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) || prefix.contains(['?', '#']) {
        let fix = "write s3://bucket/prefix/; keys and region go beside it, as keys of the endpoint";
        reader.wrong(node.at, "CFG-URL", format!("{what} is not of the form s3://bucket/prefix/"), fix);
        return None;
    }
    Some((bucket.to_string(), prefix.trim_matches('/').to_string()))
}
