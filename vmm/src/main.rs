//! The `vmkern` command.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
