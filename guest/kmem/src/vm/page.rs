//! Pages of memory (`vm_page.c`): allocation, admission by class, wiring, and freeing.
//!
//! `v_free_count` is the number of pages that can be allocated, including those in CPUs' caches.
//! Three classes of requests stop at different floors; note that INTERRUPT, which M_NOWAIT uses,
//! may take more pages than SYSTEM. `vm_page_alloc` never sleeps and never clears a page: a caller
//! that wants zeros checks [`PageFlags::ZERO`] and clears the page unless it is set.

use bitflags::bitflags;
use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SHIFT};
use vmkern_abi::fail::FailSite;
use vmkern_abi::layout::{PageFlags, PageOflags, VmPage};

use super::phys::Phys;
use crate::kern::guard::{Guard, Lock};
use crate::kern::lock::LockClass;
pub use crate::machine::{AllocClass, Cpu, PhysMem};

/// There were too few pages: nothing was changed, and the caller decides whether to fail or to
/// wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage;

/// Whether a function may sleep for pages (`M_WAITOK`, `M_NOWAIT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may not: a shortage is an error.
    No,
    /// It may: it sleeps until it has the pages that it needs.
    Yes,
}

bitflags! {
    /// The other `VM_ALLOC_*` flags, with FreeBSD's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocFlags: u32 {
        /// The page comes wired once.
        const WIRED = 0x20;
        /// A zeroed page is preferred: [`PageFlags::ZERO`] says whether it is one.
        const ZERO = 0x40;
        /// `vm_page_grab` sleeps until it has a page.
        const RETRY = 0x80;
        /// The page comes not busy.
        const NOBUSY = 0x200;
    }
}

/// The kind of the page-queue mutex.
#[derive(Debug)]
pub enum PageQueueLock {}

impl Lock for PageQueueLock {
    const CLASS: LockClass = LockClass::PageQueue;
}

/// The page queues and the wire counts, locked.
pub type PageQueues<'a, M> = Guard<'a, M, PageQueueLock>;

/// The kind of the free-queue mutex.
#[derive(Debug)]
pub enum FreeQueueLock {}

impl Lock for FreeQueueLock {
    const CLASS: LockClass = LockClass::FreeQueue;
}

/// The free lists and the state of waits for pages, locked.
pub type FreeQueue<'a, M> = Guard<'a, M, FreeQueueLock>;

/// A request for a page.
#[derive(Clone, Copy, Debug)]
pub(in crate::vm) struct Want {
    /// Its class, which says how many free pages it must leave.
    pub class: AllocClass,
    /// The other flags of the allocation.
    pub flags: AllocFlags,
    /// Whether the page is managed by the page queues.
    pub managed: Managed,
    /// A further flag for the page, or no flag.
    pub oflags: PageOflags,
}

/// Whether a page goes on the page queues when it is not wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vm) enum Managed {
    /// It does: pages of anonymous objects.
    Yes,
    /// It does not (`PG_UNMANAGED`).
    No,
}

/// The known contents of a freed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Anything.
    Unknown,
    /// Zeros only.
    Zero,
}

/// The sites at which a request for a page may fail.
const PAGE_SITES: u64 = FailSite::VmPageAlloc.bit()
    | FailSite::VmPageAllocNormal.bit()
    | FailSite::VmPageAllocSystem.bit()
    | FailSite::VmPageAllocInterrupt.bit();

impl AllocClass {
    /// The site at which a request of this class may fail.
    const fn site(self) -> FailSite {
        match self {
            Self::Normal => FailSite::VmPageAllocNormal,
            Self::System => FailSite::VmPageAllocSystem,
            Self::Interrupt => FailSite::VmPageAllocInterrupt,
        }
    }
}

impl<M: PhysMem + Cpu> Phys<M> {
    /// The page structure behind `m`.
    #[inline]
    pub fn page(&self, m: KPtr<VmPage>) -> &VmPage {
        self.get(m)
    }

    /// Acquires the page-queue mutex (`vm_page_lock_queues`), once more if it is held.
    pub fn page_queues(&self) -> PageQueues<'_, M> {
        self.mtx_guard(&self.state().vm_page_queue_mtx)
    }

    /// Acquires the free-queue mutex (`vm_page_queue_free_mtx`).
    pub fn free_queue(&self) -> FreeQueue<'_, M> {
        self.mtx_guard(&self.state().vm_page_queue_free_mtx)
    }

    /// Pages that can be allocated: the A of FreeBSD's tests, free plus cached.
    #[must_use]
    pub fn vm_page_available(&self) -> u64 {
        self.cnt().v_free_count.get() + self.cnt().v_cache_count.get()
    }

    /// Allocates a page that belongs to no object, or returns `None` when the class's floor is
    /// reached (`vm_page_alloc` with `VM_ALLOC_NOOBJ`). Never sleeps, never clears. Locks: takes
    /// the free queue's, or while pages are plenty a cache's.
    #[must_use]
    pub fn vm_page_alloc_noobj(
        &self,
        class: AllocClass,
        flags: AllocFlags,
    ) -> Option<KPtr<VmPage>> {
        let m = self.vm_page_take(Want {
            class,
            flags,
            managed: Managed::No,
            oflags: PageOflags::empty(),
        })?;
        self.page(m).pindex.set(0);
        Some(m)
    }

    /// Allocates the page that `want` describes, or returns `None` when the class's floor is
    /// reached. Locks: takes the free queue's, or while pages are plenty a cache's.
    pub(in crate::vm) fn vm_page_take(&self, want: Want) -> Option<KPtr<VmPage>> {
        if want.class != AllocClass::Interrupt && self.in_interrupt() {
            self.panic(format_args!("vm_page_alloc(NORMAL|SYSTEM) in interrupt context"));
        }
        // The pagedaemon may dig where others may not, as it works for them.
        let class = if want.class == AllocClass::Normal && self.is_pagedaemon() {
            AllocClass::System
        } else {
            want.class
        };
        let want = Want { class, ..want };
        if self.vm_page_must_fail(class) {
            self.vm_page_short(&self.free_queue());
            return None;
        }
        self.page_cache_alloc(want).or_else(|| self.vm_page_alloc_exact(want))
    }

    /// Whether a request of `class` must fail.
    #[inline]
    pub(super) fn vm_page_must_fail(&self, class: AllocClass) -> bool {
        self.is_armed(PAGE_SITES) && self.vm_page_alloc_fails(class)
    }

    /// The same if a site is armed: the site of all classes, then that of the class.
    #[cold]
    fn vm_page_alloc_fails(&self, class: AllocClass) -> bool {
        self.fails(FailSite::VmPageAlloc) || self.fails(class.site())
    }

    /// Takes a page off the free lists if the class's floor allows it. Locks: takes the free
    /// queue's.
    fn vm_page_alloc_exact(&self, want: Want) -> Option<KPtr<VmPage>> {
        let queue = self.free_queue();
        let cnt = self.cnt();
        let reserved = cnt.v_free_reserved.get();
        let floor = match want.class {
            AllocClass::Normal => reserved,
            AllocClass::System => reserved.min(cnt.v_interrupt_free_min.get()),
            AllocClass::Interrupt => 0,
        };
        let floor = floor.saturating_sub(cnt.v_cache_count.get());
        if !cnt.v_free_count.take_above(floor) {
            self.vm_page_short(&queue);
            return None;
        }
        let Some(m) = self.vm_phys_alloc_pages(&queue, 0) else {
            self.panic(format_args!("vm_page_alloc: missing page"))
        };
        self.vm_page_hand_out(m, want);
        if self.vm_paging_needed() {
            self.pagedaemon_wakeup(&queue);
        }
        Some(m)
    }

    /// Records that a request was not admitted.
    fn vm_page_short(&self, queue: &FreeQueue<'_, M>) {
        self.state().vm_pageout_deficit.inc();
        if self.balloon_pages() > 0 {
            self.pagedaemon_hurry(queue);
        } else {
            self.pagedaemon_wakeup(queue);
        }
    }

    /// Sets up `m`, which was free, as `want` asks. Locks: the lock under which it was taken.
    pub(in crate::vm) fn vm_page_hand_out(&self, m: KPtr<VmPage>, want: Want) {
        let Want { flags, managed, oflags, .. } = want;
        let page = self.page(m);
        let zero = self.vm_page_is_zero(page);
        if zero {
            self.state().vm_page_zero_count.fetch_sub(1);
        }
        let mut pflags = PageFlags::ALLOCATED | PageFlags::TOUCHED;
        pflags.set(PageFlags::ZERO, zero && flags.contains(AllocFlags::ZERO));
        pflags.set(PageFlags::UNMANAGED, managed == Managed::No);
        page.flags.set(pflags);
        page.oflags.set(oflags);
        page.wire_count.set(0);
        if flags.contains(AllocFlags::WIRED) {
            // Not guarded by the free queue's lock alone, as elsewhere it is the page queues' that
            // is held.
            self.cnt().v_wire_count.fetch_add(1);
            page.wire_count.set(1);
        }
        page.act_count.set(0);
        self.page_worked();
    }

    /// Whether a free page is known to hold zeros only.
    pub(in crate::vm) fn vm_page_is_zero(&self, page: &VmPage) -> bool {
        let flags = page.flags.get();
        flags.contains(PageFlags::ZERO)
            || (!flags.contains(PageFlags::TOUCHED) && self.state().boot_zeroed.is_set())
    }

    /// Unwires and frees `m`, a page without an object that is wired once. Locks: takes the page
    /// queues'.
    pub fn vm_page_unwire_free(&self, m: KPtr<VmPage>) {
        self.vm_page_free_wired(m, Contents::Unknown);
    }

    /// Puts `m`, a page on no queue, before `next` (or null) in a chain of its owner's.
    pub fn vm_page_chain(&self, m: KPtr<VmPage>, next: KPtr<VmPage>) {
        let next = next.non_null().map_or(0, |next| self.vm_page_number(next));
        self.page(m).next.set(next);
    }

    /// Removes `m` from the chain that it heads, and returns the next page, or null. The caller
    /// stores the pointer to the next page before `m` drops it, so an observer finds the whole
    /// chain at every instant.
    pub fn vm_page_unchain(&self, m: KPtr<VmPage>) -> KPtr<VmPage> {
        let page = self.page(m);
        let next = match page.next.get() {
            0 => KPtr::NULL,
            next => self.vm_page_pointer(next),
        };
        page.next.set(0);
        next
    }

    /// Frees `m`, a page without an object that is wired once. Locks: takes the page queues', once
    /// more if they are held.
    pub(crate) fn vm_page_free_wired(&self, m: KPtr<VmPage>, contents: Contents) {
        let queues = self.page_queues();
        self.vm_page_unwire(&queues, m);
        self.vm_page_free_prep(&queues, m);
        self.vm_page_free_finish(&queues, m, contents);
    }

    /// Begins to free `m`: takes it off its queue. Panics when it is free or busy.
    pub(in crate::vm) fn vm_page_free_prep(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        let page = self.page(m);
        if page.busy.get() != 0 {
            self.panic(format_args!("vm_page_free: freeing busy page"));
        }
        if !page.flags.get().contains(PageFlags::ALLOCATED) {
            self.panic(format_args!("vm_page_free: freeing free page"));
        }
        self.page_worked();
        self.vm_pageq_remove(queues, m);
    }

    /// Frees `m`, which is no longer on a queue or in an object. Panics when it is wired. Locks:
    /// takes the free queue's, or while pages are plenty a cache's.
    pub(in crate::vm) fn vm_page_free_finish(
        &self,
        _: &PageQueues<'_, M>,
        m: KPtr<VmPage>,
        contents: Contents,
    ) {
        // 1. Its fields are set to those of a page without an owner.
        let page = self.page(m);
        page.valid.set(0);
        page.dirty.set(0);
        match page.wire_count.get() {
            0 => {}
            1 => self.panic(format_args!("vm_page_free: freeing wired page")),
            count => {
                let count = count.cast_signed();
                self.panic(format_args!(
                    "vm_page_free: invalid wire count ({count}), pindex: {:#x}",
                    page.pindex.get()
                ))
            }
        }
        page.pindex.set(0);
        page.private.set(0);
        page.oflags.set(PageOflags::empty());
        // 2. To this CPU's cache, or to the lists; then threads that wait for pages are woken.
        if self.page_cache_free(m, contents) {
            return;
        }
        let queue = self.free_queue();
        self.vm_page_take_back(m, contents, PageFlags::TOUCHED);
        self.vm_phys_free_pages(&queue, m, 0);
        self.cnt().v_free_count.fetch_add(1);
        self.vm_page_free_wakeup(&queue);
        self.vm_page_zero_idle_wakeup(&queue);
    }

    /// Makes `m`, which no longer has an owner, a free page with `flags`. Locks: the lock of the
    /// cache or lists to which it goes.
    pub(in crate::vm) fn vm_page_take_back(
        &self,
        m: KPtr<VmPage>,
        contents: Contents,
        mut flags: PageFlags,
    ) {
        if contents == Contents::Zero {
            flags |= PageFlags::ZERO;
            self.state().vm_page_zero_count.fetch_add(1);
        }
        self.page(m).flags.set(flags);
    }

    /// Wires `m` once more (`vm_page_wire`).
    pub fn vm_page_wire(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        let page = self.page(m);
        if page.wire_count.get() == 0 {
            self.vm_pageq_remove(queues, m);
            self.cnt().v_wire_count.fetch_add(1);
        }
        page.wire_count.inc();
    }

    /// Unwires `m` once (`vm_page_unwire`, `activate` 1): a managed page that is no longer wired
    /// goes on the active queue, an unmanaged page on none.
    pub fn vm_page_unwire(&self, queues: &PageQueues<'_, M>, m: KPtr<VmPage>) {
        let page = self.page(m);
        match page.wire_count.get() {
            0 => self.panic(format_args!("vm_page_unwire: invalid wire count: 0")),
            1 => {
                page.wire_count.set(0);
                self.cnt().v_wire_count.fetch_sub(1);
                self.vm_page_activate(queues, m);
            }
            count => page.wire_count.set(count - 1),
        }
    }

    /// Fills the page `m` with zeros through the direct map (`pmap_zero_page`).
    pub fn pmap_zero_page(&self, m: KPtr<VmPage>) {
        self.machine().zero_page(self.vm_page_to_phys(m));
    }
}

/// Physical address of page number `pfn`.
#[must_use]
pub(crate) fn phys_of_number(pfn: u32) -> GuestPhys {
    GuestPhys::new(u64::from(pfn) << PAGE_SHIFT)
}
