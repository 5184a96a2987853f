//! Logs: lines on stderr, as text or JSON, filtered by `RUST_LOG` (default `info`). While progress bars are on the
//! terminal, lines are written above them.

use std::{
    io::{IsTerminal, Write},
    sync::OnceLock,
};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sets the process's logs up; called once, by `run`.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveBars);
    // A second set-up in one process (tests) changes nothing.
    let _ = match format {
        Format::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// The progress bars of this process; hidden where stderr is no terminal.
pub fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
}

/// Writes text to stderr, above the bars.
pub fn tell(text: &str) {
    let _ = AboveBars.write_all(format!("{text}\n").as_bytes());
}

#[derive(Debug, Clone, Copy)]
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        bars().suspend(|| std::io::stderr().lock().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
