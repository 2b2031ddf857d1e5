//! Points at which interrupts are handled while mutexes are owned.
//!
//! The owner of a mutex has interrupts deferred, and a loop over the pages of a large range owns
//! mutexes for its whole duration. Each such loop therefore has a point for each page. At some of
//! them, at most [`PAGES_MAX`] pages apart, it handles the interrupts that need no lock of the
//! memory system, with the mutexes still owned: the clock's, another CPU's shootdown, the host's
//! pause ([`Cpu::intr_point`]). It does not switch threads. An operation in an interrupt handler
//! waits until the locks are free, because it would find them owned by the thread that it has
//! interrupted.
//!
//! Pages are counted where they are worked on (allocated, freed, entered, removed, unwired), not by
//! the loops, so a loop without points shows in [`Pcpu::longest_pages`](vmkern_abi::layout::Pcpu).

use super::Kern;
use crate::machine::{Cpu, PhysMem};

/// Most pages that are worked on between two points, or between a point and the release of the last
/// mutex.
pub const PAGES_MAX: u64 = 64;

/// Number of pages from which on the next point handles interrupts. The work of a loop for one
/// page, including what it may trigger, such as a refill of a cache of pages, fits below
/// [`PAGES_MAX`].
const PAGES_DUE: u64 = 32;

impl<M: PhysMem + Cpu> Kern<M> {
    /// Counts a page that has been worked on. Locks: some mutex is owned.
    #[inline]
    pub(crate) fn page_worked(&self) {
        self.pcpu().pages.inc();
    }

    /// A place in a loop over pages where interrupts may be handled. Locks: any except the
    /// scheduler's.
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

    /// Restarts the count: interrupts are about to be handled, or the last mutex is released.
    /// Interrupts are deferred.
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
