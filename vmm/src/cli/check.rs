//! `vmkern check`: whether everything in a guest's memory agrees.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use vmkern::Guest;
use vmkern::check::Report;
use vmkern::check::{Rule, rule, rules};
use vmkern::dump::Dump;
use vmkern::inspect::{InspectError, View};
use vmkern::output::reserve_stdout;
use vmkern::script::{
    BAD, Ending, FailureReport, GOOD, SCHEMA, Setup, Standstill, Status, closest, explain,
    launch_status, run_script_then,
};
use vmkern::text;

use super::columns::{Page, list_width};
use super::guest::{GuestArgs, Precedence};
use super::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  vmkern run --save-dump guest.img FILE.kmem
  vmkern check guest.img
  vmkern check --script FILE.kmem
  vmkern check --json guest.img | jq '.findings[].rule'
  vmkern check --only map-size --only map-list guest.img
  vmkern check --list

Exit status: 0 everything agrees; 1 something was found; 2 the command line, the script or \
the dump is wrong; 7 the report could not be written; 129, 130 or 143 ended by SIGHUP, SIGINT \
or SIGTERM; with --script also what the script came to, as for `vmkern run`.";

/// Checks every structure in a guest's memory: in a memory dump, or in a guest at the end of a
/// script.
#[derive(Debug, Args)]
#[command(after_help = super::help::with_tunables(EXAMPLES))]
pub struct CheckArgs {
    /// The memory dump.
    #[arg(required_unless_present_any = ["script", "list"], conflicts_with = "script")]
    dump: Option<PathBuf>,
    /// Runs this script, and checks the guest at its end, or where it died; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Tells the findings of this rule, and of what cannot be read; may be given several times.
    #[arg(long, value_name = "RULE", value_parser = known_rule)]
    only: Vec<&'static Rule>,
    /// Lists all rules, and checks nothing.
    #[arg(long, conflicts_with_all = ["dump", "script", "only"])]
    list: bool,
    /// Prints one JSON object, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    guest: GuestArgs,
}

/// The rule called `id`.
fn known_rule(id: &str) -> Result<&'static Rule, String> {
    rule(id).ok_or_else(|| {
        let near = closest(id, rules().map(|rule| rule.id));
        let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
        format!("there is no such rule; {near}`vmkern check --list` lists them")
    })
}

/// A rule in the object of `--list --json`.
#[derive(Debug, Serialize)]
struct RuleObject {
    id: &'static str,
    group: &'static str,
    says: &'static str,
}

/// The object of `--list --json`.
#[derive(Debug, Serialize)]
struct ListObject {
    schema: u32,
    rules: Vec<RuleObject>,
}

/// Lists the rules, by what they are about.
fn list(args: &CheckArgs) -> Status {
    if args.json {
        let object =
            |rule: &Rule| RuleObject { id: rule.id, group: rule.group.title(), says: rule.says };
        super::print_json(&ListObject { schema: SCHEMA, rules: rules().map(object).collect() });
        return Status::Ok;
    }
    let longest = rules().map(|rule| rule.id.len()).max().unwrap_or(0);
    let mut page = Page::new(list_width(), longest + 4);
    let mut group = None;
    for rule in rules() {
        if group.replace(rule.group) != Some(rule.group) {
            page.heading(rule.group.title());
        }
        page.row(rule.id, rule.says);
    }
    super::print(&page.finish());
    Status::Ok
}

/// Checks `guest` by the rules that are asked for.
fn of_guest(args: &CheckArgs, guest: &Guest) -> Result<Report, InspectError> {
    if args.only.is_empty() { guest.check() } else { guest.check_only(&args.only) }
}

/// Checks `dump` by the rules that are asked for.
fn of_dump(args: &CheckArgs, dump: &Dump) -> Result<Report, InspectError> {
    match &args.only[..] {
        [] => Report::of(dump),
        rules => Report::only(&View::new(dump)?, rules),
    }
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct CheckObject<'a> {
    schema: u32,
    source: &'a str,
    /// Whether nothing was found.
    ok: bool,
    /// Why nothing could be checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    report: Option<&'a Report>,
}

/// Runs the subcommand.
pub fn run(args: &CheckArgs, signals: &Signals) -> Status {
    reserve_stdout("the report");
    if args.list {
        return list(args);
    }
    match (&args.script, &args.dump) {
        (Some(script), _) => at_the_end(args, script, signals),
        (None, Some(dump)) => {
            let name = text::name(dump);
            let checked = Dump::open(dump).map_err(anyhow::Error::from).and_then(|dump| {
                of_dump(args, &dump).with_context(|| format!("{name} cannot be checked"))
            });
            match checked {
                Ok(report) => show(args, &name, &report),
                Err(error) => refuse(args, &name, &error),
            }
        }
        (None, None) => {
            refuse(args, "", &anyhow::anyhow!("nothing to check: give a dump, or --script FILE"))
        }
    }
}

/// Runs the script at `path` and checks the guest then.
fn at_the_end(args: &CheckArgs, path: &Path, signals: &Signals) -> Status {
    // 1. The script and its guest.
    let name = super::script::name(path);
    let (source, script) = match super::script::parsed(path, &name, &args.guest, signals) {
        Ok(parsed) => parsed,
        Err(unusable) => {
            let (status, why) = unusable.complain(&name);
            object(args, &name, &why);
            return status;
        }
    };
    let guest = args.guest.with(script.guest(), Precedence::CommandLine).guest;
    let builder = match guest.builder() {
        Ok(builder) => builder,
        Err(error) => return refuse(args, &name, &error.into()),
    };
    // 2. The run, and the check while the guest is still there.
    let stop = signals.stop(guest.timeout());
    super::print::run_begins(&stop);
    let setup = Setup { builder, seed: guest.seed(), console: None };
    let look = |guest: &Guest, at: Standstill<'_>| match at {
        Standstill::Ended(Ending::Interrupted) | Standstill::Unready(_) => None,
        Standstill::Ended(_) => Some(of_guest(args, guest)),
    };
    let (session, checked) =
        match run_script_then(&script, setup, &stop, &mut super::print::output_aside, look) {
            Ok(ended) => ended,
            Err(unlaunched) => {
                let status = launch_status(&unlaunched.error);
                super::print::run_ends(status.into());
                refuse(args, &name, &unlaunched.error.into());
                return status;
            }
        };
    // 3. How it ended. A run that went wrong counts more than what the check found.
    let status = session.ending.status();
    super::print::run_ends(status.into());
    if status != Status::Ok {
        super::eprint(&explain(&session.ending, &source, &session.log));
    }
    let found = match checked {
        Some(Ok(report)) => show(args, &name, &report),
        Some(Err(error)) => refuse(args, &name, &error.into()),
        None => status,
    };
    if status == Status::Ok { found } else { status }
}

/// Checks `guest` at the end of a script, unless somebody wanted that to end.
pub fn at_end(guest: &Guest, ending: &Ending) -> Option<Result<Report, InspectError>> {
    (*ending != Ending::Interrupted).then(|| guest.check())
}

/// What a check at the end of a run came to, if it did not find everything in order: in words and
/// for the report.
pub fn failure(checked: &Result<Report, InspectError>) -> Option<(String, FailureReport)> {
    let (text, got) = match checked {
        Ok(report) if report.is_clean() => return None,
        Ok(report) => (report.to_string(), count(report)),
        Err(error) => (String::new(), format!("a guest that cannot be checked: {error}")),
    };
    let text = format!("{text}{BAD}check:{BAD:#} {got}\n");
    Some((text, FailureReport { line: 0, expected: "no findings at the end".to_owned(), got }))
}

fn count(report: &Report) -> String {
    match report.count() {
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    }
}

fn show(args: &CheckArgs, name: &str, report: &Report) -> Status {
    if args.json {
        let ok = report.is_clean();
        super::print_json(&CheckObject {
            schema: SCHEMA,
            source: name,
            ok,
            error: None,
            report: Some(report),
        });
    } else {
        super::print(&report.to_string());
        let stats = &report.stats;
        let looked = format!(
            "{} maps, {} entries, {} objects, {} page tables, {} translations",
            stats.maps, stats.entries, stats.objects, stats.tables, stats.translations
        );
        super::eprint(&if report.is_clean() {
            format!("{GOOD}ok{GOOD:#} {name}: nothing found in {looked}\n")
        } else {
            format!("{BAD}FAIL{BAD:#} {name}: {} in {looked}\n", count(report))
        });
    }
    if report.is_clean() { Status::Ok } else { Status::Failed }
}

/// Says why there is no report.
fn refuse(args: &CheckArgs, name: &str, error: &anyhow::Error) -> Status {
    super::complain(error);
    object(args, name, &format!("{error:#}"))
}

/// The JSON object of a refusal, where JSON was asked for.
fn object(args: &CheckArgs, name: &str, error: &str) -> Status {
    if args.json {
        let error = Some(error.to_owned());
        super::print_json(&CheckObject {
            schema: SCHEMA,
            source: name,
            ok: false,
            error,
            report: None,
        });
    }
    Status::Usage
}
