//! How vmkern's own loader enters the kernel: directly in long mode.
//!
//! PVH enters a kernel in 32-bit protected mode, and the kernel needs some forty instructions from
//! there to its own tables. Where a KVM emulates CPL0, each of them costs up to a microsecond, and
//! each mode on the way costs a set of shadow page tables. So the image has a second note beside
//! the PVH note: an [`EntryNote`], which names the tables that the image holds ready. A loader that
//! knows it sets the registers itself, by two calls of KVM. Any other loader enters by PVH, and the
//! code there ends in the same state as described here.
//!
//! **State at entry**, besides what the note names:
//!
//! - long mode, CPL 0: CR0, CR4 and EFER as [`CR0`], [`CR4`] and [`EFER`] say;
//! - CS: selector [`CS`], 64-bit code, flat. DS, ES, FS, GS and SS: null. LDTR: null. TR: a busy
//!   64-bit TSS;
//! - RFLAGS: 2, so interrupts are off;
//! - RDI: physical address of `hvm_start_info`, which is the same as for PVH;
//! - ECX: [`user_from`] of the privilege that the command line asks for;
//! - every other general register: 0.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{GuestPhys, GuestVirt};
use crate::boot::Privilege;

/// Name of the note.
pub const NOTE_NAME: &str = "vmkern";
/// Type of the note.
pub const NOTE_TYPE: u32 = 1;
/// [`EntryNote::version`] of the protocol that is described here. A loader that does not know the
/// version of a note takes the kernel for one without the note.
pub const VERSION: u32 = 1;

/// CR0: paging, WP, NE, ET, MP, PE.
pub const CR0: u64 = 0x8001_0033;
/// CR4: PAE, PGE, OSFXSR, OSXMMEXCPT.
pub const CR4: u64 = 0x6a0;
/// EFER: LME, LMA, NXE.
pub const EFER: u64 = 0xd00;
/// Selector of the code segment.
pub const CS: u16 = 8;

/// Instructions that the kernel times on its way in, at CPL0: see [`EMULATED_FROM`].
pub const TIMED_INSTRUCTIONS: u64 = 4;
/// CPL0 is emulated if [`TIMED_INSTRUCTIONS`] took this many cycles or more. A processor needs
/// about 50 for them. Emulation needs a half to a whole microsecond for each: 4,000 cycles in all
/// where the TSC runs at 2 GHz. An interrupt of the host in between looks like emulation; the
/// kernel then runs at CPL3 on a processor, which is slower but equally correct.
pub const EMULATED_FROM: u32 = 1_000;

/// The value that the kernel expects in ECX: it runs its body at CPL3 if [`TIMED_INSTRUCTIONS`]
/// took this many cycles or more.
#[must_use]
pub const fn user_from(privilege: Privilege) -> u32 {
    match privilege {
        Privilege::Auto => EMULATED_FROM,
        Privilege::User => 0,
        // That is two seconds at least.
        Privilege::Supervisor => u32::MAX,
    }
}

/// The contents of the note, in the layout of the file: where the kernel's code, stack and tables
/// lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryNote {
    /// [`VERSION`].
    pub version: u32,
    /// Limit of the task-state segment.
    pub tss_limit: u32,
    /// Selector of the task-state segment.
    pub tss_selector: u16,
    /// Limit of the global descriptor table.
    pub gdt_limit: u16,
    /// Limit of the interrupt descriptor table.
    pub idt_limit: u16,
    /// Zero.
    pub reserved: u16,
    /// The first instruction.
    pub rip: GuestVirt,
    /// The stack.
    pub rsp: GuestVirt,
    /// The root page table.
    pub cr3: GuestPhys,
    /// The global descriptor table.
    pub gdt_base: GuestVirt,
    /// The interrupt descriptor table.
    pub idt_base: GuestVirt,
    /// The task-state segment.
    pub tss_base: GuestVirt,
    /// Base of GS.
    pub gs_base: GuestVirt,
}

impl EntryNote {
    /// Bytes of it.
    pub const LEN: usize = size_of::<Self>();
}

// The assembly of the kernel writes the fields one after the other.
const _: () = {
    assert!(EntryNote::LEN == 72);
    assert!(offset_of!(EntryNote, tss_selector) == 8 && offset_of!(EntryNote, rip) == 16);
};
