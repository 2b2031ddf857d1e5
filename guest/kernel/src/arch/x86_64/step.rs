//! Single steps through a handler's way out, for the self-test.
//!
//! **Protocol.** [`Steps::through_one_interrupt`] asks. The next interrupt's handler sets RFLAGS.TF
//! when its work is done, so that each instruction from there to its `iretq` ends in a #DB (SDM
//! volume 3, section 18.3.1.4). The handlers of those only count: the CPU clears TF for them, and
//! their own `iretq` sets it again. The interrupt's `iretq` loads the flags of the code that was
//! interrupted, which has TF clear, and that is the end. So a trap comes between any two
//! instructions of the way out, and what one of them loses is lost here each time, not once in a
//! million interrupts.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Nothing is asked for, and a #DB is an error.
const OFF: u32 = 0;
/// The next interrupt steps.
const ASKED: u32 = 1;
/// An interrupt steps, or has.
const STEPPING: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(OFF);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// While it lives, the first interrupt's way out is stepped through. One at a time.
#[must_use = "an interrupt is stepped through only while this lives"]
pub struct Steps(());

impl Steps {
    /// Asks for it.
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

/// Begins to step if that is asked for. Called by an interrupt's handler when its work is done.
#[inline]
pub fn begin() {
    if STATE.load(Ordering::Relaxed) == ASKED {
        STATE.store(STEPPING, Ordering::Relaxed);
        // SAFETY: a #DB follows each instruction from the next one on; `count` takes them, and they
        // change nothing.
        unsafe { asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq") };
    }
}

/// Counts a #DB. `false` if it is not one of a step that was asked for.
#[must_use]
pub fn count() -> bool {
    let is_ours = STATE.load(Ordering::Relaxed) == STEPPING;
    COUNT.fetch_add(is_ours.into(), Ordering::Relaxed);
    is_ours
}
