//! The progress of full loads while the daemon runs in the foreground: bars with rows per second and time left on a
//! terminal, a log line every ten seconds otherwise.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

use super::output;
use crate::{
    config::units::show_duration,
    state::{StateStore, keys::progress::LoadProgress, read_all},
    telemetry::logs,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows loads until it is aborted.
pub async fn show(state: Arc<dyn StateStore>) {
    let terminal = std::io::stderr().is_terminal();
    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = look(&*state);
        shown.retain(|table, shown| {
            let goes_on = now.contains_key(table);
            if !goes_on {
                shown.bar.finish_and_clear();
            }
            goes_on
        });
        for (table, load) in now {
            let shown = shown.entry(table.clone()).or_insert_with(|| Shown::new(&table, &load, terminal));
            shown.update(&table, &load, terminal);
        }
    }
}

/// Loads under way by `task schema.table`.
fn look(state: &dyn StateStore) -> BTreeMap<String, LoadProgress> {
    let tasks: Vec<(String, BTreeMap<String, LoadProgress>)> = read_all(state, "progress/").unwrap_or_default();
    let named = |(task, tables): (String, BTreeMap<String, LoadProgress>)| {
        tables.into_iter().map(move |(table, load)| (format!("{task} {table}"), load))
    };
    tasks.into_iter().flat_map(named).collect()
}

struct Shown {
    bar: ProgressBar,
    started: Instant,
    /// Rows that were read before we looked first.
    started_rows: u64,
    last_line: Instant,
}

impl Shown {
    fn new(table: &str, load: &LoadProgress, terminal: bool) -> Self {
        let bar = ProgressBar::new(load.rows_estimated.max(load.rows)).with_position(load.rows);
        let bar = bar.with_style(style(load)).with_prefix(table.to_string());
        let bar = if terminal { logs::bars().add(bar) } else { bar };
        Self { bar, started: Instant::now(), started_rows: load.rows, last_line: Instant::now() }
    }

    fn update(&mut self, table: &str, load: &LoadProgress, terminal: bool) {
        let rate = load.rows.saturating_sub(self.started_rows) as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let left = load.rows_estimated.saturating_sub(load.rows) as f64 / rate;
        let left = left.is_finite().then(|| show_duration(Duration::from_secs(left.min(1e9).ceil() as u64)));
        let left = left.filter(|_| load.rows_estimated > 0).unwrap_or_else(|| "unknown".into());
        let rows_per_second = rate as u64;
        if terminal {
            // An estimate may be too low; a bar never goes beyond its end.
            self.bar.set_length(load.rows_estimated.max(load.rows));
            self.bar.set_position(load.rows);
            self.bar.set_message(format!("{} rows/s, {left} left", output::number(rows_per_second)));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let (task, table) = table.split_once(' ').unwrap_or(("", table));
            info!(
                task,
                table,
                rows = load.rows,
                estimated = load.rows_estimated,
                rows_per_second,
                left,
                "full load goes on"
            );
        }
    }
}

fn style(load: &LoadProgress) -> ProgressStyle {
    let template = match load.rows_estimated {
        0 => "{prefix:32!} {human_pos} rows  {msg}",
        _ => "{prefix:32!} [{bar:24}] {human_pos}/{human_len} rows  {msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Put, keys::progress, memory::MemoryState};

    #[test]
    fn loads_under_way_are_found() {
        let state = MemoryState::default();
        assert!(look(&state).is_empty());
        let load = LoadProgress { rows: 5, rows_estimated: 10 };
        let tables = BTreeMap::from([("public.a", &load), ("public.b", &load)]);
        state.commit(&[Put::set(progress::key("shop"), &tables)]).unwrap();
        let found = look(&state);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["shop public.a", "shop public.b"]);
        assert_eq!(found["shop public.a"], load);
    }

    #[test]
    fn bars_say_how_fast_and_how_long() {
        for rows_estimated in [0, 40] {
            let mut load = LoadProgress { rows: 5, rows_estimated };
            let mut shown = Shown::new("shop public.a", &load, true);
            shown.started = Instant::now() - Duration::from_secs(10);
            load.rows = 25;
            shown.update("shop public.a", &load, true);
            assert_eq!((shown.bar.position(), shown.bar.length()), (25, Some(rows_estimated.max(25))));
            // 20 rows in 10 s; 15 are left of 40.
            let left = if rows_estimated == 0 { "unknown" } else { "8s" };
            let (message, wanted) = (shown.bar.message(), format!(" rows/s, {left} left"));
            assert!(message.ends_with(&wanted) && (message.starts_with('1') || message.starts_with('2')), "{message}");
        }
    }
}
