//! A look at a guest for a report: at the end of a script, or in a memory dump. `vmkern check` and
//! `vmkern inspect` differ in what they look for; the way there is the same.

use std::fmt::Debug;
use std::path::Path;

use vmkern::Guest;
use vmkern::inspect::InspectError;
use vmkern::script::{Ending, Setup, Standstill, Status, explain, launch_status, run_script_then};

use super::guest::{GuestArgs, Precedence};
use super::signals::Signals;

/// How a subcommand reports.
pub trait Reporter {
    /// What a look brings.
    type Seen: Debug;

    /// Prints the report on `name`; the exit status that it means.
    fn show(&self, name: &str, seen: &Self::Seen) -> Status;

    /// Prints the object that stands in place of the report, where JSON was asked for.
    fn refusal(&self, of: Option<Subject<'_>>, error: &str);
}

/// A script or a dump that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// Its path on the command line.
    pub path: &'s Path,
    /// What reports call it.
    pub name: &'s str,
}

/// Runs the script at `path`, looks at its guest at its end, or where it died, and reports that. A
/// run that went wrong counts more than the report.
pub fn at_end<R: Reporter>(
    reporter: &R,
    path: &Path,
    (guest, signals): (&GuestArgs, &Signals),
    look: impl FnOnce(&Guest, &str) -> Result<R::Seen, InspectError>,
) -> Status {
    // 1. The script and its guest.
    let name = super::script::name(path);
    let of = Subject { path, name: &name };
    let (source, script) = match super::script::parsed(path, &name, guest, signals) {
        Ok(parsed) => parsed,
        Err(unusable) => {
            super::eprint(&unusable.text(&name));
            reporter.refusal(Some(of), &unusable.why(&name));
            return unusable.status();
        }
    };
    let guest = guest.with(script.guest(), Precedence::CommandLine).guest;
    let builder = match guest.builder() {
        Ok(builder) => builder,
        Err(error) => return refuse(reporter, Some(of), &error.into()),
    };
    // 2. The run, and the look while the guest is still there. None is wanted after a Ctrl-C.
    let stop = signals.stop(guest.timeout());
    super::print::run_begins(&stop);
    let setup = Setup { builder, seed: guest.seed(), console: None, pressure: None };
    let look = |guest: &Guest, at: Standstill<'_>| match at {
        Standstill::Ended(Ending::Interrupted) | Standstill::Unready(_) => None,
        Standstill::Ended(_) => Some(look(guest, &name)),
    };
    let ran = run_script_then(&script, setup, &stop, &mut super::print::output_aside, look);
    let (session, seen) = match ran {
        Ok(ended) => ended,
        Err(unlaunched) => {
            let status = launch_status(&unlaunched.error);
            super::print::run_ends(status.into());
            refuse(reporter, Some(of), &unlaunched.error.into());
            return status;
        }
    };
    // 3. How it ended, and the report.
    let status = session.ending.status();
    super::print::run_ends(status.into());
    if status != Status::Ok {
        super::eprint(&explain(&session.ending, &source, &session.log));
    }
    let reported = seen.map(|seen| report(reporter, of, seen.map_err(anyhow::Error::from)));
    if status == Status::Ok { reported.unwrap_or(status) } else { status }
}

/// Prints the report, or why there is none; the exit status.
pub fn report<R: Reporter>(reporter: &R, of: Subject<'_>, seen: anyhow::Result<R::Seen>) -> Status {
    match seen {
        Ok(seen) => reporter.show(of.name, &seen),
        Err(error) => refuse(reporter, Some(of), &error),
    }
}

/// Says why there is no report; the exit status.
pub fn refuse(reporter: &impl Reporter, of: Option<Subject<'_>>, error: &anyhow::Error) -> Status {
    super::complain(error);
    reporter.refusal(of, &format!("{error:#}"));
    Status::Usage
}
