//! Looking into a guest: its counters, maps and page tables, read out of its memory.
//!
//! Inspection never asks the kernel anything. It follows the kernel's own pointers through the
//! kernel's own page tables, starting from the control region, and trusts none of them: every
//! address is translated and bounds-checked, every list is checked against its count and its order,
//! and what is wrong becomes an [`InspectError`] that names the structure and the address. While
//! requests are in flight, a thread is blocked or the clock moves by itself, the vCPU is held for
//! the time of a look; else the kernel is idle.

mod check;
mod clock;
pub mod draw;
mod handshake;
mod image;
mod leaves;
mod list;
mod live;
mod maps;
mod pages;
pub mod report;
mod source;
mod threads;
mod tlb;
mod view;

use std::ops::ControlFlow;
use std::path::Path;

use thiserror::Error;
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::control::MapId;
use vmkern_abi::layout::{KernelRoots, VmMeter};
use vmkern_abi::walk::Walk;

pub use self::check::{CheckStats, Finding, Report, Updating};
pub use self::handshake::AbiMismatch;
pub(crate) use self::handshake::{Handshake, shake};
pub use self::image::{
    About, Image, ImageOpenError, ImageOpenFault, ImageSaveError, OtherKernel, SavedImage, Saving,
};
pub use self::leaves::{Leaf, Leaves};
pub use self::list::List;
pub(crate) use self::live::{Hold, Live};
pub use self::maps::{EntryView, MapStats, ObjectView};
pub use self::pages::PageRun;
pub use self::report::{Inspection, NotThere, What, WhatError};
pub use self::source::{Anchors, CpuState, PAGE_WORDS, PageWords, RunState, Source};
pub use self::threads::ThreadView;
pub use self::view::View;
use crate::guest::Guest;
use crate::kvm::boot::CONTROL;
use crate::kvm::memory::NotRam;
use crate::kvm::{Registers, Unstoppable};
use crate::output::Destination;
use crate::symbols::Symbols;

/// Something in a guest's memory cannot be read, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InspectError {
    /// The kernel has not published where its structures begin.
    #[error("the kernel has not published its {0} yet")]
    NotReady(&'static str),
    /// A structure's address maps to nothing.
    #[error("{what} at {at}: nothing is mapped at {missing}")]
    NotMapped {
        /// The structure.
        what: &'static str,
        /// Its address.
        at: GuestVirt,
        /// The first address of it that is not mapped.
        missing: GuestVirt,
    },
    /// A structure or a page table lies outside of RAM.
    #[error("{what}: {source}")]
    NotRam {
        /// The structure.
        what: &'static str,
        /// The access.
        source: NotRam,
    },
    /// A structure's address is not aligned as its type is.
    #[error("{what} at {at}: the address is not aligned")]
    Misaligned {
        /// The structure.
        what: &'static str,
        /// Its address.
        at: GuestVirt,
    },
    /// A structure contradicts itself or its neighbours.
    #[error("{what} at {at}: {problem}")]
    Damaged {
        /// The structure.
        what: &'static str,
        /// Its address.
        at: GuestVirt,
        /// What is wrong.
        problem: String,
    },
    /// There is no map with this number or at this address.
    #[error("there is no map {:#x}", .0.0)]
    NoSuchMap(MapId),
    /// The range to look at is empty or not page aligned.
    #[error("[{start}, {end}) is not a range of whole pages")]
    BadRange {
        /// First address.
        start: GuestVirt,
        /// First address past the range.
        end: GuestVirt,
    },
    /// The vCPU cannot be held.
    #[error(transparent)]
    Unstoppable(#[from] Unstoppable),
    /// What was asked for does not exist.
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

/// Bytes that an x86 instruction can have.
const INSTRUCTION_MAX: usize = 15;

impl InspectError {
    fn damaged(what: &'static str, at: GuestVirt, problem: impl Into<String>) -> Self {
        Self::Damaged { what, at, problem: problem.into() }
    }

    /// What is wrong, without the structure and its address: for who names these himself.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::Damaged { problem, .. } => problem.clone(),
            Self::NotMapped { at, missing, .. } if missing == at => {
                "nothing is mapped there".to_owned()
            }
            Self::NotMapped { missing, .. } => format!("nothing is mapped at {missing}"),
            Self::Misaligned { .. } => "the address is not aligned".to_owned(),
            Self::NotRam { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }
}

impl Guest {
    /// The kernel's counters, as they are now; of a dead guest, as they were at its death. The
    /// ticks are those of the clock, whether the kernel has had something to do at them or not.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn meter(&self) -> Result<VmMeter, InspectError> {
        self.look(|view| {
            let meter = roots(view)?.1.meter;
            clock::set_ticks(view, &meter);
            Ok(meter)
        })
    }

    /// Microseconds of the guest's clock since its boot: virtual ones, or real ones; of a dead
    /// guest, those until its end.
    ///
    /// # Errors
    /// [`InspectError::NotReady`] while the kernel has no clock; see [`InspectError`].
    pub fn now_micros(&self) -> Result<u64, InspectError> {
        self.look(|view| {
            clock::now(view).map(|now| now.micros).ok_or(InspectError::NotReady("clock"))
        })
    }

    /// Size and use of a map.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn map_stats(&self, map: MapId) -> Result<MapStats, InspectError> {
        self.look(|view| maps::stats(view, map))
    }

    /// The entries of a map in the order of addresses.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn map_entries(&self, map: MapId) -> Result<Vec<EntryView>, InspectError> {
        self.look(|view| maps::entries(view, map))
    }

    /// All threads of the kernel, in the order in which they were made.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn threads(&self) -> Result<Vec<ThreadView>, InspectError> {
        self.look(|view| threads::threads(view, &roots(view)?.1.sched))
    }

    /// What the page tables map in `[start, end)`, both page aligned: neighbouring pages of one
    /// size with equal flags make one run. What is not mapped is left out.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn page_runs(
        &self,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<Vec<PageRun>, InspectError> {
        self.look(|view| pages::runs(view, start, end))
    }

    /// The host's own walk of the guest's page tables to `va`.
    ///
    /// # Errors
    /// See [`InspectError`]. That nothing is mapped there is no error.
    pub fn vtop(&self, va: GuestVirt) -> Result<Walk, InspectError> {
        self.look(|view| view.walk(va))
    }

    /// Copies guest memory out, from virtual address `start` on.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn read_memory(&self, start: GuestVirt, buffer: &mut [u8]) -> Result<(), InspectError> {
        self.look(|view| view.read("memory", start, buffer))
    }

    /// Looks at `what`; the report calls the guest `name`. Works on a dead guest too.
    ///
    /// # Errors
    /// [`InspectError::NotThere`] when the map or the page that `what` names does not
    /// exist; see [`InspectError`] for those that concern the whole guest. Damage is no error: the
    /// report tells it.
    pub fn inspect(&self, name: &str, what: &What) -> Result<Inspection, InspectError> {
        let none = Symbols::none();
        let symbols = if what.has_backtraces() { self.symbols() } else { &none };
        self.look(|view| Ok(Inspection::of(name, view, what, symbols)?))
    }

    /// The bytes at RIP: as many as an instruction can have, or as can be read.
    pub(crate) fn code_at(&self, registers: &Registers) -> Vec<u8> {
        let mut code = [0; INSTRUCTION_MAX];
        let read = |start: GuestVirt, buffer: &mut [u8]| {
            if registers.paging() {
                let source = self.live(Hold::No);
                source.is_ok_and(|source| {
                    let view = View::through(&source, GuestPhys::new(registers.cr3).page());
                    view.read("code", start, buffer).is_ok()
                })
            } else {
                self.hypervisor.ram.read(GuestPhys::new(start.get()), buffer).is_ok()
            }
        };
        let readable =
            (1..=INSTRUCTION_MAX).rev().find(|&len| read(registers.rip, &mut code[..len]));
        code[..readable.unwrap_or(0)].to_vec()
    }

    /// This guest's memory and CPUs.
    pub(crate) fn live(&self, hold: Hold) -> Result<Live<'_>, Unstoppable> {
        let anchors = || Anchors::of(CONTROL, self.link.region());
        Live::new(&self.hypervisor, hold, anchors)
    }

    /// Writes an image of this guest's memory and CPUs to `path`, as [`Destination::of_bytes`]
    /// understands it: in place of a file that is there, into a device or a FIFO. The guest is held
    /// meanwhile. Works on a dead guest too: the image shows it as it died.
    ///
    /// # Errors
    /// See [`ImageSaveError`].
    pub fn save_image(&self, path: impl AsRef<Path>) -> Result<SavedImage, ImageSaveError> {
        self.save_image_to(Destination::of_bytes(path)?, "", &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Guest::save_image`], to what is known already; the image says that the guest ran
    /// `program`. `progress` is told how far it is at each MiB, and now and then while there is no
    /// room, and ends it by [`ControlFlow::Break`].
    ///
    /// # Errors
    /// See [`ImageSaveError`].
    pub fn save_image_to(
        &self,
        to: Destination,
        program: &str,
        progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
    ) -> Result<SavedImage, ImageSaveError> {
        let source = self.live(Hold::Yes).map_err(InspectError::from)?;
        let about = About { program: program.to_owned(), build_id: self.kernel().build_id() };
        image::save(&source, to, &about, progress)
    }

    /// Has `f` look at the guest, which is held meanwhile if it could change.
    ///
    /// # Errors
    /// When the vCPU cannot be held or the kernel has no page tables yet, and what `f` says.
    pub fn look<T>(
        &self,
        f: impl FnOnce(&View<'_>) -> Result<T, InspectError>,
    ) -> Result<T, InspectError> {
        let source = self.live(if self.may_change() { Hold::Yes } else { Hold::No })?;
        f(&View::new(&source)?)
    }
}

/// The kernel's table of roots, with its address.
fn roots(view: &View<'_>) -> Result<(KPtr<KernelRoots>, KernelRoots), InspectError> {
    const WHAT: &str = "kernel roots";
    let at = view.roots().non_null().ok_or(InspectError::NotReady("roots"))?;
    let roots = view.copy(WHAT, at)?;
    match roots.abi_version.get() {
        vmkern_abi::ABI_VERSION => Ok((at, roots)),
        version => Err(InspectError::damaged(
            WHAT,
            at.addr(),
            format!("ABI version {version}, expected {}", vmkern_abi::ABI_VERSION),
        )),
    }
}
