//! Per-CPU caches of free pages, in front of the buddy lists.
//!
//! A page that a CPU frees goes to its own cache, and a page that it allocates comes from there,
//! under the cache's lock instead of the free queue's, as long as pages are plenty. An empty cache
//! takes a batch from the lists; a full one returns a batch, the pages that were freed first. Pages
//! in a cache are free: `v_free_count` counts them, and they are on no list and in no other cache.
//!
//! **The floor.** [`KernelRoots::page_cache_floor`] is the number of free pages up to which no CPU
//! uses a cache: the highest threshold at which an allocation or a free must do more than move a
//! page, plus as many pages as all caches together can hold. A cache gives a page only by a
//! compare-and-swap of `v_free_count` that leaves at least the floor. Hence
//!
//! - admission is exact: every request near a floor of `vm_page_alloc` is decided under the free
//!   queue's lock;
//! - while the lists are empty no cache gives a page, since all free pages are then in caches, and
//!   are no more than the floor. A CPU that holds the free queue's lock and finds the lists empty
//!   drains the caches one after the other, including those of other CPUs
//!   ([`Phys::page_cache_drain`]), and has every free page at the end.
//!
//! **Locks.** A cache's lock, of class [`LockClass::PageCache`], is taken under the free queue's or
//! without it, and one at a time. A thread that changes `v_free_count` holds one of the two. A
//! thread that is moved to another CPU after it has read the number of its CPU, and before it has
//! the lock, uses the cache of its old CPU, which works as well. Nothing here sleeps, and an
//! interrupt handler finds every lock free or owned by another CPU, as everywhere.
//!
//! With one CPU the lists are not shared: the floor is 0, which means that there are no caches.
//! There are also none while free pages are cleared in idle time, which takes dirty pages off the
//! lists one by one.
//!
//! [`KernelRoots::page_cache_floor`]: vmkern_abi::layout::KernelRoots::page_cache_floor

use vmkern_abi::addr::KPtr;
use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::layout::{PageCache, PageFlags, VmPage};

use super::page::{Contents, FreeQueue, Want};
use super::phys::{End, Phys};
use crate::kern::guard::{Guard, Lock};
use crate::kern::lock::LockClass;
use crate::machine::{Cpu, Mark, PhysMem};

/// Most pages in a cache, unless `vm.pgcache_zone_max_pcpu` says otherwise.
pub const PAGE_CACHE_MAX: u64 = 64;

/// The kind of a cache's mutex.
enum PageCacheLock {}

impl Lock for PageCacheLock {
    const CLASS: LockClass = LockClass::PageCache;
}

/// A cache, locked.
type LockedCache<'a, M> = Guard<'a, M, PageCacheLock>;

impl<M: PhysMem + Cpu> Phys<M> {
    /// Enables the caches from now on, one more than before: a CPU has been added, and does not run
    /// yet. Locks: takes the caches'.
    pub(crate) fn page_caches_enable(&self, _: &FreeQueue<'_, M>) {
        let (state, cnt) = (self.state(), self.cnt());
        if state.page_cache_max.get() == 0 || state.idlezero_enable.is_set() {
            return;
        }
        let busy = cnt.v_free_min.get().max(cnt.v_free_reserved.get() + cnt.v_cache_min.get());
        state.page_cache_floor.set(busy + cnt.ncpu.get() * state.page_cache_max.get());
        // Whoever has a cache's lock may still go by the old floor.
        for cpu in self.cpus() {
            drop(self.page_cache_lock(&cpu.page_cache));
        }
    }

    /// Pages that a cache takes or returns at a time.
    fn page_cache_batch(&self) -> u64 {
        self.state().page_cache_max.get().div_ceil(2)
    }

    /// Takes a page from this CPU's cache, if pages are plenty; otherwise the caller asks the free
    /// lists. Locks: takes the cache's, and to
    /// fill it the free queue's.
    #[inline]
    pub(super) fn page_cache_alloc(&self, want: Want) -> Option<KPtr<VmPage>> {
        // 1. Near the floor the lists decide.
        let (state, free) = (self.state(), &self.cnt().v_free_count);
        let floor = state.page_cache_floor.get();
        if floor == 0 || free.get() <= floor {
            return None;
        }
        // 2. An empty cache is filled first.
        let cache = &self.pcpu().page_cache;
        let mut locked = self.page_cache_lock(cache);
        if self.page_list(&cache.pages).first().is_none() {
            // The free queue's lock comes first. Others may fill the cache, or empty it, meanwhile.
            drop(locked);
            let queue = self.free_queue();
            locked = self.page_cache_lock(cache);
            self.page_cache_refill(&queue, &locked, cache);
        }
        // 3. Its first page, if the count of free pages, which others change, still allows it.
        let mut page = None;
        if let Some(pfn) = self.page_list(&cache.pages).first()
            && free.take_above(state.page_cache_floor.get())
        {
            let m = self.vm_page_pointer(pfn);
            self.page_list_remove(&cache.pages, pfn);
            cache.allocs.inc();
            self.vm_phys_mark(pfn, 1, Mark::Used);
            self.vm_page_hand_out(m, want);
            page = Some(m);
        }
        drop(locked);
        page
    }

    /// Frees `m` to this CPU's cache, if pages are plenty and no thread waits for one. Returns
    /// whether it did. Locks: takes the cache's, and when it is full the free queue's.
    #[inline]
    #[must_use]
    pub(super) fn page_cache_free(&self, m: KPtr<VmPage>, contents: Contents) -> bool {
        let (state, free) = (self.state(), &self.cnt().v_free_count);
        let floor = state.page_cache_floor.get();
        if floor == 0 || free.get() < floor || self.vm_pages_awaited() {
            return false;
        }
        let cache = &self.pcpu().page_cache;
        let mut locked = self.page_cache_lock(cache);
        if cache.pages.count.get() >= state.page_cache_max.get() {
            // As above: the cache may be another one when both locks are held.
            drop(locked);
            let queue = self.free_queue();
            locked = self.page_cache_lock(cache);
            self.page_cache_spill(&queue, &locked, cache);
        }
        let pfn = self.vm_page_number(m);
        self.vm_phys_mark(pfn, 1, Mark::Free);
        self.vm_page_take_back(m, contents, PageFlags::TOUCHED | PageFlags::PCPU_CACHE);
        self.page_list_push(&cache.pages, pfn, End::Head);
        cache.frees.inc();
        free.fetch_add(1);
        // From here on others may allocate the page. A thread that has begun to wait since the look
        // above has counted without it.
        drop(locked);
        fence(Ordering::SeqCst);
        if self.vm_pages_awaited() {
            self.vm_page_free_wakeup(&self.free_queue());
        }
        true
    }

    /// Fills `cache`, which is `locked`, to a batch.
    fn page_cache_refill(
        &self,
        queue: &FreeQueue<'_, M>,
        _locked: &LockedCache<'_, M>,
        cache: &PageCache,
    ) {
        while cache.pages.count.get() < self.page_cache_batch() {
            let Some(pfn) = self.vm_phys_take(queue, 0) else { break };
            self.page_by_number(pfn).flags.update_locked(|flags| flags | PageFlags::PCPU_CACHE);
            self.page_list_push(&cache.pages, pfn, End::Tail);
            self.page_worked();
            self.page_point();
        }
        cache.refills.inc();
    }

    /// Returns a batch of `cache`, which is `locked`, to the free lists, if the cache is full.
    fn page_cache_spill(
        &self,
        queue: &FreeQueue<'_, M>,
        locked: &LockedCache<'_, M>,
        cache: &PageCache,
    ) {
        let max = self.state().page_cache_max.get();
        if cache.pages.count.get() >= max {
            self.page_cache_shrink(queue, locked, cache, max - self.page_cache_batch());
            cache.spills.inc();
        }
    }

    /// Returns the pages of `cache`, which is `locked`, that were freed first to the free lists,
    /// until `left` are left.
    fn page_cache_shrink(
        &self,
        queue: &FreeQueue<'_, M>,
        _locked: &LockedCache<'_, M>,
        cache: &PageCache,
        left: u64,
    ) {
        while cache.pages.count.get() > left {
            let Some(pfn) = self.page_list(&cache.pages).last() else { break };
            self.page_list_remove(&cache.pages, pfn);
            self.page_by_number(pfn).flags.update_locked(|flags| flags - PageFlags::PCPU_CACHE);
            self.vm_phys_give(queue, pfn, 0);
            self.page_worked();
            self.page_point();
        }
    }

    /// Returns all pages of all caches to the free lists, where they become blocks again, without
    /// asking another CPU. Returns whether there were any. Locks: takes the caches'.
    pub(super) fn page_cache_drain(&self, queue: &FreeQueue<'_, M>) -> bool {
        let mut drained = 0;
        for cpu in self.cpus() {
            let cache = &cpu.page_cache;
            if cache.pages.count.get() == 0 {
                continue;
            }
            let locked = self.page_cache_lock(cache);
            let count = cache.pages.count.get();
            self.page_cache_shrink(queue, &locked, cache, 0);
            cache.drained.update_locked(|n| n + count);
            drained += count;
        }
        drained > 0
    }

    fn page_cache_lock<'a>(&'a self, cache: &'a PageCache) -> LockedCache<'a, M> {
        self.mtx_guard(&cache.lock)
    }
}
