//! Kernel stacks (`vm_glue.c`).
//!
//! A stack is address space of kernel_map with pages of its own, mapped by `pmap_qenter`. The page
//! below it stays unmapped, so a thread that overflows its stack faults.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::layout::VmPage;

use super::page::AllocFlags;
use super::pmap::Kentered;
use super::{Shortage, Vm, VmMachine, Wait};
use crate::machine::AllocClass;

/// Pages of a kernel stack (`KSTACK_PAGES`).
pub const KSTACK_PAGES: u64 = 4;
/// Unmapped pages below it (`KSTACK_GUARD_PAGES`).
pub const KSTACK_GUARD_PAGES: u64 = 1;

impl<M: VmMachine> Vm<M> {
    /// A stack for a thread (`vm_thread_new`): its lowest address and its pages, which are
    /// allocated with class `class`. Locks: takes kernel_map's. Sleeps in `vmwait` if `wait` says
    /// so, and keeps the pages that it already has.
    ///
    /// # Errors
    /// [`Shortage`] when there is no address space, or the caller may not sleep and pages
    /// are short.
    pub fn vm_thread_new(
        &self,
        class: AllocClass,
        wait: Wait,
    ) -> Result<(GuestVirt, u64), Shortage> {
        // 1. Addresses, with an unmapped page below that stops an overflow.
        let bytes = (KSTACK_PAGES + KSTACK_GUARD_PAGES) * PAGE_SIZE;
        let range = match wait {
            Wait::No => self.kmem_alloc_nofault(self.kernel_map(), bytes),
            Wait::Yes => self.kmem_alloc_nofault_wait(self.kernel_map(), bytes),
        };
        let range = range.ok_or(Shortage)?;
        let low = range.add(KSTACK_GUARD_PAGES * PAGE_SIZE);
        // 2. Pages, all or none.
        let mut pages: KPtr<VmPage> = KPtr::NULL;
        for _ in 0..KSTACK_PAGES {
            let m = loop {
                match self.vm_page_alloc_noobj(class, AllocFlags::WIRED) {
                    Some(m) => break m,
                    // No other thread knows the range, or the pages allocated so far.
                    None if wait == Wait::Yes => self.vm_wait(),
                    None => {
                        self.free_chain(pages);
                        self.kmem_free(self.kernel_map(), range, bytes);
                        return Err(Shortage);
                    }
                }
            };
            self.vm_page_chain(m, pages);
            pages = m;
        }
        // 3. Their mappings.
        let next = || {
            let m = pages.non_null()?;
            pages = self.vm_page_unchain(m);
            Some(m)
        };
        self.pmap_qenter(low, core::iter::from_fn(next));
        Ok((low, KSTACK_PAGES))
    }

    /// Frees the stack of `pages` pages from `low` on (`vm_thread_dispose`), which is no longer in
    /// use. Locks: takes kernel_map's. Never sleeps.
    pub(crate) fn vm_thread_dispose(&self, low: GuestVirt, pages: u64) {
        let mut old: KPtr<VmPage> = KPtr::NULL;
        for page in 0..pages {
            match self.pmap_kentered(low.add(page * PAGE_SIZE)) {
                Kentered::Page(m) => {
                    self.vm_page_chain(m, old);
                    old = m;
                }
                other => self.panic(format_args!(
                    "vm_thread_dispose: kstack already missing? {low}: {other:?}"
                )),
            }
        }
        self.pmap_qremove(low, pages);
        self.free_chain(old);
        let guard = KSTACK_GUARD_PAGES * PAGE_SIZE;
        self.kmem_free(
            self.kernel_map(),
            GuestVirt::new(low.get() - guard),
            pages * PAGE_SIZE + guard,
        );
    }

    fn free_chain(&self, mut pages: KPtr<VmPage>) {
        while let Some(m) = pages.non_null() {
            pages = self.vm_page_unchain(m);
            self.vm_page_unwire_free(m);
        }
    }
}
