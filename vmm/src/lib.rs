//! Boots the vmkern guest kernel on KVM, drives it and looks into it.
//!
//! [`Guest::builder`] is the way in:
//!
//! ```
//! use vmkern::prelude::*;
//!
//! let mut guest = Guest::builder().memory(64 << 20).launch()?;
//! let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
//! let malloc = Op::KmemMalloc { map: MapId::KMEM, size: 12 << 10, flags };
//! let response = guest.call(ThreadId::MAIN, malloc)?;
//! assert!(matches!(response.outcome, Outcome::Value(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate distrusts its guests: what a guest writes is checked before it is used, and a guest
//! that hangs is stopped.
//!
//! What every user needs is at the root, and in the [`prelude`]. The rest has a module for each
//! thing that one does with a guest:
//!
//! | module | what for |
//! |---|---|
//! | [`guest`] | launching guests, having them do operations, their errors |
//! | [`inspect`] | looking into a guest's memory, or into a dump |
//! | [`check`] | whether the kernel's structures agree with each other and with the page tables |
//! | [`dump`] | a guest's memory in a file |
//! | [`script`] | the `.kmem` language |
//! | [`schedule`] | memory pressure by a plan: steps, ramps, and a closed loop |
//! | [`testing`] | guests in tests: typed calls, expectations, a check at the end |
//! | [`doctor`] | what this host can do for guests |
//! | [`bench`](mod@bench) | measurements |
//! | [`abi`] | the layout of the memory that guest and host share |

pub mod bench;
pub mod check;
mod deadline;
mod devices;
pub mod doctor;
pub mod dump;
pub mod guest;
pub mod inspect;
mod kernel;
mod kvm;
pub mod prelude;
pub mod schedule;
pub mod script;
mod spelling;
mod system;
pub mod testing;

// The command `vmkern` is a crate of its own, and reads files, writes them, and styles and cleans
// its text by the same rules as the library. Nobody else should depend on these.
#[doc(hidden)]
pub mod input;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod tour;
#[doc(hidden)]
pub use vmkern_inspect::{style, text};

pub use vmkern_abi as abi;
pub use vmkern_abi::addr::{GuestPhys, GuestVirt};
pub use vmkern_abi::boot::{Privilege, TimeMode};
pub use vmkern_abi::control::{
    Context, KernReturn, MallocFlags, MapId, MapKind, Op, Outcome, Response, WaitMessage,
};

pub use self::guest::{Guest, GuestBuilder, GuestError, LaunchError, ThreadId};
pub use self::inspect::Crash;
