//! The boot CPU's stacks, each above a guard page that is not mapped (see the page tables in
//! `build.rs`).

use core::arch::global_asm;

/// Bytes of the stack on which the kernel body boots and serves requests.
pub const BOOT_BYTES: usize = 32 << 10;
/// Bytes of the stack on which crashes are reported.
pub const EMERGENCY_BYTES: usize = 16 << 10;
/// Bytes for trap frames: room for one [`super::percpu::SLOT`] per nested trap.
pub const TRAP_BYTES: usize = 8 << 10;

// Guards come first: a stack grows down into its guard.
global_asm!(
    ".pushsection .stacks, \"aw\", @nobits",
    ".balign 4096",
    ".global guard_trap_stack, guard_emergency_stack, guard_boot_stack",
    ".global trap_stack, emergency_stack, boot_stack, boot_stack_top",
    "guard_trap_stack: .zero 4096",
    "trap_stack: .zero {trap}",
    "guard_emergency_stack: .zero 4096",
    "emergency_stack: .zero {emergency}",
    ".popsection",
    // The link script places it before the zeroed data, which the boot touches together with its
    // top.
    ".pushsection .stacks.boot, \"aw\", @nobits",
    ".balign 4096",
    "guard_boot_stack: .zero 4096",
    "boot_stack: .zero {boot}",
    "boot_stack_top:",
    ".popsection",
    trap = const TRAP_BYTES,
    emergency = const EMERGENCY_BYTES,
    boot = const BOOT_BYTES,
);

unsafe extern "C" {
    static trap_stack: [u8; TRAP_BYTES];
    static emergency_stack: [u8; EMERGENCY_BYTES];
    static boot_stack: [u8; BOOT_BYTES];
}

/// A stack's bounds.
#[derive(Clone, Copy)]
pub struct Stack {
    bottom: *const u8,
    bytes: usize,
}

// SAFETY: two numbers; no reference to a stack's memory is made from them.
unsafe impl Sync for Stack {}

impl Stack {
    /// The stack of `bytes` bytes from `bottom` on.
    #[must_use]
    pub const fn new(bottom: *const u8, bytes: usize) -> Self {
        Self { bottom, bytes }
    }

    /// Bytes from the lowest address to the top.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes as u64
    }

    /// Lowest address.
    #[must_use]
    pub const fn bottom(self) -> *const u8 {
        self.bottom
    }

    /// First address past the stack, 16-byte aligned.
    #[must_use]
    pub const fn top(self) -> *const u8 {
        // SAFETY: one past the end of the very object that `bottom` points at.
        unsafe { self.bottom.add(self.bytes) }
    }
}

/// The stack for trap frames.
pub const TRAP: Stack = Stack { bottom: (&raw const trap_stack).cast(), bytes: TRAP_BYTES };
/// The stack on which crashes are reported.
pub const EMERGENCY: Stack =
    Stack { bottom: (&raw const emergency_stack).cast(), bytes: EMERGENCY_BYTES };
/// The stack on which the body boots and serves requests.
pub const BOOT: Stack = Stack { bottom: (&raw const boot_stack).cast(), bytes: BOOT_BYTES };
