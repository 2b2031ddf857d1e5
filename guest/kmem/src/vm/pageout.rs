//! The pagedaemon's thresholds (`vm_pageout.c`) and waiting for pages.
//!
//! There is no pagedaemon yet, and no thread that could sleep: where FreeBSD would wait for pages, [`Vm::vm_wait`]
//! ends the system with a message that says who waits for what.

use core::fmt;

use super::Vm;
use crate::machine::Machine;

/// Largest transfer of the buffer cache in bytes (`MAXBSIZE`).
const MAXBSIZE: u64 = 65536;
/// Pages that no SYSTEM request may take (`v_interrupt_free_min`).
const INTERRUPT_FREE_MIN: u64 = 2;

impl<M: Machine> Vm<M> {
    /// Computes the thresholds from the pages there are and the pages free now, as the pagedaemon does when it starts
    /// (`vm_pageout`).
    pub(crate) fn vm_pageout_init(&self) {
        let cnt = self.cnt();
        let (pages, free) = (cnt.v_page_count.get(), cnt.v_free_count.get());
        let page_count = if pages < 2000 { 8 } else { 16 };
        let free_min = 4 + pages.saturating_sub(1024) / 200;
        let pageout_free_min = 2 * MAXBSIZE / 4096 + INTERRUPT_FREE_MIN;
        let reserved = page_count + pageout_free_min + pages / 768;
        cnt.v_interrupt_free_min.set(INTERRUPT_FREE_MIN);
        cnt.v_pageout_free_min.set(pageout_free_min);
        cnt.v_free_reserved.set(reserved);
        cnt.v_free_severe.set(free_min / 2 + reserved);
        let free_min = free_min + reserved;
        cnt.v_free_min.set(free_min);
        let target = if free > 6144 { 4 } else { 2 } * free_min + reserved;
        cnt.v_free_target.set(target);
        let (cache_min, inactive) = if free > 2048 { (target, 3 * target / 2) } else { (0, free / 4) };
        cnt.v_cache_min.set(cache_min);
        cnt.v_cache_max.set(2 * cache_min);
        cnt.v_inactive_target.set(inactive.min(free / 3));
    }

    /// Waits until pages have come in (`VM_WAIT`): `why` says who waits and for what. Locks: none may be held.
    pub fn vm_wait(&self, why: fmt::Arguments<'_>) {
        self.would_sleep(why, "vmwait");
    }

    /// Whether the free pages are below `v_free_severe` (`vm_page_count_severe`).
    #[must_use]
    pub fn vm_page_count_severe(&self) -> bool {
        self.cnt().v_free_severe.get() > self.vm_page_available()
    }

    /// The one place where a thread would go to sleep; `wmesg` is FreeBSD's wait message.
    #[cold]
    pub(crate) fn would_sleep(&self, why: fmt::Arguments<'_>, wmesg: &str) -> ! {
        let free = self.cnt().v_free_count.get();
        self.panic(format_args!(
            "{why}: would sleep for ever in `{wmesg}` with {free} pages free, as no thread could wake it"
        ))
    }
}
