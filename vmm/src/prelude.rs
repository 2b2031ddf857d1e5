//! What nearly every program with a guest names, for one `use`.
//!
//! ```
//! use vmkern::prelude::*;
//!
//! let mut guest = Guest::builder().launch()?;
//! let alloc = Op::KmemAlloc { map: MapId::KERNEL, size: 8192 };
//! assert!(matches!(guest.call(ThreadId::MAIN, alloc)?.outcome, Outcome::Value(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use crate::{
    Context, Crash, Guest, GuestBuilder, GuestError, GuestPhys, GuestVirt, KernReturn, LaunchError,
    MallocFlags, MapId, MapKind, Op, Outcome, Response, ThreadId,
};
