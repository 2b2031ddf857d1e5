//! `vmkern check`: whether everything in a guest's memory agrees.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use vmkern::Guest;
use vmkern::check::Report;
use vmkern::check::{Rule, rule, rules};
use vmkern::dump::Dump;
use vmkern::inspect::{InspectError, View};
use vmkern::output::reserve_stdout;
use vmkern::script::{BAD, Ending, GOOD, SCHEMA, Status, closest};
use vmkern::text;

use super::columns::{Page, list_width};
use super::guest::GuestArgs;
use super::look::{self, Reporter, Subject};
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
    /// Reports only the findings of this rule, and what cannot be read; can be given several times.
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
        page.entry(rule.id, rule.says);
    }
    super::print(&page.finish());
    Status::Ok
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct CheckObject<'a> {
    schema: u32,
    source: &'a str,
    /// Whether there are no findings.
    ok: bool,
    /// The rules that were checked, where those are not all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    only: Vec<&'static str>,
    /// Why the check was not possible.
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
        (Some(script), _) => {
            let check = |guest: &Guest, _: &str| args.guest(guest);
            look::at_end(args, script, (&args.guest, signals), check)
        }
        (None, Some(path)) => {
            let name = text::name(path);
            let checked = Dump::open(path).map_err(anyhow::Error::from).and_then(|dump| {
                args.dump(&dump).with_context(|| format!("{name} cannot be checked"))
            });
            look::report(args, Subject { path, name: &name }, checked)
        }
        (None, None) => {
            let nothing = anyhow::anyhow!("nothing to check: give a dump, or --script FILE");
            look::refuse(args, None, &nothing)
        }
    }
}

impl CheckArgs {
    /// Checks `guest` by the rules that are asked for.
    fn guest(&self, guest: &Guest) -> Result<Report, InspectError> {
        if self.only.is_empty() { guest.check() } else { guest.check_only(&self.only) }
    }

    /// Checks `dump` by the rules that are asked for.
    fn dump(&self, dump: &Dump) -> Result<Report, InspectError> {
        match &self.only[..] {
            [] => Report::of(dump),
            rules => Report::only(&View::new(dump)?, rules),
        }
    }

    /// The names of the rules that are asked for; none means all.
    fn rules(&self) -> Vec<&'static str> {
        self.only.iter().map(|rule| rule.id).collect()
    }

    /// The report's end: which rules it is about, where those are not all.
    fn partly(&self) -> String {
        match &self.rules()[..] {
            [] => String::new(),
            [rule] => format!(", by the rule {rule} alone"),
            rules => format!(", by the rules {} alone", rules.join(", ")),
        }
    }
}

impl Reporter for CheckArgs {
    type Seen = Report;

    fn show(&self, name: &str, report: &Report) -> Status {
        let is_clean = report.is_clean();
        if self.json {
            let (only, report) = (self.rules(), Some(report));
            super::print_json(&CheckObject {
                schema: SCHEMA,
                source: name,
                ok: is_clean,
                only,
                error: None,
                report,
            });
        } else {
            super::print(&report.to_string());
            let looked = format!("{}{}", looked_at(report), self.partly());
            super::eprint(&if is_clean {
                format!("{GOOD}ok{GOOD:#} {name}: nothing found in {looked}\n")
            } else {
                format!("{BAD}FAIL{BAD:#} {name}: {} in {looked}\n", report.total())
            });
        }
        if is_clean { Status::Ok } else { Status::Failed }
    }

    fn refusal(&self, of: Option<Subject<'_>>, error: &str) {
        if self.json {
            let (error, only) = (Some(error.to_owned()), self.rules());
            super::print_json(&CheckObject {
                schema: SCHEMA,
                source: of.map_or("", |of| of.name),
                ok: false,
                only,
                error,
                report: None,
            });
        }
    }
}

/// Checks `guest` at the end of a script that was not interrupted.
pub fn at_end(guest: &Guest, ending: &Ending) -> Option<Result<Report, InspectError>> {
    (*ending != Ending::Interrupted).then(|| guest.check())
}

/// What the check looked at, in words.
fn looked_at(Report { stats, .. }: &Report) -> String {
    format!(
        "{} maps, {} entries, {} objects, {} page tables, {} translations",
        stats.maps, stats.entries, stats.objects, stats.tables, stats.translations
    )
}
