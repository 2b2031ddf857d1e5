//! A read that survives its fault (`pcb_onfault`, `fubyte` of FreeBSD's `support.S`).
//!
//! Only the instruction at [`probe_load`] may fault in this way; the fault handler then continues
//! behind it, with code that reports that nothing was mapped.

use core::arch::naked_asm;

use vmkern_abi::addr::GuestVirt;

/// What [`probe_load`] returns, in RAX and RDX.
#[repr(C)]
struct Loaded {
    value: u64,
    is_there: u64,
}

/// Reads the word at RDI. The first instruction is the one that may fault.
#[unsafe(naked)]
extern "C" fn probe_load(va: u64) -> Loaded {
    naked_asm!(
        "mov rax, [rdi]",
        "mov edx, 1",
        "ret",
        ".global probe_fault",
        "probe_fault:",
        "xor eax, eax",
        "xor edx, edx",
        "ret",
    )
}

unsafe extern "C" {
    static probe_fault: u8;
}

/// The word at `va`, a canonical address, or `None` if the fault could not be resolved.
#[must_use]
pub fn load(va: GuestVirt) -> Option<u64> {
    let loaded = probe_load(va.get());
    (loaded.is_there != 0).then_some(loaded.value)
}

/// Whether the fault at `rip` is one of [`load`]'s; if so, sets `rip` to the address at which to
/// continue.
#[must_use]
pub fn recover(rip: &mut GuestVirt) -> bool {
    let load: extern "C" fn(u64) -> Loaded = probe_load;
    if rip.get() != load as usize as u64 {
        return false;
    }
    *rip = GuestVirt::new((&raw const probe_fault).addr() as u64);
    true
}
