//! The I/O APIC (82093AA data sheet), where a machine has one: vmkern's own VMM has none.

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::kva::phys_to_dmap;

/// Where the first I/O APIC of a PC lies.
pub const IOAPIC_AT: GuestPhys = GuestPhys::new(0xfec0_0000);

/// Offset of the register that selects another.
const SELECT: u64 = 0;
/// Offset of the register's window.
const WINDOW: u64 = 0x10;
/// Number of the low half of the first redirection entry.
const REDIRECTION: u32 = 0x10;

fn write(register: u32, value: u32) {
    let base = phys_to_dmap(IOAPIC_AT);
    for (offset, value) in [(SELECT, register), (WINDOW, value)] {
        let at = base.add(offset).get() as *mut u32;
        // SAFETY: the direct map has the page for machines with an I/O APIC
        // (`direct_map::build`), and both registers are 32 bits wide.
        unsafe { at.write_volatile(value) }
    }
}

/// Leads `pin` to `vector` of the CPU that booted: fixed, edge-triggered, active high.
///
/// Edge-triggered, although devices hold their line: the stubs end an interrupt in the local APIC
/// before its cause is gone, and a level would raise it again at once.
pub fn route(pin: u32, vector: u8) {
    write(REDIRECTION + 2 * pin + 1, 0);
    write(REDIRECTION + 2 * pin, vector.into());
}
