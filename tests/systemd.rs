//! The unit's exposure, as systemd itself judges it. Skipped, with a word about it, where `systemd-analyze` is missing.

use std::{path::Path, process::Command};

/// At most as exposed; `systemd-analyze` counts in tenths.
const EXPOSURE_TENTHS: &str = "15";

fn unit() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/millrace.service")
}

#[test]
fn the_unit_is_hardened() {
    let mut analyze = Command::new("systemd-analyze");
    let analyze =
        analyze.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_TENTHS]).arg(unit());
    match analyze.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("Overall exposure level"), "{text}{}", String::from_utf8_lossy(&output.stderr));
            let exposed: Vec<&str> = text.lines().filter(|line| line.starts_with('✗')).collect();
            assert!(output.status.success(), "{}\n{exposed:#?}", text.lines().last().unwrap_or_default());
        }
        Err(error) => println!("skipped: systemd-analyze cannot be run ({error}); apt-get install systemd"),
    }
}

#[test]
fn the_unit_runs_what_the_daemon_understands() {
    let text = std::fs::read_to_string(unit()).unwrap();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{key}=")).map(String::from));
    assert_eq!(value("Type").as_deref(), Some("notify"));
    let start = value("ExecStart").unwrap();
    let arguments: Vec<&str> = start.split_whitespace().skip(1).collect();
    // The same arguments with a config that is not there: a command line that is not understood says `usage`.
    let ran = Command::new(env!("CARGO_BIN_EXE_millrace"))
        .args(arguments.iter().map(|a| if a.ends_with(".yaml") { "/nonexistent/millrace.yaml" } else { a }))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("CFG-FILE") && !said.to_lowercase().contains("usage"), "{said}");
    assert_eq!(ran.status.code(), Some(2));
}
