//! Boots the vmkern guest kernel on KVM, drives it and looks into it.
//!
//! [`Guest::builder`] is the way in:
//!
//! ```no_run
//! use vmkern::{Guest, MallocFlags, MapId, Op, Outcome};
//!
//! let mut guest = Guest::builder().memory(64 << 20).launch()?;
//! let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
//! let response = guest.call(0, Op::KmemMalloc { map: MapId::KMEM, size: 12 << 10, flags })?;
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
pub mod inspect;
mod kernel;
pub mod kvm;
pub mod output;
pub mod script;
mod spelling;
pub mod symbols;
mod system;
pub mod text;
pub mod tour;

pub use vmkern_abi as abi;
pub use vmkern_abi::addr::{GuestPhys, GuestVirt};
pub use vmkern_abi::boot::{Privilege, TimeMode, TunableError, Tunables};
pub use vmkern_abi::control::{
    Allocator, Context, KernReturn, MallocFlags, MapId, MapKind, Op, Outcome, Response, WaitMessage,
};
pub use vmkern_abi::crash::CrashKind;

pub use self::doctor::{Check, CheckStatus, DoctorReport, Need};
pub use self::guest::{
    BootReport, Builder, ConfigError, ContractError, Crash, DEFAULT_MEMORY, DEFAULT_TIMEOUT,
    Environment, Guest, GuestError, InterruptHandle, KvmKind, LaunchError, Location, LogEnd,
    MEMORY_MAX, MEMORY_MIN, PAUSE_LIMIT, Pause, THREADS, Unemulated,
};
pub use self::inspect::{
    AbiMismatch, About, Anchors, CheckStats, CpuState, EntryView, Finding, Image, ImageOpenError,
    ImageOpenFault, ImageSaveError, InspectError, Inspection, List, MapStats, NotThere, ObjectView,
    OtherKernel, PAGE_WORDS, PageRun, PageWords, Report, RunState, SavedImage, Saving, Source,
    ThreadView, Updating, View, What, WhatError,
};
pub use self::kernel::{KernelError, KernelFault, KernelImage};
pub use self::kvm::memory::NotRam;
pub use self::kvm::{
    CpuFailure, CpuFault, KvmError, Missing, NoKvm, NodeAccess, Registers, Standing, Unstoppable,
};
pub use self::symbols::{Frame, Symbols};
