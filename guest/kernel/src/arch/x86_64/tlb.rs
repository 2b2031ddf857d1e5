//! Translation lookaside buffer: dropping what is stale, at either privilege.
//!
//! Kernel mappings are global (PG_G), so a reload of CR3 does not drop them: a full flush toggles CR4.PGE.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};

use super::percpu::PerCpu;
use super::{instr, nucleus};

/// CR4 as `entry.rs` set it: PAE, PGE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x6a0;
const PGE: u64 = 1 << 7;

/// Pages from which on a full flush is cheaper than single invalidations, with the body at CPL0.
const FULL_FLUSH_PAGES: u64 = 32;

/// Drops the translations of the pages of `[start, end)`.
pub fn invalidate_range(start: GuestVirt, end: GuestVirt) {
    let pages = end.since(start) / PAGE_SIZE;
    match (PerCpu::current().body_is_user(), pages) {
        (_, 0) => {}
        // SAFETY: dropping translations is always allowed; the arguments are those of the call.
        (true, 1) => unsafe { nucleus::call(nucleus::Call::Invlpg, start.get(), 0) },
        // SAFETY: as above.
        (true, _) => unsafe { nucleus::call(nucleus::Call::FlushAll, CR4 & !PGE, CR4) },
        (false, pages) if pages < FULL_FLUSH_PAGES => {
            for page in 0..pages {
                // SAFETY: the body runs at CPL0.
                unsafe { instr::invlpg(start.get() + page * PAGE_SIZE) };
            }
        }
        // SAFETY: the body runs at CPL0, and CR4 is as `entry.rs` left it.
        (false, _) => unsafe { instr::toggle_pge(CR4) },
    }
}
