//! This CPU's translation lookaside buffer: dropping stale translations, page by page or all at
//! once.
//!
//! Kernel mappings are global (PG_G), so a reload of CR3 does not drop them: a full flush toggles
//! CR4.PGE.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};

use super::percpu::PerCpu;
use super::{instr, nucleus};

/// CR4 as `entry.rs` set it: PAE, PGE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x6a0;
const PGE: u64 = 1 << 7;

/// Pages that are dropped one by one with the body at CPL0; a full flush is cheaper for more.
const SINGLE_PAGES: usize = 32;

/// The translations that one flush drops: single pages, or all when there are too many.
#[must_use = "translations stay in use until Stale::flush"]
pub struct Stale {
    pages: [GuestVirt; SINGLE_PAGES],
    /// Number of pages; above [`Stale::most`] it stands for all translations.
    count: usize,
}

impl Stale {
    /// Nothing.
    pub const fn new() -> Self {
        Self { pages: [GuestVirt::new(0); SINGLE_PAGES], count: 0 }
    }

    /// Most pages that are dropped one by one.
    fn most() -> usize {
        if PerCpu::current().body_is_user() { nucleus::INVLPG_MAX } else { SINGLE_PAGES }
    }

    /// Adds the pages of `[start, end)`.
    pub fn add(&mut self, start: GuestVirt, end: GuestVirt) {
        let count = usize::try_from(end.since(start) / PAGE_SIZE).unwrap_or(usize::MAX);
        let before = self.count;
        self.count = before.saturating_add(count);
        if self.count <= Self::most() {
            let mut va = start;
            for page in &mut self.pages[before..self.count] {
                *page = va;
                va = va.add(PAGE_SIZE);
            }
        }
    }

    /// Drops these translations on this CPU.
    pub fn flush(&self) {
        if self.count > Self::most() {
            return flush_all();
        }
        let pages = &self.pages[..self.count];
        if PerCpu::current().body_is_user() {
            nucleus::invlpg(pages);
        } else {
            for page in pages {
                // SAFETY: the body runs at CPL0.
                unsafe { instr::invlpg(page.get()) };
            }
        }
    }
}

/// Drops all translations on this CPU.
pub fn flush_all() {
    if PerCpu::current().body_is_user() {
        // SAFETY: dropping translations is always allowed; the arguments are those of the call.
        unsafe { nucleus::call(nucleus::Call::FlushAll, CR4 & !PGE, CR4) };
    } else {
        // SAFETY: the body runs at CPL0, and CR4 is as `entry.rs` left it.
        unsafe { instr::toggle_pge(CR4) };
    }
}
