//! Runs simulations: many cases, each from a seed of its own, so that one number brings a failure back.
//!
//! - `MILLRACE_SIMULATION_SEED`: only this case.
//! - `MILLRACE_SIMULATION_SECONDS`: as many cases as fit into this time, for each simulation.

use std::{
    cell::{Cell, RefCell},
    env,
    panic::resume_unwind,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

/// A failing case is made smaller for as long.
const SHRINK_MS_MAX: u32 = 30_000;

thread_local! {
    /// A time of day that only we move; `None` outside of a simulation.
    static NOW_US: Cell<Option<i64>> = const { Cell::new(None) };
    static END: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// While it is there, this thread is a simulated process: it does everything itself, and time passes only where it is told.
pub struct Simulated;

impl Simulated {
    /// From this time on; `end` is called when the process ends itself.
    pub fn begin(us: i64, end: Rc<dyn Fn()>) -> Self {
        NOW_US.set(Some(us));
        END.set(Some(end));
        Self
    }

    /// The time of day moves.
    pub fn pass(&self, time: Duration) {
        NOW_US.set(NOW_US.get().map(|us| us + time.as_micros() as i64));
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        NOW_US.set(None);
        END.set(None);
    }
}

/// Whether this thread is a simulated process.
pub fn is_running() -> bool {
    NOW_US.get().is_some()
}

/// The simulated time of day (microseconds since 1970-01-01 UTC).
pub fn now_us() -> Option<i64> {
    NOW_US.get()
}

/// The process ends itself. Does nothing outside of a simulation.
pub fn end_process() {
    let Some(end) = END.with_borrow(Clone::clone) else { return };
    end();
    resume_unwind(Box::new("the process ended itself"));
}

/// Runs the test on so many generated cases (or what the environment says). A case that fails is made as small as it can
/// be, and told with its seed.
pub fn simulate<S: Strategy>(cases: u64, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    let replayed = number("MILLRACE_SIMULATION_SEED");
    let time = number("MILLRACE_SIMULATION_SECONDS").map(Duration::from_secs);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = replayed.unwrap_or(since.as_nanos() as u64);
    let begun = Instant::now();
    let mut done = 0;
    while match (replayed, time) {
        (Some(_), _) => done < 1,
        (None, Some(time)) => begun.elapsed() < time,
        (None, None) => done < cases,
    } {
        done += 1;
        run_case(done, first.wrapping_add(done - 1), &strategy, &test);
    }
    println!("{done} cases from seed {first} in {:.1} s", begun.elapsed().as_secs_f64());
}

fn run_case<S: Strategy>(number: u64, seed: u64, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases: 1, failure_persistence: None, ..Config::default() };
    let config = Config { max_shrink_iters: u32::MAX - 1, max_shrink_time: SHRINK_MS_MAX, ..config };
    if let Err(failure) = TestRunner::new_with_rng(config, rng).run(strategy, test) {
        panic!("{failure}\ncase {number}; to have it again: MILLRACE_SIMULATION_SEED={seed}");
    }
}
