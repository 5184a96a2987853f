//! The `millrace` command: arguments in, exit code out; everything else is in the library.

use std::process::ExitCode;

/// Batches are megabytes that come and go: the system's allocator gives their pages back each time and faults them in
/// again, which made decoding a frame of 4,096 rows four times dearer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _armed = millrace::failpoints::arm();
    millrace::cli::main()
}
