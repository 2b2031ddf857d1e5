//! `vmkern test --fail-every` and `--fail-stacks`: every failure that a set of scripts can meet.

use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vmkern::guest::FailSite;
use vmkern::output::reserve_stdout;
use vmkern::script::sweep::{
    Campaign, Checking, Item, Left, Load, Mode, SiteReport, Unexpected, Watcher, all_sites, sweep,
};
use vmkern::script::{BAD, FAINT, GOOD, SCHEMA, Script, Source, Status, closest, parse_with};
use vmkern::{GuestBuilder, TimeMode, text};

use super::guest::{GuestArgs, Precedence};
use super::plan::{Plan, Run, plan};
use super::script::parsed_of_suite;
use super::signals::Signals;
use super::test::TestArgs;

/// The options of a sweep.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sweeps")]
pub struct SweepArgs {
    /// Fails each hit of a fail site (`all`: of each site), one in each run: the first hit in the
    /// first run of a script, the second in the next, and so on.
    #[arg(
        long,
        value_name = "SITE|all",
        value_parser = sites,
        conflicts_with_all = ["fail_stacks", "seeds", "junit", "console", "fail_fast", "fails"]
    )]
    fail_every: Option<Sites>,
    /// Fails each distinct call stack of each fail site once, in the first script that reaches it.
    #[arg(long, conflicts_with_all = ["seeds", "junit", "console", "fail_fast", "fails"])]
    fail_stacks: bool,
    /// Fails at most the first COUNT hits of each site in each script.
    #[arg(
        long,
        value_name = "COUNT",
        requires = "fail_every",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    fail_up_to: Option<u64>,
}

/// Sites of a sweep.
#[derive(Clone, Debug)]
struct Sites(Vec<FailSite>);

/// A site that can fail, or all of them.
fn sites(text: &str) -> Result<Sites, String> {
    let all = all_sites();
    if text == "all" {
        return Ok(Sites(all));
    }
    if let Some(&site) = all.iter().find(|site| site.name() == text) {
        return Ok(Sites(vec![site]));
    }
    let names: Vec<&str> = all.iter().map(|site| site.name()).collect();
    if FailSite::from_name(text).is_some() {
        return Err(format!("nothing fails at `{text}`; sites that fail: {}", names.join(" ")));
    }
    let near = closest(text, names.iter().copied());
    let near = near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
    Err(format!("unknown fail site `{text}`{near}; known: all {}", names.join(" ")))
}

impl SweepArgs {
    /// Whether there is a sweep to do.
    pub fn is_asked_for(&self) -> bool {
        self.fail_stacks || self.fail_every.is_some()
    }

    fn sites(&self) -> Vec<FailSite> {
        self.fail_every.as_ref().map_or_else(all_sites, |sites| sites.0.clone())
    }

    fn mode(&self) -> Mode {
        match self.fail_every {
            Some(_) => Mode::Every(self.fail_up_to.unwrap_or(u64::MAX)),
            None => Mode::Stacks,
        }
    }
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct SweepReport {
    schema: u32,
    ok: bool,
    status: u8,
    /// `every` or `stacks`.
    sweep: &'static str,
    points: u64,
    unexpected: usize,
    sites: Vec<SiteReport>,
    left_out: Vec<Left>,
}

/// Runs the sweep.
pub fn run(args: &TestArgs, signals: &Signals) -> Status {
    // 1. What is swept.
    let prepared = args.guest.builder().map_err(anyhow::Error::from);
    let planned = prepared.and_then(|_| plan(&args.paths, &args.filter, None));
    let Plan { runs, passed_over } = match planned {
        Ok(plan) => plan,
        Err(error) => {
            super::complain(&error);
            return Status::Usage;
        }
    };
    if args.json {
        reserve_stdout("the object of --json");
    }
    let mut show = Show::new(args);
    for path in passed_over {
        let script = text::name(&path);
        show.left(Left::new(script, "it is not a regular file"));
    }
    let items = match items(args, &runs, &mut show) {
        Ok(items) => items,
        // Nothing has booted.
        Err(status) => {
            show.end(status);
            return status;
        }
    };
    // 2. The sweep.
    let stop = |limit| signals.stop(limit);
    let go_on = || !signals.fired();
    let campaign = Campaign {
        items: &items,
        sites: &args.sweep.sites(),
        mode: args.sweep.mode(),
        checking: if args.check { Checking::Full } else { Checking::Off },
        jobs: args.jobs(),
        stop: &stop,
        go_on: &go_on,
    };
    sweep(&campaign, &mut show);
    // 3. The verdict.
    let status =
        signals.status().unwrap_or(if show.is_clean() { Status::Ok } else { Status::Failed });
    show.end(status);
    status
}

/// The items of a sweep: the scripts, and before the first one with a new guest, its boot.
///
/// # Errors
/// The status of the first script that cannot run at all; all of them are shown.
fn items(args: &TestArgs, runs: &[Run], show: &mut Show) -> Result<Vec<Item>, Status> {
    let mut items: Vec<Item> = Vec::new();
    let mut boots: Vec<String> = Vec::new();
    let mut worst = None;
    for run in runs {
        // 1. The script, if it can be swept.
        let (script, guest, builder) = match usable(args, run) {
            Ok(usable) => usable,
            Err(reason) => {
                match &reason {
                    Unswept::Reason(reason) => show.left(Left::new(run.name.clone(), *reason)),
                    Unswept::Wrong { status, text } => {
                        worst = worst.or(Some(*status));
                        show.wrong(run.name.clone(), text);
                    }
                }
                continue;
            }
        };
        // 2. The boot of its guest, if that is a new one.
        let flags = guest.machine();
        let item = |name: String, load, script| Item {
            name,
            load,
            script,
            file: text::name(&run.path),
            flags: args.guest.flags(),
            machine: flags.clone(),
            builder: builder.clone(),
            seed: guest.seed(),
            limit: guest.timeout(),
        };
        if !boots.contains(&flags)
            && let Ok(empty) = parse_with(&Source::new("boot", ""), &[])
        {
            items.push(item(format!("boot{flags}"), Load::Boot, empty));
            boots.push(flags.clone());
        }
        // 3. The script itself.
        items.push(item(run.name.clone(), Load::Script, script));
    }
    worst.map_or(Ok(items), Err)
}

/// Why a script is not swept.
enum Unswept {
    /// It can run, but has no points.
    Reason(&'static str),
    /// It cannot run.
    Wrong { status: Status, text: String },
}

/// The script of a run and its guest, or why it is not swept.
fn usable(args: &TestArgs, run: &Run) -> Result<(Script, GuestArgs, GuestBuilder), Unswept> {
    let name = text::name(&run.path);
    let (_, script) = parsed_of_suite(&run.path, &name, &args.guest)
        .map_err(|wrong| Unswept::Wrong { status: wrong.status(), text: wrong.text(&name) })?;
    let guest = args.guest.with(script.guest(), Precedence::Script).guest;
    if guest.vcpus() > 1 {
        return Err(Unswept::Reason("its guest has more than one CPU"));
    }
    if guest.time() == TimeMode::Real {
        return Err(Unswept::Reason("its guest runs in real time"));
    }
    if script.has("fail") {
        return Err(Unswept::Reason("it arms fail points itself"));
    }
    let builder = guest.builder().map_err(|error| Unswept::Wrong {
        status: Status::Usage,
        text: format!("{BAD}error:{BAD:#} {name}: {error}\n"),
    })?;
    Ok((script, guest, builder))
}

/// Shows a sweep, and keeps its reports.
struct Show {
    json: bool,
    sweep: &'static str,
    start: Instant,
    bar: ProgressBar,
    sites: Vec<SiteReport>,
    left_out: Vec<Left>,
}

impl Show {
    fn new(args: &TestArgs) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} points {elapsed}") {
            bar.set_style(style);
        }
        let sweep = if args.sweep.fail_stacks { "stacks" } else { "every" };
        let (sites, left_out) = (Vec::new(), Vec::new());
        Self { json: args.json, sweep, start: Instant::now(), bar, sites, left_out }
    }

    fn unexpected(&self) -> usize {
        self.sites.iter().map(|report| report.unexpected.len()).sum()
    }

    fn points(&self) -> u64 {
        self.sites.iter().map(|report| report.points).sum()
    }

    fn is_clean(&self) -> bool {
        self.unexpected() == 0 && !self.sites.is_empty()
    }

    /// Says why `script` cannot run, and notes it as left out.
    fn wrong(&mut self, script: String, text: &str) {
        super::eprint(&format!("{}\n", text.trim_end()));
        let reason = anstream::adapter::strip_str(text.trim_end()).to_string();
        self.left_out.push(Left::new(script, reason));
    }

    /// The summary, or the object of `--json`.
    fn end(mut self, status: Status) {
        self.bar.finish_and_clear();
        let (points, unexpected) = (self.points(), self.unexpected());
        let took = self.start.elapsed().as_secs_f64();
        super::eprint(&format!(
            "\n{points} points, {unexpected} unexpected, {} left out in {took:.2} s\n",
            self.left_out.len()
        ));
        if self.json {
            self.sites.sort_by(|a, b| (&a.script, a.site).cmp(&(&b.script, b.site)));
            super::print_json(&SweepReport {
                schema: SCHEMA,
                ok: status == Status::Ok,
                status: status as u8,
                sweep: self.sweep,
                points,
                unexpected,
                sites: self.sites,
                left_out: self.left_out,
            });
        }
    }
}

impl Watcher for Show {
    fn surveyed(&mut self, points: u64) {
        self.bar.set_length(points);
    }

    fn visited(&mut self, report: SiteReport) {
        self.bar.suspend(|| super::eprint(&line(&report)));
        self.bar.inc(report.known);
        self.sites.push(report);
    }

    fn left(&mut self, left: Left) {
        let Left { script, reason, .. } = &left;
        self.bar.suspend(|| super::eprint(&format!("left out: {script}: {reason}\n")));
        self.left_out.push(left);
    }
}

/// One line for a site of an item, and what was unexpected.
fn line(report: &SiteReport) -> String {
    let SiteReport { script, site, points, outcomes, unexpected, .. } = report;
    let outcomes: Vec<String> =
        outcomes.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let word = if unexpected.is_empty() {
        format!("{GOOD}ok{GOOD:#}  ")
    } else {
        format!("{BAD}FAIL{BAD:#}")
    };
    let points = if *points == 1 { "1 point".to_owned() } else { format!("{points} points") };
    let mut text = format!("{word} {script} {site}: {points}: {}\n", outcomes.join(", "));
    unexpected.iter().for_each(|found| text.push_str(&finding(found)));
    text
}

/// Something unexpected: what, where it failed, where it showed, and how to see it again.
fn finding(found: &Unexpected) -> String {
    let line = found.line.map_or_else(String::new, |line| format!(" (line {line})"));
    let mut text = format!("  {}{line}: {}\n", found.kind, text::plain(&found.what));
    for (title, calls) in [("failed at", &found.failed_at), ("showed at", &found.showed_at)] {
        if !calls.is_empty() {
            text.push_str(&format!("    {title}:\n"));
            for call in calls {
                text.push_str(&format!("      {FAINT}{}{FAINT:#}\n", text::plain(call)));
            }
        }
    }
    text.push_str(&format!("    again: {}\n", found.repeat));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_one_that_fails_or_all() {
        assert_eq!(sites("tsleep").expect("a site").0, [FailSite::Tsleep]);
        assert!(sites("all").expect("all").0.len() > 10);
        let error = sites("tslep").expect_err("unknown");
        assert!(error.contains("did you mean `tsleep`?"), "{error}");
        let error = sites("intr_window").expect_err("nothing fails there");
        assert!(error.contains("nothing fails at"), "{error}");
    }
}
