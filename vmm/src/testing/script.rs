//! A `.kmem` script as a test.

use std::fmt::{self, Write as _};
use std::panic::Location;
use std::path::Path;
use std::time::Instant;

use super::kvm::{Policy, say_skipped};
use crate::check::Report;
use crate::guest::{DEFAULT_TIMEOUT, Guest, LaunchError};
use crate::input::{SCRIPT_MAX, read_regular};
use crate::inspect::InspectError;
use crate::script::{
    FailureReport, Session, Setup, Source, Standstill, Status, Step, Stop, Unlaunched, explain,
    explain_errors, launch_status, parse, run_script_then,
};
use crate::style::BAD;
use crate::text::{self, unstyled};

/// A script that did not hold. Its text is the report of `vmkern test`.
#[derive(Clone)]
pub struct ScriptFailure {
    status: Status,
    report: String,
}

impl ScriptFailure {
    /// The exit status that the command would have ended with.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The report, without styles.
    #[must_use]
    pub fn report(&self) -> &str {
        &self.report
    }
}

impl fmt::Display for ScriptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report)
    }
}

/// The report, from a line of its own on: it is what a test prints that returns the error.
impl fmt::Debug for ScriptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", self.report)
    }
}

impl std::error::Error for ScriptFailure {}

/// Runs the script at `path` in a fresh guest, as `vmkern test --check` does: the guest is what the
/// script's `guest` line asks for, the script must hold to its end, and the memory is checked then.
/// What the script prints goes to standard output.
///
/// A relative path begins where the test runs: in tests of cargo, in the folder of the package.
/// Where this host cannot run guests and `VMKERN_KVM=skip`, nothing runs: a line on standard error
/// says so.
///
/// # Errors
/// The report, for whatever made the script fail: a file that cannot be read, a mistake in the
/// script, an expectation, a panic, the time limit, the check, a host without KVM.
///
/// # Panics
/// When `VMKERN_KVM` is neither `require` nor `skip`.
#[track_caller]
pub fn script(path: impl AsRef<Path>) -> Result<(), ScriptFailure> {
    let (path, begin) = (path.as_ref(), Instant::now());
    let name = text::name(path);
    let refuse = |what: String| {
        let message = format!("{BAD}error:{BAD:#} {what}\n");
        failure(&name, begin, Status::Usage, "", &message)
    };
    let bytes = read_regular(path, SCRIPT_MAX)
        .map_err(|error| refuse(format!("cannot read {name}: {error}")))?;
    let source = Source::from_bytes(&name, &bytes).map_err(|error| refuse(error.at(&name)))?;
    run(&source, Location::caller())
}

/// Runs a script as [`script`] does; reports call it `script`.
///
/// ```
/// use vmkern::testing::script_text;
///
/// let failure = script_text("a = kmem_alloc kernel_map 4K\nread $a\nexpect 1\n");
/// let failure = failure.expect_err("kmem_alloc gives zeros");
/// assert!(failure.report().contains("expected  1"), "{failure}");
/// assert!(failure.report().contains("got       0"), "{failure}");
/// ```
///
/// # Errors
/// As for [`script`].
///
/// # Panics
/// As for [`script`].
#[track_caller]
pub fn script_text(text: &str) -> Result<(), ScriptFailure> {
    run(&Source::new("script", text), Location::caller())
}

/// The report of a script that began at `begin`, printed `output` and failed by `message`.
fn failure(
    name: &str,
    begin: Instant,
    status: Status,
    output: &str,
    message: &str,
) -> ScriptFailure {
    let (took, number) = (begin.elapsed().as_secs_f64() * 1e3, status as u8);
    let message = unstyled(message);
    let report = format!("FAIL {name} ({took:.1} ms, status {number})\n{output}{message}");
    ScriptFailure { status, report }
}

fn run(source: &Source, place: &Location<'_>) -> Result<(), ScriptFailure> {
    // 1. What can be wrong before a guest boots.
    let policy = Policy::of_environment();
    let (name, begin) = (source.name(), Instant::now());
    let script = parse(source).map_err(|errors| {
        failure(name, begin, Status::Usage, "", &explain_errors(&errors, source))
    })?;
    let options = script.guest();
    let stop = Stop::after(options.timeout.unwrap_or(DEFAULT_TIMEOUT));
    let seed = options.seed.unwrap_or(0);
    let setup = Setup { builder: options.builder(), seed, console: None, pressure: None };
    // 2. The run, and the check while the guest is there.
    let mut output = String::new();
    let mut observer = |step: &Step| {
        if let Some(line) = &step.output {
            let _ = writeln!(output, "{}", text::plain(line));
        }
    };
    let look = |guest: &Guest, at: Standstill<'_>| match at {
        Standstill::Ended(_) => Some(guest.check()),
        Standstill::Unready(_) => None,
    };
    let ended = run_script_then(&script, setup, &stop, &mut observer, look);
    // 3. The verdict.
    let (status, message) = match ended {
        Ok((session, checked)) => verdict(&session, checked.as_ref(), source),
        Err(Unlaunched { error: LaunchError::NoKvm(missing), .. }) if policy == Policy::Skip => {
            say_skipped(place, &missing);
            return Ok(());
        }
        Err(unlaunched) => {
            (launch_status(&unlaunched.error), format!("{BAD}error:{BAD:#} {}\n", unlaunched.error))
        }
    };
    if status == Status::Ok {
        print!("{output}");
        return Ok(());
    }
    Err(failure(name, begin, status, &output, &message))
}

/// What a script that ran came to, and the check at its end.
fn verdict(
    session: &Session,
    checked: Option<&Result<Report, InspectError>>,
    source: &Source,
) -> (Status, String) {
    let mut message = explain(&session.ending, source, &session.log);
    let status = session.ending.status();
    match checked.and_then(FailureReport::of_check) {
        None => (status, message),
        Some((text, _)) => {
            message.push_str(&text);
            (if status == Status::Ok { Status::Failed } else { status }, message)
        }
    }
}
