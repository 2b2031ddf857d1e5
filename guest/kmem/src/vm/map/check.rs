//! Every rule that a map keeps while its lock is free, looked at one by one.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{EntryFlags, VmMap};

use super::header;
use super::index::{Damage, max_nodes};
use super::reserve::FLOOR;
use crate::machine::Machine;
use crate::vm::Vm;

impl<M: Machine> Vm<M> {
    /// Checks list, index, counters and reserve of `map`. Takes its lock.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn vm_map_check(&self, map: KPtr<VmMap>) -> Result<(), Damage> {
        self.vm_map_lock_read(map);
        let result = self.map_check_list(map).and_then(|()| self.map_check_reserve(map));
        self.vm_map_unlock(map);
        result
    }

    fn map_check_list(&self, map: KPtr<VmMap>) -> Result<(), Damage> {
        let m = self.get(map);
        let (mut count, mut size) = (0, 0);
        let (mut before, mut below) = (header(map), m.min_offset());
        for entry in self.vm_map_entries(map) {
            let e = self.get(entry);
            let start = e.start.get();
            let rule = |holds: bool, rule| if holds { Ok(()) } else { Err(Damage { rule, at: start }) };
            rule(e.prev.get() == before, "list backwards is not the list forwards")?;
            rule(start >= below && start < e.end.get() && e.end.get() <= m.max_offset(), "range out of order")?;
            rule(start.is_page_aligned() && e.end.get().is_page_aligned(), "range is not of whole pages")?;
            let passing = EntryFlags::IN_TRANSITION | EntryFlags::NEEDS_WAKEUP;
            rule(!e.eflags.get().intersects(passing), "entry left in transition")?;
            (before, below) = (entry, e.end.get());
            count += 1;
            size += e.len();
        }
        let rule = |holds: bool, rule| if holds { Ok(()) } else { Err(Damage { rule, at: m.min_offset() }) };
        rule(m.header.prev.get() == before, "list backwards is not the list forwards")?;
        rule(m.nentries.get() == count, "nentries is not the number of entries")?;
        rule(m.size.get() == size, "size is not the sum of the entries")?;
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
        let entries = core::iter::successors(r.entries.get().non_null(), |&e| self.get(e).next.get().non_null());
        let nodes = core::iter::successors(r.nodes.get().non_null(), |&n| self.get(n).spare_next.get().non_null());
        let rule = |holds: bool, rule| if holds { Ok(()) } else { Err(Damage { rule, at: m.min_offset() }) };
        rule(entries.count() as u64 == r.entry_count.get(), "reserve of entries miscounted")?;
        rule(nodes.count() as u64 == r.node_count.get(), "reserve of nodes miscounted")?;
        rule(r.entry_count.get() >= FLOOR, "too few entries in reserve")?;
        let needed = max_nodes(m.nentries.get() + r.entry_count.get() + 1);
        rule(m.index.nodes.get() + r.node_count.get() >= needed, "too few nodes in reserve")
    }
}
