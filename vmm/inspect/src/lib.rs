//! Inspects a guest: reads its counters, maps and page tables out of its memory.
//!
//! Inspection never asks the kernel anything. It follows the kernel's own pointers through the
//! kernel's own page tables, starting from the control region, and trusts none of them: every
//! address is translated and bounds-checked, every list is checked against its count and its order,
//! and every contradiction becomes an [`InspectError`] that names the structure and the address.
//!
//! | what | where |
//! |---|---|
//! | memory and CPUs to look into | [`Source`]: a [`Dump`], or a guest that `vmkern` runs |
//! | a consistent look at them | [`View`] |
//! | reports | [`report`], as data, and [`draw`], as text |
//! | verification of every structure | [`check`] |
//!
//! The crate depends on the layout of shared memory (`vmkern-abi`), but not on KVM or on the
//! guest's kernel. So its findings are those of an independent witness, and a dump can be read on a
//! host that could not run the guest. Only two things depend on the host's system: a dump is mapped
//! (memmap2), and the holes of its file are found with `lseek` on Linux; on other systems all of
//! the file counts as bytes.
//!
//! ```no_run
//! use vmkern_inspect::{Dump, Inspection, Report, Symbols, View, What};
//!
//! let dump = Dump::open("guest.dump")?;
//! let view = View::new(&dump)?;
//! let summary = Inspection::of("guest.dump", &view, &What::Summary, &Symbols::none())?;
//! print!("{}", vmkern_inspect::draw::draw(&summary));
//! assert!(Report::of(&dump)?.is_clean());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod check;
pub mod cpu;
pub mod crash;
pub mod draw;
pub mod dump;
mod error;
mod handshake;
mod list;
pub mod ram;
mod read;
pub mod report;
mod source;
pub mod style;
pub mod symbols;
#[cfg(test)]
mod testing;
pub mod text;
mod tlb;
mod view;

pub use self::check::{CheckStats, Finding, Report, Updating};
pub use self::cpu::{CpuState, GPR_NAMES, Registers, RunState, Standing, Unstoppable, paging_of};
pub use self::crash::{Crash, Location, NoCrashRecord};
pub use self::dump::Dump;
pub use self::error::InspectError;
#[doc(hidden)]
pub use self::error::chain;
pub use self::handshake::{AbiMismatch, Handshake, shake};
pub use self::list::List;
pub use self::ram::{MEMORY_MAX, MEMORY_MIN, NotRam, PAGE_WORDS, PageWords};
pub use self::read::{
    EntryView, Leaf, Leaves, MapStats, ObjectView, PageRun, StallTimes, ThreadView,
};
pub use self::report::{Inspection, NotThere, What, WhatError};
pub use self::source::{Anchors, Source};
pub use self::symbols::{Frame, Symbols};
pub use self::view::View;
