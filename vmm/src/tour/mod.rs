//! The tour: what `vmkern run` shows without a script.
//!
//! Everything on it is done by a guest while one looks: each stop calls a function of the kernel,
//! and shows what came back, what the map looks like then, and which page-table entries changed.
//! Nothing is told that was not read out of the guest's memory.
//!
//! The stops are in chapters ([`CHAPTERS`]), each of which can be taken alone. A chapter gives back
//! what it took, so that the next one finds the guest as a boot left it, but for a submap and a
//! thread; the last chapter ends with the guest's death. A chapter explains the letters of its
//! page-table entries and its counts of cycles where it first shows them.

mod chapters;
mod legend;
mod stage;
mod window;

use std::fmt::Write as _;

use thiserror::Error;
use vmkern_abi::control::MapId;
use vmkern_abi::pte::PteFlags;

pub use self::chapters::{CHAPTERS, Chapter};
use self::window::{COLUMNS, size};
use crate::inspect::InspectError;
use crate::script::{FAINT, STRONG, Step, Stop, TargetError, map_name};
use crate::{Crash, Guest, GuestError};

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
    /// The reader wants to see no more.
    #[error("the reader left")]
    Left,
}

vmkern_inspect::debug_as_printed!(TourError);

/// What is done between two stops; [`TourError::Left`] ends the tour.
pub type Pause<'p> = &'p mut dyn FnMut() -> Result<(), TourError>;

/// Shows `chapters` in `guest`. Calls `pause` before each stop but the first; the time limits of
/// `guest` and `stop` begin anew after it.
pub fn run(
    guest: &mut Guest,
    chapters: &[&Chapter],
    stop: &Stop,
    out: Out<'_>,
    pause: Pause<'_>,
) -> Taken {
    let (explained, has_counted) = (PteFlags::empty(), false);
    let mut tour =
        Tour { guest, stop, out, pause, number: 0, steps: Vec::new(), explained, has_counted };
    let end = tour.take(chapters);
    Taken { steps: tour.steps, end }
}

/// What came of a tour.
#[derive(Debug)]
pub struct Taken {
    /// The steps that were taken, a stop's number in place of a line.
    pub steps: Vec<Step>,
    /// The guest's crash where the last chapter has one, or why the tour did not come to its end.
    pub end: Result<Option<Box<Crash>>, TourError>,
}

/// A tour that is being taken.
pub(crate) struct Tour<'t> {
    guest: &'t mut Guest,
    stop: &'t Stop,
    out: Out<'t>,
    pause: Pause<'t>,
    /// That of the last stop.
    number: usize,
    steps: Vec<Step>,
    /// Flags of page-table entries whose letters this chapter has explained.
    explained: PteFlags,
    /// Whether this chapter has shown a count of cycles.
    has_counted: bool,
}

/// What is said at the end.
const FAREWELL: &str = "
That is all. Write your own and run it with `vmkern run FILE.kmem`: the scripts
in tests/scripts show the language, `vmkern run --help` the options.
";

impl Tour<'_> {
    /// Shows `chapters`, one after the other.
    fn take(&mut self, chapters: &[&Chapter]) -> Result<Option<Box<Crash>>, TourError> {
        self.welcome()?;
        let mut crash = None;
        for chapter in chapters {
            self.begin(chapter);
            crash = (chapter.show)(self)?;
        }
        if !chapters.is_empty() {
            self.say(FAREWELL);
        }
        Ok(crash)
    }

    fn say(&mut self, text: &str) {
        (self.out)(text);
    }

    /// The head of a chapter.
    fn begin(&mut self, chapter: &Chapter) {
        (self.explained, self.has_counted) = (PteFlags::empty(), false);
        let rule = "-".repeat(76 - chapter.title.len().min(70));
        let (title, name) = (chapter.title, chapter.name);
        self.say(&format!(
            "\n{STRONG}{title}{STRONG:#} {FAINT}{rule}{FAINT:#}\n\
             {FAINT}vmkern run --tour {name}{FAINT:#}\n"
        ));
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
