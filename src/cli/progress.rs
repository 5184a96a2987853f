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
        let bar = if terminal { logs::bars().add(ProgressBar::new(0)) } else { ProgressBar::hidden() };
        bar.set_style(style(load));
        bar.set_prefix(table.to_string());
        Self { bar, started: Instant::now(), started_rows: load.rows, last_line: Instant::now() }
    }

    fn update(&mut self, table: &str, load: &LoadProgress, terminal: bool) {
        // An estimate may be too low; a bar never goes beyond its end.
        self.bar.set_length(load.rows_estimated.max(load.rows));
        self.bar.set_position(load.rows);
        if terminal || self.last_line.elapsed() < LINE_EVERY {
            return;
        }
        self.last_line = Instant::now();
        let rate =
            (load.rows - self.started_rows.min(load.rows)) as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let left = load.rows_estimated.saturating_sub(load.rows) as f64 / rate;
        let left =
            if left.is_finite() { show_duration(Duration::from_secs_f64(left.min(1e9))) } else { "unknown".into() };
        let (task, table) = table.split_once(' ').unwrap_or(("", table));
        let rows_per_second = rate as u64;
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

fn style(load: &LoadProgress) -> ProgressStyle {
    let template = match load.rows_estimated {
        0 => "{prefix:32!} {human_pos} rows  {per_sec}",
        _ => "{prefix:32!} [{bar:24}] {human_pos}/{human_len} rows  {per_sec}  {eta} left",
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
    fn both_styles_are_sound() {
        for rows_estimated in [0, 10] {
            let load = LoadProgress { rows: 5, rows_estimated };
            let mut shown = Shown::new("shop public.a", &load, false);
            shown.last_line = Instant::now() - LINE_EVERY;
            shown.update("shop public.a", &load, false);
            assert_eq!((shown.bar.position(), shown.bar.length()), (5, Some(rows_estimated.max(5))));
        }
    }
}
