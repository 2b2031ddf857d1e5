//! The tour: what `vmkern run` shows without a script.
//!
//! Everything on it is done by a guest while one looks: each stop calls a function of the kernel,
//! and shows what came back, what the map looks like then, and which page-table entries changed.
//! Nothing is told that was not read out of the guest's memory.

mod stops;
mod window;

use std::fmt::Write as _;

use thiserror::Error;
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MapId, Op, Outcome};

use self::window::{COLUMNS, Window, count};
use crate::inspect::{Frame, InspectError};
use crate::script::{FAINT, Runner, STRONG, Step, StepResult, Stop, TargetError, map_name};
use crate::{Crash, Guest, GuestError, ThreadId};

/// Where the tour's text goes, piece by piece.
pub type Out<'o> = &'o mut dyn FnMut(&str);

/// Why a tour ended early.
#[derive(Error)]
pub enum TourError {
    /// The guest failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The guest's memory makes no sense.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// Something else came back than the tour is made for.
    #[error("{call} gave {got} instead of {expected}")]
    Unexpected {
        /// The call.
        call: String,
        /// What it should give.
        expected: &'static str,
        /// What it gave.
        got: String,
    },
    /// The tour was ended from outside.
    #[error(transparent)]
    Stopped(#[from] TargetError),
}

vmkern_inspect::debug_as_printed!(TourError);

/// Shows around in `guest`, which dies on the way, as planned. Returns the steps that were taken (a
/// stop's number in place of a line), and the crash at the end.
///
/// # Errors
/// See [`TourError`].
pub fn run(
    guest: &mut Guest,
    stop: &Stop,
    out: Out<'_>,
) -> Result<(Vec<Step>, Box<Crash>), TourError> {
    let mut tour = Tour { guest, stop, out, number: 0, steps: Vec::new() };
    tour.welcome()?;
    let crash = tour.stops()?;
    Ok((tour.steps, crash))
}

struct Tour<'t> {
    guest: &'t mut Guest,
    stop: &'t Stop,
    out: Out<'t>,
    number: usize,
    steps: Vec<Step>,
}

/// One stop of the tour.
struct Stage {
    /// What is called, as C would write it.
    call: String,
    /// The same, as an operation.
    op: Op,
    /// The verb, for the report.
    verb: &'static str,
    /// What happens, in lines of at most 74 characters.
    story: &'static [&'static str],
    /// Which map to look at, and from where.
    map: MapId,
    from: GuestVirt,
}

impl Tour<'_> {
    fn say(&mut self, text: &str) {
        (self.out)(text);
    }

    fn welcome(&mut self) -> Result<(), TourError> {
        // 1. The machine.
        let environment = self.guest.environment();
        let milliseconds = environment.boot_cycles as f64 / f64::from(environment.tsc_khz.max(1));
        let mut text = format!(
            "{STRONG}FreeBSD's kernel memory of April 2008, alive in a virtual machine{STRONG:#}\n\
             \n"
        );
        let _ = writeln!(
            text,
            "A kernel has just booted on {} KVM: {} MiB of memory, body at {}\nprivilege, \
             {milliseconds:.2} ms from its first instruction to its first request.\n",
            environment.kvm.name(),
            environment.memory >> 20,
            environment.privilege.name(),
        );
        // 2. The maps that the tour visits.
        for map in [MapId::KERNEL, MapId::KMEM] {
            let stats = self.guest.map_stats(map)?;
            let size = size(stats.max.since(stats.min));
            let entries = if stats.entries == 1 {
                "1 entry".to_owned()
            } else {
                format!("{} entries", stats.entries)
            };
            let _ = writeln!(
                text,
                "{:<10} {} .. {}  {size}, {entries}",
                map_name(map),
                stats.min,
                stats.max
            );
        }
        // 3. The signs of the picture.
        let mark = |mark: char| format!("{FAINT}{mark}{FAINT:#}");
        let _ = writeln!(
            text,
            "\nA bar shows {COLUMNS} pages of 4 KiB: {} or {} memory (another sign for another \
             entry),\n{} an entry without memory, {} a submap, {} nothing. PTE lines tell what \
             changed in\nthe page tables; free pages also pay for page-table pages and map \
             entries.",
            mark('#'),
            mark('@'),
            mark('-'),
            mark('~'),
            mark('.')
        );
        self.say(&text);
        Ok(())
    }

    /// Does one stop and shows it. The operation's answer comes back.
    fn stage(&mut self, stage: &Stage) -> Result<Outcome, TourError> {
        self.stop.check()?;
        self.announce(stage);
        let free_before = self.guest.meter()?.v_free_count.get();
        let before = Window::look(self.guest, stage.map, stage.from)?;
        let response = self.guest.call(ThreadId::MAIN, stage.op)?;
        let after = Window::look(self.guest, stage.map, stage.from)?;
        let free_after = self.guest.meter()?.v_free_count.get();
        let result = StepResult::Given(response.outcome);
        let mut text = format!(
            "   returned {STRONG}{result}{STRONG:#}  {FAINT}({} cycles){FAINT:#}\n",
            response.cycles
        );
        text.push_str(&after.bar());
        text.push_str(&after.entries());
        text.push_str(&after.changes(&before));
        let _ = writeln!(
            text,
            "   free {} -> {}",
            count(free_before, "page"),
            count(free_after, "page")
        );
        self.say(&text);
        let (line, runner, verb, cycles) =
            (self.number, Runner::DEFAULT, stage.verb, response.cycles);
        self.steps.push(Step { runner, cycles, ..Step::plain(line, verb, result) });
        Ok(response.outcome)
    }

    fn announce(&mut self, stage: &Stage) {
        self.number += 1;
        let mut text = format!("\n{STRONG}{:>2} {}{STRONG:#}\n", self.number, stage.call);
        for line in stage.story {
            let _ = writeln!(text, "   {line}");
        }
        self.say(&text);
    }

    /// A stop that gives an address.
    fn address(&mut self, stage: &Stage) -> Result<GuestVirt, TourError> {
        match self.stage(stage)? {
            Outcome::Value(address) => Ok(GuestVirt::new(address)),
            other => Err(unexpected(stage, "an address", &StepResult::Given(other))),
        }
    }

    /// A stop that gives nothing but a good end.
    fn ok(&mut self, stage: &Stage) -> Result<(), TourError> {
        match self.stage(stage)? {
            Outcome::Ok => Ok(()),
            other => Err(unexpected(stage, "ok", &StepResult::Given(other))),
        }
    }

    /// The last stop: the guest must die of it.
    fn fatal(&mut self, stage: &Stage) -> Result<Box<Crash>, TourError> {
        self.announce(stage);
        let crash = match self.guest.call(ThreadId::MAIN, stage.op) {
            Err(GuestError::Crashed(crash)) => crash,
            Err(error) => return Err(error.into()),
            Ok(response) => {
                return Err(unexpected(stage, "a panic", &StepResult::Given(response.outcome)));
            }
        };
        let mut text = String::from("   panic\n");
        for line in wrapped(&crash.message, 74) {
            let _ = writeln!(text, "      {STRONG}{line}{STRONG:#}");
        }
        // The standard library's part of it says little.
        let ours =
            |frame: &&Frame| frame.file.as_ref().is_none_or(|file| !file.starts_with("core/"));
        for frame in crash.backtrace.iter().filter(ours).take(6) {
            let _ = writeln!(text, "      {frame}");
        }
        self.say(&text);
        let result = StepResult::Panicked(crash.message.clone());
        let (line, runner, verb) = (self.number, Runner::DEFAULT, stage.verb);
        self.steps.push(Step { runner, ..Step::plain(line, verb, result) });
        Ok(crash)
    }
}

fn unexpected(stage: &Stage, expected: &'static str, got: &StepResult) -> TourError {
    TourError::Unexpected { call: stage.call.clone(), expected, got: got.to_string() }
}

/// The words of `text` in lines of at most `columns` characters, as far as the words allow.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A size in the largest unit that gives a whole number.
fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        bytes if bytes >= 1 << 20 => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
        bytes => count(bytes / PAGE_SIZE, "page"),
    }
}
