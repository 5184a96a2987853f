//! The house rules that no compiler holds: imports point downward, files stay small, and a few things stay where they
//! belong. What is broken is named with file and line, all of it at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules from top to bottom; one may use what stands in its own line or below it.
const LAYERS: [&[&str]; 7] = [
    &["main", "lib", "cli", "daemon", "failpoints"],
    &["api", "console"],
    &["replication", "analytics", "jobs"],
    &["delivery"],
    &["stream", "catalog"],
    &["state", "config", "telemetry", "registry", "simulation", "blocking"],
    &[],
];
/// Lines of a file, its tests left out.
const FILE_LINES_MAX: usize = 600;
/// Names of files and modules that say nothing.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "helpers", "manager", "misc"];

struct Source {
    /// Relative to the workspace.
    path: String,
    /// All of it.
    text: String,
}

impl Source {
    /// Whether the file holds tests only.
    fn is_test(&self) -> bool {
        ["/tests/", "/tests.rs", "/test_server.rs", "/conformance/", "/fakes.rs", "/benches/", "/examples/"]
            .iter()
            .any(|part| self.path.contains(part))
            || self.path.starts_with("tests/")
    }

    /// What is before the tests at its end.
    fn code(&self) -> &str {
        let tests = self.text.find("#[cfg(test)]\nmod ").filter(|_| !self.is_test());
        let code = tests.map_or(&*self.text, |at| &self.text[..at]);
        // `#[cfg(test)] mod name;` names a file of tests, and the code goes on behind it.
        if tests.is_some_and(|at| self.text[at..].lines().nth(1).is_some_and(|line| line.ends_with(';'))) {
            return &self.text;
        }
        code
    }

    /// Lines of code with their numbers, without comments.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code().lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        lines.filter(|(_, line)| !line.starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file of the workspace.
fn sources() -> Vec<Source> {
    let mut files = vec![];
    for folder in ["src", "tests", "connectors", "examples"] {
        collect(&root().join(folder), &mut files);
    }
    files.sort();
    let read = |path: &PathBuf| {
        let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        Source { path: relative, text: fs::read_to_string(path).unwrap() }
    };
    let sources: Vec<Source> = files.iter().map(read).collect();
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The module of the daemon that a file belongs to: the first part of its path below `src/`.
fn module(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    Some(rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs"))
}

/// The modules that a file takes from the crate's root: `crate::a::b`, `crate::{a::b, c}`, with their lines.
fn used_modules(text: &str) -> Vec<(usize, String)> {
    let mut used = vec![];
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = text[..at].lines().count().max(1);
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => used.push((line, identifier(rest).to_string())),
            Some(group) => used.extend(top_of_group(group).into_iter().map(|name| (line, name))),
        }
    }
    used.into_iter().filter(|(_, name)| !name.is_empty()).collect()
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first names of a braced group's members.
fn top_of_group(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut member) = (0, vec![], String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut member)),
            _ if depth == 0 => member.push(c),
            _ => {}
        }
    }
    names.push(member);
    names.iter().map(|member| identifier(member.trim()).to_string()).collect()
}

fn hold(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn imports_point_downward() {
    let mut broken = vec![];
    for source in sources().iter().filter(|source| !source.is_test()) {
        let Some(own) = module(&source.path) else { continue };
        let Some(own_layer) = layer(own) else {
            broken.push(format!("{}: module {own} has no layer in tests/tidy.rs", source.path));
            continue;
        };
        let without_docs: String = source
            .code()
            .lines()
            .map(|l| if l.trim().starts_with("//") { "\n".into() } else { format!("{l}\n") })
            .collect();
        for (line, used) in used_modules(&without_docs) {
            if layer(&used).is_some_and(|used_layer| used_layer < own_layer) {
                broken.push(format!("{}:{line}: {own} uses {used}, which stands above it", source.path));
            }
        }
    }
    hold(broken);
}

#[test]
fn a_connector_stands_on_the_floor_alone() {
    let mut broken = vec![];
    for entry in fs::read_dir(root().join("connectors")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap();
        for (index, line) in manifest.lines().enumerate() {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let allowed = if name == "core" { &[][..] } else { &["millrace-core", "millrace-conformance"] };
            if dependency.starts_with("millrace") && !allowed.contains(&dependency) {
                broken.push(format!("connectors/{name}/Cargo.toml:{}: it depends on {dependency}", index + 1));
            }
        }
    }
    hold(broken);
}

#[test]
fn files_stay_small() {
    let sources = sources();
    let mut broken = vec![];
    for source in &sources {
        let lines = source.code().lines().count();
        if lines > FILE_LINES_MAX && !source.is_test() {
            broken.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX} without its tests", source.path));
        }
    }
    hold(broken);
}

#[test]
fn the_template_is_short() {
    let sources = sources();
    let hello = sources.iter().find(|source| source.path == "connectors/hello/src/lib.rs").unwrap();
    let lines = hello.lines().filter(|(_, line)| !line.is_empty()).count();
    assert!(lines < 100, "a complete connector takes {lines} lines of code");
}

#[test]
fn every_file_says_what_it_is() {
    let silent = sources().into_iter().filter(|source| {
        let first = source.text.lines().next().unwrap_or_default();
        !first.starts_with("//! ") || first.len() < "//! Something.".len()
    });
    hold(silent.map(|source| format!("{}: it does not begin with `//!` and what it is", source.path)).collect());
}

#[test]
fn names_say_something() {
    let empty = |source: &Source| {
        let mut parts = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
        parts.any(|part| EMPTY_NAMES.contains(&part)).then(|| format!("{}: a name that says nothing", source.path))
    };
    hold(sources().iter().filter_map(empty).collect());
}

#[test]
fn only_the_stream_calls_something_durable() {
    let mut broken = vec![];
    for source in sources().iter().filter(|source| !source.is_test() && !source.path.starts_with("src/stream/")) {
        for (line, text) in source.lines().filter(|(_, text)| text.contains("from_fsync(")) {
            if !text.starts_with("pub fn from_fsync") {
                broken.push(format!("{}:{line}: only the stream's fsync path may do this", source.path));
            }
        }
    }
    hold(broken);
}

#[test]
fn foreign_bytes_are_not_trusted() {
    let mut broken = vec![];
    for source in sources().iter().filter(|source| source.path.contains("/wire/") && !source.is_test()) {
        for (line, text) in source.lines().filter(|(_, text)| text.contains(".unwrap()") || text.contains(".expect(")) {
            broken.push(format!("{}:{line}: {text}", source.path));
        }
    }
    hold(broken);
}

/// Paths of somebody's machine, and what was left for later, have no place in the project.
#[test]
fn nothing_of_a_workplace_is_left() {
    let mut forbidden: Vec<String> = ["work", "root", "home"].iter().map(|folder| format!("/{folder}/")).collect();
    forbidden.extend(["TODO", "FIXME", "XXX", "unimplemented!", "todo!"].map(String::from));
    let own = file!();
    let mut broken = vec![];
    let mut texts: Vec<(String, String)> = sources().into_iter().map(|source| (source.path, source.text)).collect();
    for folder in ["config", "systemd", "docker", "docs", "."] {
        for entry in fs::read_dir(root().join(folder)).into_iter().flatten().flatten() {
            let name = entry.path().strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            if entry.path().is_file() && !name.starts_with(".git") && name != "Cargo.lock" {
                texts.extend(fs::read_to_string(entry.path()).ok().map(|text| (name, text)));
            }
        }
    }
    for (path, text) in texts.iter().filter(|(path, _)| path != own) {
        for (index, line) in text.lines().enumerate() {
            for word in forbidden.iter().filter(|word| line.contains(word.as_str())) {
                broken.push(format!("{path}:{}: {word}", index + 1));
            }
        }
    }
    hold(broken);
}

#[test]
fn groups_of_imports_are_understood() {
    let text = "use crate::{\n    a::{b, c},\n    d,\n};\nlet x = crate::e::f();\nuse millrace_core::crate_like;\n";
    let used: Vec<String> = used_modules(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(used, ["a", "d", "e"]);
    assert_eq!(module("src/state/keys/task.rs"), Some("state"));
    assert_eq!(module("src/main.rs"), Some("main"));
}
