//! Boots the vmkern guest kernel on KVM, drives it and looks into it.
//!
//! [`Guest::builder`] is the way in:
//!
//! ```no_run
//! use vmkern::{Guest, MallocFlags, MapId, Op, Outcome};
//!
//! let mut guest = Guest::builder().memory(64 << 20).launch()?;
//! let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
//! let response = guest.call(ThreadId::MAIN, Op::KmemMalloc { map: MapId::KMEM, size: 12 << 10, flags })?;
//! assert!(matches!(response.outcome, Outcome::Value(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate distrusts its guests: what a guest writes is checked before it is used, and a guest
//! that hangs is stopped.

pub mod bench;
mod deadline;
mod devices;
pub mod doctor;
mod guest;
pub mod input;
mod kernel;
pub mod kvm;
pub mod output;
pub mod script;
mod spelling;
mod system;
pub mod tour;

pub use vmkern_abi as abi;
pub use vmkern_abi::addr::{GuestPhys, GuestVirt};
pub use vmkern_abi::boot::{Privilege, TimeMode, TunableError, Tunables};
pub use vmkern_abi::control::{
    Allocator, Context, KernReturn, MallocFlags, MapId, MapKind, Op, Outcome, Response,
    WaitMessage, Workload,
};
pub use vmkern_abi::crash::CrashKind;
pub use vmkern_inspect as inspect;
pub use vmkern_inspect::{dump, style, symbols, text};

pub use self::doctor::{Check, CheckStatus, DoctorReport, Need};
pub use self::guest::{
    BootReport, ConfigError, ContractError, DEFAULT_MEMORY, DEFAULT_TIMEOUT, Environment, Guest,
    GuestBuilder, GuestError, InterruptHandle, KvmKind, LaunchError, LogEnd, PAUSE_LIMIT, Pause,
    RequestError, SaveError, ThreadId, Unemulated,
};
pub use self::inspect::dump::{About, OtherKernel, Saved, Saving};
pub use self::inspect::{
    AbiMismatch, Anchors, CheckStats, CpuState, Crash, Dump, EntryView, Finding, Frame,
    InspectError, Inspection, List, Location, MEMORY_MAX, MEMORY_MIN, MapStats, NoCrashRecord,
    NotRam, NotThere, ObjectView, PAGE_WORDS, PageRun, PageWords, Registers, Report, RunState,
    Source, Standing, Symbols, ThreadView, Unstoppable, Updating, View, What, WhatError,
};
pub use self::kernel::{KernelError, KernelFault, KernelImage};
pub use self::kvm::{CpuFailure, CpuFault, KvmError, Missing, NoKvm, NodeAccess};
