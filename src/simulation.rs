//! Runs simulations: many cases, each from a seed of its own, so that one number brings a failure back.
//!
//! - `MILLRACE_SIMULATION_SEED`: only this case.
//! - `MILLRACE_SIMULATION_SECONDS`: as many cases as fit into this time, for each simulation.

use std::{
    env,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

/// A failing case is made smaller for as long.
const SHRINK_MS_MAX: u32 = 30_000;

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
