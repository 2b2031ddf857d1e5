//! Looking into a guest: its counters, maps, threads and page tables, read out of its memory.
//!
//! The kernel is never asked. Its own pointers are followed through its own page tables, and none
//! of them is trusted. [`Guest::inspect`](crate::Guest::inspect) makes a report of one thing,
//! [`draw`] makes text of it, [`Guest::look`](crate::Guest::look) gives the [`View`] for what no
//! report says:
//!
//! ```
//! use vmkern::inspect::{What, draw};
//! use vmkern::prelude::*;
//!
//! let guest = Guest::builder().launch()?;
//! let maps = guest.inspect("my guest", &What::Maps)?;
//! assert!(draw::draw(&maps).contains("kmem_map"));
//!
//! let counters = guest.look(|view| view.meter())?;
//! assert!(counters.v_free_count.get() > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The same works on a [`Dump`](crate::dump::Dump). All of it is crate `vmkern-inspect`, which
//! needs neither KVM nor Linux and can be depended on alone.

pub use vmkern_inspect::{
    AbiMismatch, Anchors, CpuState, Crash, EntryView, Frame, InspectError, Inspection, Leaf,
    Leaves, List, Location, MEMORY_MAX, MEMORY_MIN, MapStats, NoCrashRecord, NotRam, NotThere,
    ObjectView, PAGE_WORDS, PageRun, PageWords, Registers, RunState, Source, StallTimes, Standing,
    Symbols, ThreadView, Unstoppable, View, What, WhatError, draw, report,
};
