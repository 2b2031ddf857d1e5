//! Single instructions for which Rust has no function.

use core::arch::asm;

/// Writes a byte to an I/O port. Ports below 0x800 are open at both privileges.
///
/// # Safety
/// The device behind the port does nothing that breaks memory safety.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: by this function's contract.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    }
}

/// Reads a byte from an I/O port.
///
/// # Safety
/// As for [`outb`].
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: by this function's contract.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// The time-stamp counter, read after everything before it has completed.
#[must_use]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the TSC has no effect.
    unsafe {
        asm!(
            "lfence", "rdtsc",
            out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags)
        )
    }
    u64::from(high) << 32 | u64::from(low)
}

/// The time-stamp counter, read at about this point.
#[must_use]
#[inline]
pub fn rdtsc_unordered() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the TSC has no effect.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Drops the translation of one page.
///
/// # Safety
/// The body runs at CPL0.
pub unsafe fn invlpg(va: u64) {
    // SAFETY: dropping a translation is always allowed at CPL0.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) }
}

/// Drops all translations, global ones too, by switching CR4.PGE off and on.
///
/// # Safety
/// The body runs at CPL0, and `with_pge` is the value of CR4.
pub unsafe fn toggle_pge(with_pge: u64) {
    const PGE: u64 = 1 << 7;
    // SAFETY: CR4 gets its own value back.
    unsafe {
        asm!(
            "mov cr4, {}", "mov cr4, {}",
            in(reg) with_pge & !PGE, in(reg) with_pge,
            options(nostack, preserves_flags)
        );
    }
}
