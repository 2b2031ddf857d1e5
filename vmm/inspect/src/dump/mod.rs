//! Dumps: a guest's memory and CPUs in a file.
//!
//! [`save`] writes a dump of any [`Source`], and [`Dump`] makes it a source again. Nothing in the
//! file is trusted: it may be cut off, damaged, or made to do harm.

mod agree;
mod extents;
mod fault;
mod format;
mod mapping;
mod parse;
mod save;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::paging::Paging;

pub use self::fault::{OpenError, OpenFault, SaveError};
use self::mapping::Mapping;
pub use self::save::{About, Saved, Saving, Sink, save};
use crate::cpu::{CpuState, paging_of};
use crate::error::InspectError;
use crate::handshake::shake;
use crate::ram::{NotRam, PAGE_WORDS, PageWords};
use crate::source::{Anchors, Source};
use crate::symbols::{self, Symbols};

/// Stands for every page that the file does not hold.
static ZERO_PAGE: PageWords = [const { AtomicU64::new(0) }; PAGE_WORDS];

/// A run of RAM: `[start, end)`. The file holds the part up to `stored_end`, at `offset`; the rest
/// is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: GuestPhys,
    end: GuestPhys,
    stored_end: GuestPhys,
    offset: u64,
}

/// A memory dump, mapped from its file. The file must not be truncated while the value lives.
#[derive(Debug)]
pub struct Dump {
    mapping: Mapping,
    /// Ascending, not overlapping.
    runs: Vec<Run>,
    /// The run found by the last look-up: the next one most often needs it again.
    recent: AtomicUsize,
    segments: Vec<Range<GuestPhys>>,
    cpus: Vec<CpuState>,
    anchors: Anchors,
    paging: Paging,
    abi_version: u32,
    program: String,
    build_id: Option<Vec<u8>>,
}

impl Dump {
    /// The dump in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is not a memory dump, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        Self::read(path).map_err(|fault| OpenError { path: path.to_path_buf(), fault })
    }

    fn read(path: &Path) -> Result<Self, OpenFault> {
        // 1. Refuse a pipe before opening it: open would wait for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(OpenFault::NotAFile);
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let parsed = parse::parse(&file, len)?;
        let runs: Vec<Run> =
            parsed.runs.iter().flat_map(|&run| extents::split(&file, run)).collect();
        let mapping = Mapping::new(&file, len)?;
        // 2. RAM, from the runs that the file describes.
        let mut segments: Vec<Range<GuestPhys>> = Vec::new();
        for run in &runs {
            match segments.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => segments.push(run.start..run.end),
            }
        }
        agree::ram(&parsed.guest, &segments)?;
        let paging = paging_of(Paging::from_word(parsed.guest.paging), &parsed.cpus);
        // 3. The notes and the memory must not contradict each other.
        let dump = Self {
            mapping,
            runs,
            recent: AtomicUsize::new(0),
            segments,
            cpus: parsed.cpus,
            anchors: parsed.guest.anchors(),
            paging,
            abi_version: parsed.guest.abi_version,
            program: parsed.program,
            build_id: parsed.build_id,
        };
        agree::control(&parsed.guest, &dump)?;
        shake(&dump)?;
        Ok(dump)
    }

    /// The ABI version of the VMM that saved the dump.
    #[must_use]
    pub fn abi_version(&self) -> u32 {
        self.abi_version
    }

    /// The program that the guest ran: the name of a script, or what [`About::program`] said.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The GNU build ID of the kernel that ran, if it had one.
    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// Symbols for the addresses of the kernel that ran. `kernel` is the content of that kernel's
    /// ELF file.
    ///
    /// # Errors
    /// [`OtherKernel`] when it is another kernel, or when one of the two has no build ID.
    pub fn symbols(&self, kernel: &[u8]) -> Result<Symbols, OtherKernel> {
        let theirs = symbols::build_id(kernel);
        if self.build_id.is_some() && self.build_id == theirs {
            return Ok(Symbols::of(kernel));
        }
        Err(OtherKernel { dump: self.build_id.clone(), kernel: theirs })
    }

    fn run(&self, at: GuestPhys) -> Option<&Run> {
        let holds = |run: &&Run| run.start <= at && at < run.end;
        if let Some(run) = self.runs.get(self.recent.load(Ordering::Relaxed)).filter(holds) {
            return Some(run);
        }
        let index = self.runs.partition_point(|run| run.start <= at).checked_sub(1)?;
        let run = self.runs.get(index).filter(holds)?;
        self.recent.store(index, Ordering::Relaxed);
        Some(run)
    }
}

impl Source for Dump {
    fn segments(&self) -> &[Range<GuestPhys>] {
        &self.segments
    }

    fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        let outside = NotRam { start: at, len: 1 };
        let run = self.run(at).ok_or(outside)?;
        if at >= run.stored_end {
            return Ok(&ZERO_PAGE);
        }
        self.mapping.page(run.offset + at.page().since(run.start)).ok_or(outside)
    }

    fn cpus(&self) -> Result<Vec<CpuState>, InspectError> {
        Ok(self.cpus.clone())
    }

    fn anchors(&self) -> Anchors {
        self.anchors
    }

    fn paging(&self) -> Paging {
        self.paging
    }

    fn holds(&self, at: GuestPhys) -> bool {
        self.run(at).is_some_and(|run| at < run.stored_end)
    }

    fn populated(&self) -> Vec<Range<GuestPhys>> {
        self.runs
            .iter()
            .filter(|run| run.stored_end > run.start)
            .map(|run| run.start..run.stored_end)
            .collect()
    }
}

/// The kernel at hand is not the one whose memory a dump holds, so its symbols would name the wrong
/// functions.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the dump is of kernel {}, and the symbols at hand are of kernel {}",
    name(dump),
    name(kernel)
)]
pub struct OtherKernel {
    /// The build ID in the dump.
    pub dump: Option<Vec<u8>>,
    /// The build ID of the kernel at hand.
    pub kernel: Option<Vec<u8>>,
}

crate::debug_as_printed!(OtherKernel);

fn name(build_id: &Option<Vec<u8>>) -> String {
    match build_id {
        Some(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        None => "without a build ID".to_owned(),
    }
}
