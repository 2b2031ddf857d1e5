//! `vmkern doctor`: whether this host can run guests, and the remedy if it cannot.

use clap::Args;
use vmkern::doctor::DoctorReport;
use vmkern::script::Status;

const EXAMPLES: &str = "\
Examples:
  vmkern doctor
  vmkern doctor --json | jq .kvm";

/// Tries everything that guests need of this host, and says what is missing and how to get it.
#[derive(Debug, Args)]
#[command(after_help = super::help::with_statuses(EXAMPLES))]
pub struct DoctorArgs {
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &DoctorArgs) -> Status {
    let report = DoctorReport::examine();
    if args.json {
        super::print_json(&report);
    } else {
        super::print(&format!("{report}\n"));
    }
    if report.can_run { Status::Ok } else { Status::NoKvm }
}
