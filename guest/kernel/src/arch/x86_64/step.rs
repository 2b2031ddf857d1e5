//! Single steps through a handler's way out, for the self-test.
//!
//! **Protocol.** [`Steps::through_one_interrupt`] makes the request. The next interrupt's handler
//! sets RFLAGS.TF when its work is done, so each instruction from there to its `iretq` ends in a
//! #DB (SDM volume 3, section 18.3.1.4). The #DB handlers only count: the CPU clears TF for them,
//! and their own `iretq` sets it again. The interrupt's `iretq` loads the flags of the code that
//! was interrupted, which has TF clear, and that is the end. So a trap occurs between any two
//! instructions of the way out, and an error in one of them shows here each time, not once in a
//! million interrupts.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No steps are requested, and a #DB is an error.
const OFF: u32 = 0;
/// The next interrupt steps.
const ASKED: u32 = 1;
/// An interrupt is being stepped, or has been.
const STEPPING: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(OFF);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// While this lives, the first interrupt's way out is stepped through. Only one may exist at a
/// time.
#[must_use = "an interrupt is stepped through only while this lives"]
pub struct Steps(());

impl Steps {
    /// Requests the steps.
    pub fn through_one_interrupt() -> Self {
        COUNT.store(0, Ordering::Relaxed);
        STATE.store(ASKED, Ordering::Relaxed);
        Self(())
    }

    /// Instructions that ended in a #DB.
    #[must_use]
    pub fn count(&self) -> u64 {
        COUNT.load(Ordering::Relaxed)
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        STATE.store(OFF, Ordering::Relaxed);
    }
}

/// Begins to step if that was requested. An interrupt's handler calls it when its work is done.
#[inline]
pub fn begin() {
    if STATE.load(Ordering::Relaxed) == ASKED {
        STATE.store(STEPPING, Ordering::Relaxed);
        // SAFETY: a #DB follows each instruction from the next one on; `count` takes them, and they
        // change nothing.
        unsafe { asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq") };
    }
}

/// Counts a #DB. Returns `false` if it does not belong to a requested step.
#[must_use]
pub fn count() -> bool {
    let is_ours = STATE.load(Ordering::Relaxed) == STEPPING;
    COUNT.fetch_add(is_ours.into(), Ordering::Relaxed);
    is_ours
}
