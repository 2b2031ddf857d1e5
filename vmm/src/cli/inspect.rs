//! `vmkern inspect`: what a guest's memory holds.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use vmkern::dump::Dump;
use vmkern::guest::KernelImage;
use vmkern::inspect::draw::draw;
use vmkern::inspect::report::SCHEMA;
use vmkern::inspect::{InspectError, Inspection, Symbols, View, What};
use vmkern::output::reserve_stdout;
use vmkern::script::{BAD, Setup, Standstill, Status, explain, launch_status, run_script_then};
use vmkern::text;
use vmkern::{Guest, LaunchError};

use super::guest::{GuestArgs, Precedence};
use super::signals::Signals;

const EXAMPLES: &str = "\
WHAT is one of:
  summary                  the guest at a glance (this is what is shown without WHAT)
  maps                     every map and submap, with a picture of its address space
  map NAME                 a map's entries: kernel_map, kmem_map, ..., or the map's address
  objects                  every object
  pages                    what pages are used for, with a picture of physical memory
  page PFN                 a page: state, owner, and every virtual address that maps it
  vtop ADDR                the page-table walk to an address, and what is behind it
  pagetable [START..END]   what the page tables map, equal neighbours as one
  threads                  every thread, with what it waits for and its stack
  cpus                     every CPU
  locks                    how often locks were acquired and waited for, and translations flushed
  diff OTHER               what is different in the dump OTHER

Examples:
  vmkern run --save-dump guest.img FILE.kmem
  vmkern inspect guest.img maps
  vmkern inspect guest.img vtop 0xffffff8000003000
  vmkern inspect --script FILE.kmem pages
  vmkern inspect before.img diff after.img
  vmkern inspect --json guest.img objects | jq '.objects[].name'

Exit status: 0 it was shown, damage included; 2 the command line, the script or the dump is \
wrong; 7 the report could not be written; 129, 130 or 143 ended by SIGHUP, SIGINT or SIGTERM; \
with --script also what the script came to, as for `vmkern run`.";

/// Shows what a guest's memory holds: of a memory dump, or of a guest at the end of a script.
#[derive(Debug, Args)]
#[command(
    after_help = super::help::with_tunables(EXAMPLES),
    override_usage = "vmkern inspect [OPTIONS] DUMP [WHAT]...\n       \
                      vmkern inspect [OPTIONS] --script FILE [WHAT]...\n       \
                      vmkern inspect [OPTIONS] diff DUMP DUMP"
)]
pub struct InspectArgs {
    /// The dump (not with --script), then what to show of it.
    #[arg(value_name = "WHAT")]
    words: Vec<String>,
    /// Runs this script, and looks at the guest at its end, or where it died; `-` is standard
    /// input.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Prints one JSON object, and nothing else.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    guest: GuestArgs,
}

/// What is asked of a source.
enum Request {
    Look(What),
    /// What is different in this dump.
    Diff(PathBuf),
}

/// The object that is printed in place of a report.
#[derive(Debug, Serialize)]
struct Refusal {
    schema: u32,
    source: Option<String>,
    error: String,
}

/// Runs the subcommand.
pub fn run(args: &InspectArgs, signals: &Signals) -> Status {
    reserve_stdout("the report");
    let mut words = args.words.clone();
    if args.script.is_none() && words.len() == 3 && words[0] == "diff" {
        words.swap(0, 1);
    }
    let dump = if args.script.is_none() && !words.is_empty() {
        Some(PathBuf::from(words.remove(0)))
    } else {
        None
    };
    match (&args.script, dump) {
        (None, None) => refuse(
            args,
            None,
            &anyhow::anyhow!("nothing to look into: give a dump, or --script FILE"),
        ),
        (Some(script), _) => match request(&words) {
            Ok(request) => at_the_end(args, script, &request, signals),
            Err(error) => refuse(args, Some(script), &error),
        },
        (None, Some(dump)) => {
            match request(&words).and_then(|request| of_dump(args, &dump, &request)) {
                Ok(inspection) => show(args, &inspection),
                Err(error) => refuse(args, Some(&dump), &error),
            }
        }
    }
}

fn request(words: &[String]) -> anyhow::Result<Request> {
    match words {
        [] => Ok(Request::Look(What::Summary)),
        [diff, other] if diff == "diff" => Ok(Request::Diff(other.into())),
        [diff, ..] if diff == "diff" => anyhow::bail!("`diff` takes one dump; usage: diff OTHER"),
        // A word that a terminal would obey is none of ours, and is told as it was refused.
        words => match What::parse(
            &words.iter().map(|word| text::one_line(word.as_bytes())).collect::<Vec<_>>(),
        ) {
            Ok(what) => Ok(Request::Look(what)),
            Err(error @ vmkern::inspect::WhatError::Unknown { .. }) => {
                Err(anyhow::anyhow!("{error}, diff OTHER"))
            }
            Err(error) => Err(error.into()),
        },
    }
}

fn of_dump(args: &InspectArgs, path: &Path, request: &Request) -> anyhow::Result<Inspection> {
    let dump = Dump::open(path)?;
    let name = text::name(path);
    let looks = || format!("cannot look into {name}");
    let view = View::new(&dump).with_context(looks)?;
    match request {
        Request::Look(what) => {
            let symbols =
                if what.has_backtraces() { symbols(args, &dump)? } else { Symbols::none() };
            Inspection::of(&name, &view, what, &symbols)
                .map_err(InspectError::from)
                .with_context(looks)
        }
        Request::Diff(other) => {
            let after = Dump::open(other)?;
            let other = text::name(other);
            let after = View::new(&after).with_context(|| format!("cannot look into {other}"))?;
            Ok(Inspection::diff((&name, &view), (&other, &after)))
        }
    }
}

/// The symbols of the kernel that the dump is of.
fn symbols(args: &InspectArgs, dump: &Dump) -> anyhow::Result<Symbols> {
    let kernel = match args.guest.kernel() {
        Some(path) => KernelImage::from_file(path)?,
        None => KernelImage::embedded(),
    };
    Ok(dump.symbols(kernel.bytes()).unwrap_or_else(|error| {
        super::eprint(&format!(
            "{BAD}warning:{BAD:#} no function names: {error}; --kernel FILE names the right one\n"
        ));
        Symbols::none()
    }))
}

/// Runs the script at `path` and looks at the guest then.
fn at_the_end(args: &InspectArgs, path: &Path, request: &Request, signals: &Signals) -> Status {
    // 1. The other dump, the script and its guest.
    let name = super::script::name(path);
    let other = match request {
        Request::Look(_) => None,
        Request::Diff(other) => match Dump::open(other) {
            Ok(dump) => Some((text::name(other), dump)),
            Err(error) => return refuse(args, Some(path), &error.into()),
        },
    };
    let (source, script) = match super::script::parsed(path, &name, &args.guest, signals) {
        Ok(parsed) => parsed,
        Err(unusable) => {
            let (status, why) = unusable.complain(&name);
            object(args, Some(path), &why);
            return status;
        }
    };
    let guest = args.guest.with(script.guest(), Precedence::CommandLine).guest;
    let builder = match guest.builder() {
        Ok(builder) => builder,
        Err(error) => return refuse(args, Some(path), &error.into()),
    };
    // 2. The run, and the look at its end while the guest is still there.
    let stop = signals.stop(guest.timeout());
    super::print::run_begins(&stop);
    let setup = Setup { builder, seed: guest.seed(), console: None };
    let look = |guest: &Guest, at: Standstill<'_>| {
        (!at.is_interrupted()).then(|| match (request, &other) {
            (Request::Look(what), _) => guest.inspect(&name, what),
            (Request::Diff(_), Some((other, dump))) => View::new(dump).and_then(|after| {
                guest.look(|before| Ok(Inspection::diff((&name, before), (other, &after))))
            }),
            (Request::Diff(_), None) => Err(InspectError::NotReady("dump")),
        })
    };
    let (session, seen) =
        match run_script_then(&script, setup, &stop, &mut super::print::output_aside, look) {
            Ok(ended) => ended,
            Err(unlaunched) => {
                return not_launched(args, path, unlaunched.error);
            }
        };
    // 3. How it ended, and what was seen.
    let status = session.ending.status();
    super::print::run_ends(status.into());
    if status != Status::Ok {
        super::eprint(&explain(&session.ending, &source, &session.log));
    }
    shown(args, path, status, seen)
}

/// Reports a guest that was not launched or did not become ready; the exit status of that.
fn not_launched(args: &InspectArgs, path: &Path, error: LaunchError) -> Status {
    let status = launch_status(&error);
    super::print::run_ends(status.into());
    refuse(args, Some(path), &error.into());
    status
}

/// Shows what was seen of the guest at its script's end; the status of both.
fn shown(
    args: &InspectArgs,
    path: &Path,
    status: Status,
    seen: Option<Result<Inspection, InspectError>>,
) -> Status {
    match seen {
        Some(Ok(inspection)) => {
            show(args, &inspection);
            status
        }
        Some(Err(error)) => {
            let refused = refuse(args, Some(path), &error.into());
            if status == Status::Ok { refused } else { status }
        }
        None => status,
    }
}

fn show(args: &InspectArgs, inspection: &Inspection) -> Status {
    if args.json {
        super::print_json(inspection);
    } else {
        super::print(&draw(inspection));
    }
    Status::Ok
}

/// Says why there is no report.
fn refuse(args: &InspectArgs, source: Option<&Path>, error: &anyhow::Error) -> Status {
    super::complain(error);
    object(args, source, &format!("{error:#}"))
}

/// The JSON object of a refusal, where JSON was asked for.
fn object(args: &InspectArgs, source: Option<&Path>, error: &str) -> Status {
    if args.json {
        let source = source.map(text::name);
        super::print_json(&Refusal { schema: SCHEMA, source, error: error.to_owned() });
    }
    Status::Usage
}
