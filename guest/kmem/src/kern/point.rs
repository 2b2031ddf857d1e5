//! Points at which interrupts are taken while mutexes are owned.
//!
//! Who owns a mutex has interrupts deferred, and a loop over the pages of a large range owns some
//! for as long as it takes. Each such loop therefore comes to a point for each page: now and then,
//! at most [`PAGES_MAX`] pages apart, those interrupts are taken there that need no lock of the
//! memory system, with the mutexes still owned: the clock's, another CPU's shootdown, the host's
//! pause ([`Cpu::intr_point`]). No thread is switched to, and an operation in an interrupt
//! handler waits until the locks are free: it would find them owned by the thread that it has
//! interrupted.
//!
//! Pages are counted where they are worked on (handed out, freed, entered, removed, unwired), not
//! by the loops: a loop that lacks its points shows in
//! [`Pcpu::longest_pages`](vmkern_abi::layout::Pcpu).

use super::Kern;
use crate::machine::{Cpu, PhysMem};

/// Pages that are worked on at most between two points, or a point and the release of the last
/// mutex.
pub const PAGES_MAX: u64 = 64;

/// Pages from which on the next point is taken. What a loop does for one page, and what that may
/// bring with it, a refill of a cache of pages say, fits below [`PAGES_MAX`].
const PAGES_DUE: u64 = 32;

impl<M: PhysMem + Cpu> Kern<M> {
    /// Counts a page that has been worked on. Locks: some mutex is owned.
    #[inline]
    pub(crate) fn page_worked(&self) {
        self.pcpu().pages.inc();
    }

    /// A place in a loop over pages where interrupts may be taken. Locks: any but the scheduler's.
    #[inline]
    pub(crate) fn page_point(&self) {
        if self.pcpu().pages.get() >= PAGES_DUE {
            self.page_point_taken();
        }
    }

    #[cold]
    fn page_point_taken(&self) {
        // A thread that owns no mutex may be moved to another CPU.
        self.machine().intr_disable();
        self.pages_settle();
        self.machine().intr_point();
        self.machine().intr_restore();
    }

    /// Begins to count anew: interrupts are let in, or the last mutex is released. Interrupts are
    /// deferred.
    #[inline]
    pub(crate) fn pages_settle(&self) {
        let cpu = self.pcpu();
        let pages = cpu.pages.get();
        if pages != 0 {
            cpu.pages.set(0);
            cpu.longest_pages.update_locked(|longest| longest.max(pages));
        }
    }
}
