//! The pools of a map: where its entries and index nodes lie.
//!
//! A pool is a stack of items: first those in the map's home ([`MapHome`]), then page after page
//! ([`PoolPage`]) in the direct map, so that creating an entry never changes a map (FreeBSD's KMAP
//! ENTRY zone has the same aim). The items in use are the first ones, without gaps: when an item
//! other than the last leaves, the last one moves into its place, and the caller that returned the
//! item corrects the pointers to the moved one. So the pages of a pool follow from the number of
//! items that it must have, and not from the order in which they came and went.
//!
//! A map at the edge of a page allocates and frees that page with each entry that comes and goes.
//! That costs a tenth of an allocation, for 3 of 63 numbers of entries; a page kept in reserve
//! would show in the counts of pages.
//!
//! Pages are INTERRUPT-class and never waited for. The map's lock is held.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kva::{dmap_to_phys, phys_to_dmap};
use vmkern_abi::layout::{MapHome, MapNode, MapPool, PoolPage, VmMap, VmMapEntry};

use super::Map;
use crate::kern::queue::{PointerTailQ, pointer_links};
use crate::machine::{AllocClass, Machine, Mark};
use crate::vm::page::{AllocFlags, Contents, Shortage};
use crate::vm::phys::phys_of;
use crate::window::{Line, Shared};

/// Unit in bytes in which items are copied and cleared.
const LINE: u64 = size_of::<Line>() as u64;

/// An item of one of a map's pools. Its size is whole lines.
pub(super) trait PoolItem: Shared {
    /// Items in the home.
    const HOME: u64;
    /// The place of the first item there.
    const HOME_OFFSET: u64;
    /// Items in a page.
    const PER_PAGE: u64;

    /// The pool.
    fn pool(map: &VmMap) -> &MapPool;
}

impl PoolItem for VmMapEntry {
    const HOME: u64 = MapHome::ENTRIES as u64;
    const HOME_OFFSET: u64 = core::mem::offset_of!(MapHome, entries) as u64;
    const PER_PAGE: u64 = PoolPage::ENTRIES;

    fn pool(map: &VmMap) -> &MapPool {
        &map.reserve.entries
    }
}

impl PoolItem for MapNode {
    const HOME: u64 = MapHome::NODES as u64;
    const HOME_OFFSET: u64 = core::mem::offset_of!(MapHome, nodes) as u64;
    const PER_PAGE: u64 = PoolPage::NODES;

    fn pool(map: &VmMap) -> &MapPool {
        &map.reserve.nodes
    }
}

pointer_links! {
    /// The pages of a pool.
    PoolLinks: PoolPage { next: next, prev: prev }
}

impl<M: Machine> Map<M> {
    /// The pages of `pool`.
    fn pool_pages<'a>(&'a self, pool: &'a MapPool) -> PointerTailQ<'a, M, PoolLinks> {
        self.tailq(&pool.first, &pool.last)
    }

    /// A map, all zero except its pools, which consist of its home's items.
    pub(super) fn map_home_alloc(&self) -> Result<KPtr<VmMap>, Shortage> {
        let home = KPtr::<MapHome>::new(self.map_page_alloc::<MapHome>()?.addr());
        for line in 0..size_of::<VmMap>() as u64 / LINE {
            self.get::<Line>(KPtr::new(home.addr().add(line * LINE)))
                .iter()
                .for_each(|word| word.set(0));
        }
        let reserve = &self.get(home).map.reserve;
        reserve.home.set(home);
        reserve.entries.capacity.set(VmMapEntry::HOME);
        reserve.nodes.capacity.set(MapNode::HOME);
        let items = size_of::<VmMap>() as u64;
        self.pool_mark(home.addr().add(items), size_of::<MapHome>() as u64 - items, Mark::Free);
        Ok(KPtr::new(home.addr()))
    }

    /// An item from the reserve, with arbitrary contents, or `None` when the reserve is empty.
    pub(super) fn pool_take<T: PoolItem>(&self, map: &VmMap) -> Option<KPtr<T>> {
        let pool = T::pool(map);
        let used = pool.used.get();
        if used == pool.capacity.get() {
            return None;
        }
        if opens_page::<T>(used) {
            let next = match pool.top.get().non_null() {
                Some(page) => self.get(page).next.get(),
                None => pool.first.get(),
            };
            pool.top.set(next);
        }
        pool.used.set(used + 1);
        let item: KPtr<T> = self.pool_last(map);
        self.pool_mark(item.addr(), size_of::<T>() as u64, Mark::Used);
        Some(item)
    }

    /// The last item in use. There is one.
    pub(super) fn pool_last<T: PoolItem>(&self, map: &VmMap) -> KPtr<T> {
        let pool = T::pool(map);
        let number = pool.used.get() - 1;
        let size = size_of::<T>() as u64;
        KPtr::new(match number.checked_sub(T::HOME) {
            None => map.reserve.home.get().addr().add(T::HOME_OFFSET + number * size),
            Some(number) => pool
                .top
                .get()
                .addr()
                .add(size_of::<PoolPage>() as u64 + number % T::PER_PAGE * size),
        })
    }

    /// The items in use.
    pub(super) fn pool_items<'a, T: PoolItem>(
        &'a self,
        map: &'a VmMap,
    ) -> impl Iterator<Item = KPtr<T>> + use<'a, M, T> {
        let (used, size) = (T::pool(map).used.get(), size_of::<T>() as u64);
        let home = map.reserve.home.get().addr().add(T::HOME_OFFSET);
        let in_pages = self.pool_pages(T::pool(map)).iter().flat_map(move |page| {
            let first = page.addr().add(size_of::<PoolPage>() as u64);
            (0..T::PER_PAGE).map(move |number| KPtr::new(first.add(number * size)))
        });
        let in_home = (0..T::HOME).map(move |number| KPtr::new(home.add(number * size)));
        in_home.chain(in_pages).zip(0..used).map(|(item, _)| item)
    }

    /// Moves the last item in use to the reserve.
    pub(super) fn pool_drop_last<T: PoolItem>(&self, map: &VmMap) {
        let pool = T::pool(map);
        self.pool_mark(self.pool_last::<T>(map).addr(), size_of::<T>() as u64, Mark::Free);
        let used = pool.used.get() - 1;
        pool.used.set(used);
        if opens_page::<T>(used) {
            pool.top.set(self.get(pool.top.get()).prev.get());
        }
    }

    /// Takes back `item`, which nothing points to any more. The last item in use moves to its
    /// place: returns where that item was, which is `item` if it was the last itself.
    #[must_use = "pointers to the item that moved must be corrected"]
    pub(super) fn pool_give<T: PoolItem>(&self, map: &VmMap, item: KPtr<T>) -> KPtr<T> {
        let last = self.pool_last(map);
        if last != item {
            for offset in (0..size_of::<T>() as u64).step_by(size_of::<Line>()) {
                let line = |item: KPtr<T>| self.get::<Line>(KPtr::new(item.addr().add(offset)));
                for (to, from) in line(item).iter().zip(line(last)) {
                    to.set(from.get());
                }
            }
        }
        self.pool_drop_last::<T>(map);
        last
    }

    /// Adds a page of items to the reserve.
    pub(super) fn pool_grow<T: PoolItem>(&self, map: &VmMap) -> Result<(), Shortage> {
        let pool = T::pool(map);
        let page = self.map_page_alloc::<PoolPage>()?;
        self.pool_pages(pool).insert_tail(page);
        pool.capacity.update_locked(|n| n + T::PER_PAGE);
        let items = page.addr().add(size_of::<PoolPage>() as u64);
        self.pool_mark(items, T::PER_PAGE * size_of::<T>() as u64, Mark::Free);
        Ok(())
    }

    /// Frees the pages that the pool can spare when it must have `needed` items, which are no fewer
    /// than those in use.
    pub(super) fn pool_shrink<T: PoolItem>(&self, map: &VmMap, needed: u64) {
        let pool = T::pool(map);
        while pool.capacity.get() >= needed.max(T::HOME) + T::PER_PAGE {
            // The capacity says that there is one.
            let page = pool.last.get();
            self.pool_pages(pool).remove(page);
            pool.capacity.update_locked(|n| n - T::PER_PAGE);
            self.map_page_free(page);
            self.page_point();
        }
    }

    /// Reports the state of items to the machine.
    #[inline]
    fn pool_mark(&self, start: GuestVirt, bytes: u64, mark: Mark) {
        if let Some(pa) = dmap_to_phys(start) {
            self.machine().mark(pa, bytes, mark);
        }
    }

    fn map_page_alloc<T>(&self) -> Result<KPtr<T>, Shortage> {
        if self.fails(FailSite::VmMapEntryAlloc) {
            return Err(Shortage);
        }
        let page =
            self.vm_page_alloc_noobj(AllocClass::Interrupt, AllocFlags::WIRED).ok_or(Shortage)?;
        // All maps count here, each under a lock of its own.
        self.state().map_pages.fetch_add(1);
        Ok(KPtr::new(phys_to_dmap(self.vm_page_to_phys(page))))
    }

    fn map_page_free(&self, page: KPtr<PoolPage>) {
        match phys_of(page).and_then(|pa| self.phys_to_vm_page(pa)) {
            Some(m) => self.vm_page_free_wired(m, Contents::Unknown),
            None => self.panic(format_args!("vm_map: {} is not in a page of a map", page.addr())),
        }
        self.state().map_pages.fetch_sub(1);
    }
}

/// Whether the item with this number is the first of its page.
fn opens_page<T: PoolItem>(number: u64) -> bool {
    number.checked_sub(T::HOME).is_some_and(|number| number.is_multiple_of(T::PER_PAGE))
}

const _: () = assert!(
    LINE == 64
        && size_of::<VmMapEntry>().is_multiple_of(64)
        && size_of::<MapNode>().is_multiple_of(64)
);
const _: () = assert!(super::index::max_nodes(VmMapEntry::HOME + 1) <= MapNode::HOME);
