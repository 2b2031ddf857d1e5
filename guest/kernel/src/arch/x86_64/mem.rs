//! The memory functions that compiled code calls, and the two symbols that unwinding would need.
//!
//! `rep movsb` and `rep stosb` are microcoded block operations on every CPU with ERMS; a page takes
//! them 80 ns.

use core::arch::asm;

/// C's `memcpy`.
///
/// # Safety
/// C's contract: both ranges are valid and do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: by this function's contract; the direction flag is clear in compiled code.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") n => _, inout("rdi") dest => _, inout("rsi") src => _,
            options(nostack, preserves_flags)
        );
    }
    dest
}

/// C's `memmove`.
///
/// # Safety
/// C's contract: both ranges are valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    if (dest as usize).wrapping_sub(src as usize) >= n {
        // SAFETY: copying upward reads each byte before it is overwritten.
        return unsafe { memcpy(dest, src, n) };
    }
    // SAFETY: copying downward from the last byte does the same where `dest` is inside the source.
    // The direction flag is clear again at the end; an interrupt handler clears it for itself.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") n => _,
            inout("rdi") dest.wrapping_add(n).wrapping_sub(1) => _,
            inout("rsi") src.wrapping_add(n).wrapping_sub(1) => _,
            options(nostack)
        );
    }
    dest
}

/// C's `memset`.
///
/// # Safety
/// C's contract: the range is valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dest: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: by this function's contract.
    unsafe {
        asm!(
            "rep stosb",
            inout("rcx") n => _, inout("rdi") dest => _, in("al") value.to_le_bytes()[0],
            options(nostack, preserves_flags)
        );
    }
    dest
}

/// C's `memcmp`.
///
/// # Safety
/// C's contract: both ranges are valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: `i` is inside both ranges.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// BSD's `bcmp`.
///
/// # Safety
/// As for [`memcmp`].
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: by this function's contract.
    unsafe { memcmp(a, b, n) }
}

/// Named by precompiled `core`, which was built with unwinding; the kernel aborts on panic.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding in a kernel that aborts on panic")
}
