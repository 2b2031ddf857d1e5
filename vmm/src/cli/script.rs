//! The script that a command line names, or that is one of a suite: read and parsed.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use vmkern::input::{InputError, SCRIPT_MAX, read_regular};
use vmkern::script::{
    BAD, Diagnostic, FailureReport, NotUtf8, Script, Source, Status, explain_errors, parse_with,
    read_script,
};

use super::guest::GuestArgs;
use super::signals::Signals;

/// Why a script cannot run.
pub enum Unusable {
    /// It cannot be read.
    Unread(InputError),
    /// It is not text.
    NotUtf8(NotUtf8),
    /// It breaks the rules of the language.
    Wrong(Source, Vec<Diagnostic>),
}

impl Unusable {
    /// The exit status.
    pub fn status(&self) -> Status {
        match self {
            Self::Unread(error) => error.status(),
            Self::NotUtf8(_) | Self::Wrong(..) => Status::Usage,
        }
    }

    /// The reason, in one line. `name` is what reports call the script.
    pub fn why(&self, name: &str) -> String {
        match self {
            Self::Unread(error) => format!("cannot read the script {name}: {error}"),
            Self::NotUtf8(error) => format!("{}; expected UTF-8 text", error.at(name)),
            Self::Wrong(..) => "the script is wrong".to_owned(),
        }
    }

    /// The failures of a report.
    pub fn failures(&self, name: &str) -> Vec<FailureReport> {
        match self {
            Self::Unread(_) => {
                let (expected, got) = ("a script".to_owned(), self.why(name));
                vec![FailureReport { line: 0, expected, got }]
            }
            Self::NotUtf8(error) => vec![(*error).into()],
            Self::Wrong(_, errors) => errors.iter().map(FailureReport::from).collect(),
        }
    }

    /// What people read on standard error.
    pub fn text(&self, name: &str) -> String {
        match self {
            Self::Wrong(source, errors) => explain_errors(errors, source),
            Self::Unread(_) | Self::NotUtf8(_) => {
                format!("{BAD}error:{BAD:#} {}\n", self.why(name))
            }
        }
    }
}

/// The name of the script in `file` in reports.
pub fn name(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { vmkern::text::name(file) }
}

/// Reads and parses the script in `file`, or on standard input, within the time limit of a run. A
/// script that is typed at a terminal has no such limit.
pub fn parsed(
    file: &Path,
    name: &str,
    guest: &GuestArgs,
    signals: &Signals,
) -> Result<(Source, Script), Unusable> {
    let is_typed = file == Path::new("-") && io::stdin().is_terminal();
    let limit = if is_typed { Duration::MAX } else { guest.timeout() };
    script_of(read_script(file, &signals.stop(limit)), name, guest)
}

/// Reads and parses the script of a suite in `file`, a regular one.
pub fn parsed_of_suite(
    file: &Path,
    name: &str,
    guest: &GuestArgs,
) -> Result<(Source, Script), Unusable> {
    script_of(read_regular(file, SCRIPT_MAX), name, guest)
}

/// The script called `name` that was read, or not.
fn script_of(
    read: Result<Vec<u8>, InputError>,
    name: &str,
    guest: &GuestArgs,
) -> Result<(Source, Script), Unusable> {
    let bytes = read.map_err(Unusable::Unread)?;
    let source = Source::from_bytes(name, &bytes).map_err(Unusable::NotUtf8)?;
    match parse_with(&source, guest.lets()) {
        Ok(script) => Ok((source, script)),
        Err(errors) => Err(Unusable::Wrong(source, errors)),
    }
}
