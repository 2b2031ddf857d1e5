//! What the memory system needs of a CPU and of physical memory.

use core::fmt;
use core::ptr::NonNull;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::pte::PteFlags;

/// A CPU with physical memory behind a direct map.
///
/// # Safety
/// [`Machine::frame`] must return, for every page of the memory described to [`crate::vm::Vm::boot`] and every table
/// page reachable from its root page table, a pointer that is valid for reads and writes up to the end of that page
/// as long as the machine lives, always the same one for the same address. Nobody but the memory system may refer to
/// that memory by Rust references of other types than words of atomics.
#[expect(unsafe_code, reason = "the direct map is the one promise that the type system cannot check")]
pub unsafe trait Machine {
    /// The byte at `pa` in the direct map. The pointer may be used up to the end of the page that holds `pa`.
    fn frame(&self, pa: GuestPhys) -> NonNull<u8>;

    /// Fills the page at `pa` (page aligned) with zeros (FreeBSD's `pagezero`).
    fn zero_page(&self, pa: GuestPhys);

    /// Forgets all cached translations for `[start, end)`, page aligned, global ones and those of the paging
    /// structures above included. On return no CPU uses an old one.
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt);

    /// Bits that every entry of the kernel's page tables carries besides its own: [`PteFlags::U`] where the kernel
    /// body runs at CPL3, nothing at CPL0.
    fn pte_flags_base(&self) -> PteFlags;

    /// Stops the system with a message.
    fn panic(&self, message: fmt::Arguments<'_>) -> !;

    /// Clock ticks since boot.
    fn ticks(&self) -> u64;
}
