//! `vmkern inspect`: what a guest's memory holds.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use vmkern::Guest;
use vmkern::dump::Dump;
use vmkern::guest::KernelImage;
use vmkern::inspect::draw::draw;
use vmkern::inspect::report::SCHEMA;
use vmkern::inspect::{InspectError, Inspection, Symbols, View, What};
use vmkern::output::reserve_stdout;
use vmkern::script::{BAD, Status};
use vmkern::text;

use super::guest::GuestArgs;
use super::look::{self, Reporter, Subject};
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
  fail                     fail points: programmes, hits, and where one failed last
  pressure                 what hurts, in words; for how long threads were stalled on memory
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

/// The report that is asked for.
enum Request {
    Look(What),
    /// The differences of this dump.
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
    let (dump, words) = args.dump_and_words();
    match (&args.script, &dump) {
        (None, None) => {
            let nothing = anyhow::anyhow!("nothing to look into: give a dump, or --script FILE");
            look::refuse(args, None, &nothing)
        }
        (Some(path), _) => match request(&words).and_then(Wanted::open) {
            Ok(wanted) => {
                let look = |guest: &Guest, name: &str| wanted.of_guest(guest, name);
                look::at_end(args, path, (&args.guest, signals), look)
            }
            Err(error) => {
                let name = super::script::name(path);
                look::refuse(args, Some(Subject { path, name: &name }), &error)
            }
        },
        (None, Some(path)) => {
            let seen = request(&words).and_then(|request| of_dump(args, path, &request));
            look::report(args, Subject { path, name: &text::name(path) }, seen)
        }
    }
}

impl InspectArgs {
    /// The dump, which is not there with a script, and the words of the request.
    fn dump_and_words(&self) -> (Option<PathBuf>, Vec<String>) {
        let mut words = self.words.clone();
        if self.script.is_some() || words.is_empty() {
            return (None, words);
        }
        // `diff A B` is `A diff B`.
        if words.len() == 3 && words[0] == "diff" {
            words.swap(0, 1);
        }
        (Some(PathBuf::from(words.remove(0))), words)
    }
}

/// A request whose other dump is open.
enum Wanted {
    Look(What),
    /// The differences of this dump, which reports call so.
    Diff(String, Dump),
}

impl Wanted {
    fn open(request: Request) -> anyhow::Result<Self> {
        Ok(match request {
            Request::Look(what) => Self::Look(what),
            Request::Diff(other) => Self::Diff(text::name(&other), Dump::open(&other)?),
        })
    }

    /// Looks at a guest that reports call `name`.
    fn of_guest(&self, guest: &Guest, name: &str) -> Result<Inspection, InspectError> {
        match self {
            Self::Look(what) => guest.inspect(name, what),
            Self::Diff(other, dump) => {
                let after = View::new(dump)?;
                guest.look(|before| Ok(Inspection::diff((name, before), (other, &after))))
            }
        }
    }
}

impl Reporter for InspectArgs {
    type Seen = Inspection;

    fn show(&self, _: &str, inspection: &Inspection) -> Status {
        if self.json {
            super::print_json(inspection);
        } else {
            super::print(&draw(inspection));
        }
        Status::Ok
    }

    fn refusal(&self, of: Option<Subject<'_>>, error: &str) {
        if self.json {
            let source = of.map(|of| text::name(of.path));
            super::print_json(&Refusal { schema: SCHEMA, source, error: error.to_owned() });
        }
    }
}

fn request(words: &[String]) -> anyhow::Result<Request> {
    match words {
        [] => Ok(Request::Look(What::Summary)),
        [diff, other] if diff == "diff" => Ok(Request::Diff(other.into())),
        [diff, ..] if diff == "diff" => anyhow::bail!("`diff` takes one dump; usage: diff OTHER"),
        // A word that a terminal would obey is unknown, and is shown escaped.
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
