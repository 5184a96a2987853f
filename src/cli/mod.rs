//! The command line, one file per command. Commands that look read the config and the state, whether a daemon runs or not;
//! commands that change something ask the daemon over its control socket.
//!
//! Exit codes: 0 done, 1 a command failed, 2 the config (or the command line) is wrong, 3 the world is: endpoints,
//! addresses, the state folder.

mod catalog;
mod check;
mod dead_letter;
mod events;
mod follow;
mod grants;
mod operate;
mod output;
mod plan;
mod progress;
mod run;
mod status;
mod tables;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use millrace_core::{Error, Finding, Kind};

use crate::{
    api::VERSION,
    config::Config,
    state::sqlite::SqliteState,
    telemetry::{logs::Format, report::Told},
};

/// Replicates databases into a Parquet lake with a catalog, and keeps on replicating them.
#[derive(Debug, Parser)]
#[command(name = "millrace", version = VERSION, max_term_width = 100)]
struct Arguments {
    /// The config file [default: ./millrace.yaml, then /etc/millrace/millrace.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run {
        /// How log lines look
        #[arg(long, value_enum, default_value_t)]
        log_format: Format,
    },
    /// Find everything that is wrong: the config (exit 2), then its endpoints (exit 3)
    Check,
    /// Show what the config would create, load, reload and drop, and how each table is captured
    Plan,
    /// Show the tasks: state, positions, what sources keep, streams, delivery, errors
    Status {
        /// Exit with 1 if no daemon answers, for health checks
        #[arg(long)]
        running: bool,
    },
    /// Show the tables: state, rows, dead letters, progress of loads
    Tables {
        /// Of this task only
        task: Option<String>,
    },
    /// Show what happened, oldest first
    Events {
        /// Show the last so many
        #[arg(long, short = 'n', default_value_t = 100)]
        last: usize,
        /// Of this task only
        #[arg(long)]
        task: Option<String>,
    },
    /// Print a line whenever more of a task's changes is durable in its stream, until the task ends
    Follow {
        /// The task
        task: String,
    },
    /// Let delivery wait; capture goes on, so the source's log does not grow
    Pause {
        /// The task
        task: String,
    },
    /// End a pause or a stop
    Resume {
        /// The task
        task: String,
    },
    /// End capture and delivery; says what the source keeps meanwhile
    Stop {
        /// The task
        task: String,
    },
    /// Load one table, or all of a task, anew; readers see the old rows until it is complete
    Reload {
        /// The task
        task: String,
        /// The table as the source shows it: schema.table
        table: Option<String>,
    },
    /// Remove a task and what it made at its source; its files and their catalog entries stay
    Delete {
        /// The task
        task: String,
    },
    /// Look into the catalog
    Catalog {
        #[command(subcommand)]
        what: catalog::Look,
    },
    /// Look at the rows that their columns could not hold
    DeadLetter {
        #[command(subcommand)]
        what: dead_letter::Look,
    },
    /// Print the SQL of a role with no more rights than a task needs
    Grants {
        /// Of this task only
        task: Option<String>,
        /// With the right to make its publications itself, as a member of the tables' owners
        #[arg(long)]
        own_publications: bool,
        /// With the event trigger that says in the log, at its place, when a table is altered
        #[arg(long)]
        ddl_trigger: bool,
    },
    /// Print the version
    Version,
}

/// Why a command failed: what is printed, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    told: Vec<Told>,
    code: u8,
}

impl Failure {
    fn of(finding: Finding) -> Self {
        Self { told: vec![Told::of_daemon(finding)], code: 1 }
    }

    fn config(told: Vec<Told>) -> Self {
        Self { told, code: 2 }
    }

    fn world(told: Vec<Told>) -> Self {
        Self { told, code: 3 }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(Finding::from(&error))
    }
}

impl From<Box<Told>> for Failure {
    fn from(told: Box<Told>) -> Self {
        Self { told: vec![*told], code: 1 }
    }
}

type Outcome = Result<ExitCode, Failure>;

/// What every command gets.
pub(crate) struct Context {
    file: PathBuf,
    json: bool,
}

impl Context {
    /// The config; all that is wrong with it at once.
    fn config(&self) -> Result<Config, Failure> {
        let wrong = |problems: Vec<crate::config::Problem>| {
            Failure::config(problems.iter().map(|problem| Told::of_config(&self.file, problem)).collect())
        };
        Config::load(&self.file).map_err(wrong)
    }

    /// The state for looking only; `None` if there never was a daemon.
    fn state_if_any(&self, config: &Config) -> Result<Option<SqliteState>, Failure> {
        let path = config.state_dir.join("state.db");
        match path.try_exists() {
            Ok(true) => Ok(Some(SqliteState::open_read_only(&path)?)),
            Ok(false) => Ok(None),
            Err(error) => {
                let doing = format!("opening the state {}", path.display());
                let fix = "run this as the user that runs the daemon, or as root";
                Err(Error::new(Kind::Storage, doing).with(error).fix(fix).into())
            }
        }
    }

    /// The state for looking only.
    fn state(&self, config: &Config) -> Result<SqliteState, Failure> {
        self.state_if_any(config)?.ok_or_else(|| {
            let summary = format!("there is no state in {}", config.state_dir.display());
            let finding = Finding::error("NO-STATE", summary).detail("no daemon ever ran with this config");
            Failure::of(finding.fix(format!("start one: millrace run --config {}", self.file.display())))
        })
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let context = Context { file: arguments.config.unwrap_or_else(default_file), json: arguments.json };
    match dispatch(&context, arguments.command) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(&context, &failure.told);
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Run { log_format } => run::run(context, if context.json { Format::Json } else { log_format }),
        Command::Check => check::check(context),
        Command::Plan => plan::plan(context),
        Command::Status { running } => status::status(context, running),
        Command::Tables { task } => tables::tables(context, task.as_deref()),
        Command::Events { last, task } => events::events(context, last, task.as_deref()),
        Command::Follow { task } => follow::follow(context, task),
        Command::Pause { task } => operate::pause(context, task),
        Command::Resume { task } => operate::resume(context, task),
        Command::Stop { task } => operate::stop(context, task),
        Command::Reload { task, table } => operate::reload(context, task, table.as_deref()),
        Command::Delete { task } => operate::delete(context, task),
        Command::Catalog { what } => catalog::catalog(context, what),
        Command::DeadLetter { what } => dead_letter::dead_letter(context, what),
        Command::Grants { task, own_publications, ddl_trigger } => {
            grants::grants(context, task.as_deref(), own_publications, ddl_trigger)
        }
        Command::Version => {
            output::print(context, &serde_json::json!({ "name": "millrace", "version": VERSION }), || {
                format!("millrace {VERSION}")
            });
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn default_file() -> PathBuf {
    let here = PathBuf::from("millrace.yaml");
    let there = PathBuf::from("/etc/millrace/millrace.yaml");
    if !here.exists() && there.exists() { there } else { here }
}

/// The task of this name, or a failure that names those that are there.
fn known_task<'a>(config: &'a Config, name: &str) -> Result<&'a crate::config::TaskConfig, Failure> {
    config.tasks.get(name).ok_or_else(|| {
        let names: Vec<&str> = config.tasks.keys().map(String::as_str).collect();
        let finding = Finding::error("UNKNOWN-TASK", format!("there is no task {name}"));
        Failure::of(match crate::config::section::nearest(name, &names) {
            Some(near) => finding.fix(format!("did you mean {near}?")),
            None => finding.fix(format!("tasks are: {}", names.join(", "))),
        })
    })
}

/// A runtime for commands that ask endpoints.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::new(Kind::Internal, "starting the runtime").with(error))?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn arguments_are_sound() {
        super::Arguments::command().debug_assert();
    }
}
