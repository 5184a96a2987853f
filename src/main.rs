//! The `millrace` command: arguments in, exit code out; everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _armed = millrace::failpoints::arm();
    millrace::cli::main()
}
