//! Checks of every rule that a map keeps while its lock is free, one by one.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{EntryFlags, MapNode, VmMap, VmMapEntry};

use super::index::{Damage, max_nodes};
use super::pool::PoolItem;
use super::reserve::FLOOR;
use super::{Map, header};
use crate::machine::Machine;

impl<M: Machine> Map<M> {
    /// Checks list, index, counters and reserve of `map`. Takes its lock.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn vm_map_check(&self, map: KPtr<VmMap>) -> Result<(), Damage> {
        let _locked = self.vm_map_locked_read(map);
        self.map_check_list(map).and_then(|()| self.map_check_reserve(map))
    }

    fn map_check_list(&self, map: KPtr<VmMap>) -> Result<(), Damage> {
        // 1. The entries, one after the other, and each against the one before it.
        let m = self.get(map);
        let (mut count, mut size) = (0, 0);
        let (mut before, mut below) = (header(map), m.min_offset());
        for entry in self.vm_map_entries(map) {
            let e = self.get(entry);
            let start = e.start.get();
            let rule =
                |holds: bool, rule| if holds { Ok(()) } else { Err(Damage { rule, at: start }) };
            rule(e.prev.get() == before, "list backwards is not the list forwards")?;
            rule(
                start >= below && start < e.end.get() && e.end.get() <= m.max_offset(),
                "range out of order",
            )?;
            rule(
                start.is_page_aligned() && e.end.get().is_page_aligned(),
                "range is not of whole pages",
            )?;
            rule(!e.eflags.get().intersects(EntryFlags::PASSING), "entry left in transition")?;
            rule(e.deleter.get() == 0, "entry without a deletion has a deleter")?;
            (before, below) = (entry, e.end.get());
            count += 1;
            size += e.len();
        }
        // 2. The map's totals.
        let rule = |holds: bool, rule| {
            if holds { Ok(()) } else { Err(Damage { rule, at: m.min_offset() }) }
        };
        rule(m.header.prev.get() == before, "list backwards is not the list forwards")?;
        rule(m.nentries.get() == count, "nentries is not the number of entries")?;
        rule(m.size.get() == size, "size is not the sum of the entries")?;
        // 3. The index, against the same list.
        let first = (m.min_offset(), m.min_offset(), header(map));
        let items = self.vm_map_entries(map).map(|entry| {
            let e = self.get(entry);
            (e.start.get(), e.end.get(), entry)
        });
        self.map_nodes(m).index().check(core::iter::once(first).chain(items))
    }

    fn map_check_reserve(&self, map: KPtr<VmMap>) -> Result<(), Damage> {
        let m = self.get(map);
        let r = &m.reserve;
        let (entries, nodes) = (&r.entries, &r.nodes);
        let rule = |holds: bool, rule| {
            if holds { Ok(()) } else { Err(Damage { rule, at: m.min_offset() }) }
        };
        rule(r.unlinked.get().is_null(), "a node has left the tree and not the pool")?;
        rule(entries.used.get() == m.nentries.get(), "entries in use miscounted")?;
        rule(nodes.used.get() == m.index.nodes.get(), "nodes in use miscounted")?;
        rule(entries.capacity.get() >= entries.used.get() + FLOOR, "too few entries in reserve")?;
        rule(
            nodes.capacity.get() >= max_nodes(entries.capacity.get() + 1),
            "too few nodes in reserve",
        )?;
        for entry in self.pool_items::<VmMapEntry>(m) {
            let linked = self.get(self.get(entry).prev.get()).next.get();
            rule(linked == entry, "an entry that is not in use lies among those that are")?;
        }
        self.map_check_pool::<VmMapEntry>(m)?;
        self.map_check_pool::<MapNode>(m)
    }

    /// Checks that the pages of a pool are chained both ways, and that their number fits its items.
    fn map_check_pool<T: PoolItem>(&self, map: &VmMap) -> Result<(), Damage> {
        let pool = T::pool(map);
        let rule = |holds: bool, rule| {
            if holds { Ok(()) } else { Err(Damage { rule, at: map.min_offset() }) }
        };
        let (mut pages, mut last, mut top) = (0, KPtr::NULL, KPtr::NULL);
        let in_pages = pool.used.get().saturating_sub(T::HOME).div_ceil(T::PER_PAGE);
        let mut page = pool.first.get();
        while !page.is_null() {
            rule(
                self.get(page).prev.get() == last,
                "pages of a pool backwards are not those forwards",
            )?;
            pages += 1;
            if pages == in_pages {
                top = page;
            }
            (last, page) = (page, self.get(page).next.get());
        }
        rule(pool.last.get() == last, "wrong last page of a pool")?;
        rule(pool.top.get() == top, "wrong page of a pool's last item in use")?;
        rule(pool.capacity.get() == T::HOME + pages * T::PER_PAGE, "items of a pool miscounted")
    }
}
