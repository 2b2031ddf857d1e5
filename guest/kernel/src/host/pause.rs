//! Standing still for the host, by the protocol of [`vmkern_abi::control`].

use core::sync::atomic::{Ordering, compiler_fence};

use vmkern_abi::control::PAUSE_PORT;

use crate::arch::instr;

/// Tells the host that this CPU owns no mutex and no spin lock. Returns when the host lets it go on.
pub fn stand_still() {
    // What was written before is in memory, and nothing of what comes after.
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the device behind the port touches no memory. The host may look at all of it, and changes nothing.
    unsafe { instr::outb(PAUSE_PORT, 0) };
    compiler_fence(Ordering::SeqCst);
}
