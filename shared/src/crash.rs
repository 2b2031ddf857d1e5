//! The record that a dying kernel leaves for the host.
//!
//! Written by the guest into the control region just before it leaves through the exit port, and
//! read by the host once the CPU has stopped. Addresses are raw: the host has the symbols and names
//! them.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::addr::GuestVirt;
use crate::codes::codes;
use crate::field::{Code, Field, Flag};

codes! {
    /// Why the kernel died.
    pub enum CrashKind: u32 {
        /// `panic()`.
        Panic = 1 => "panic",
        /// A page fault that `vm_fault` could not resolve.
        PageFault = 2 => "page-fault",
        /// An exception that the kernel never expects.
        Trap = 3 => "trap",
        /// A stack ran into its guard page.
        StackOverflow = 4 => "stack-overflow",
        /// A fault inside the CPL0 nucleus, or while it built a trap frame.
        Nucleus = 5 => "nucleus",
    }
}

codes! {
    /// A page fault that ends the kernel, for tests of its report: rows of the table in
    /// `docs/faults.md`.
    pub enum FatalFault {
        /// In no entry of kernel_map.
        Hole => "hole",
        /// In no entry of a submap.
        SubmapHole => "submap-hole",
        /// In a range of `kmem_alloc_nofault`.
        NoFault => "nofault",
        /// In a range of a system map that has no object.
        NoObject => "no-object",
        /// In the direct map, where there is no memory.
        DirectMapHole => "dmap-hole",
        /// The fetch of an instruction from kernel memory.
        Execute => "execute",
        /// A write to a range that is read-only.
        ReadOnly => "read-only",
        /// On a page that is wired but missing, and then the free of its range.
        LostPage => "lost-page",
        /// In an interrupt handler.
        Interrupt => "interrupt",
        /// With a mutex held.
        Mutex => "mutex",
        /// In a critical section.
        CriticalSection => "critical-section",
    }
}

/// Longest message in bytes; a longer one is cut.
pub const MESSAGE_MAX: usize = 1024;
/// Deepest backtrace.
pub const FRAMES_MAX: usize = 48;
/// General registers in [`CrashRecord::gpr`], in the order of their x86 encoding: RAX, RCX, RDX,
/// RBX, RSP, RBP, RSI, RDI, R8 to R15.
pub const GPR_COUNT: usize = 16;

/// The record. Valid once `kind` is not 0.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CrashRecord {
    /// Why, written last; 0 until then.
    pub kind: Field<Code<CrashKind>>,
    /// The CPU it happened on.
    pub cpu: Field<u32>,
    /// The kernel thread that ran: its number `N` as in `tN`, or `u32::MAX` for none.
    pub thread: Field<u32>,
    /// Exception vector, or `u32::MAX`.
    pub vector: Field<u32>,
    /// Exception error code.
    pub error_code: Field<u64>,
    /// Where it happened.
    pub rip: Field<GuestVirt>,
    /// RFLAGS there.
    pub rflags: Field<u64>,
    /// CR2 there: the address that faulted.
    pub cr2: Field<GuestVirt>,
    /// CR3 there.
    pub cr3: Field<u64>,
    /// Registers there.
    pub gpr: [Field<u64>; GPR_COUNT],
    /// Bytes of `message` in use.
    pub message_len: Field<u32>,
    /// Words of `frames` in use.
    pub frames_len: Field<u32>,
    /// Set when it happened in an interrupt handler, which only ran on the CPU of `thread`.
    pub in_interrupt: Field<Flag>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// UTF-8 text.
    pub message: [Field<u8>; MESSAGE_MAX],
    /// Return addresses, innermost first.
    pub frames: [Field<GuestVirt>; FRAMES_MAX],
}
