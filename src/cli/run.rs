//! `millrace run`: the daemon in the foreground.

use std::process::ExitCode;

use millrace_core::{Error, Kind};

use super::{Context, Failure, Outcome, progress};
use crate::{
    daemon::{Daemon, Refused},
    telemetry::{
        logs::{self, Format},
        report::Told,
    },
};

pub fn run(context: &Context, format: Format) -> Outcome {
    let config = context.config()?;
    logs::init(format);
    for warning in &config.warnings {
        let told = Told::of_config(&config.file, warning);
        match format {
            Format::Text => logs::tell(&told.to_string()),
            Format::Json => tracing::warn!(code = told.finding.code, finding = %told, "config has a warning"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("millrace").build();
    let runtime = runtime.map_err(|error| Error::new(Kind::Internal, "starting the runtime").with(error))?;
    let ended = runtime.block_on(async {
        let daemon = Daemon::new(config, format).await?;
        let progress = tokio::spawn(progress::show(daemon.state()));
        let ended = daemon.run().await;
        progress.abort();
        ended
    });
    // What still runs after a second signal must not hold the process up.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Refused::Config(told)) => Err(Failure::config(told)),
        Err(Refused::World(told)) => Err(Failure::world(told)),
    }
}
