//! Comparing the machine with the model: entries, counters, invariants.

use vmkern_abi::control::MapId;

use super::World;
use super::sleepers::Cause;
use crate::sim::check::{check, check_zeros};
use crate::sim::histories::explain::Entries;
use crate::sim::histories::naive::What;

impl World {
    /// Checks that the counters agree with the model.
    pub fn compare(&self) {
        let vm = self.sim.vm();
        self.compare_places();
        let (state, cnt) = (vm.state(), vm.cnt());
        assert_eq!(vm.held_locks().bits(), 0, "locks are held");
        for m in &self.naive.maps {
            let map = self.sim.map(m.id);
            assert_eq!(map.size.get(), m.size(), "size of {:?}", m.id);
            let (fewest, most) = m.entries();
            let entries = map.nentries.get();
            assert!(
                (fewest..=most).contains(&entries),
                "{entries} entries of {:?}, not {fewest} to {most}",
                m.id
            );
        }
        let kernel = state.kernel_object.resident_page_count.get();
        let kmem = state.kmem_object.resident_page_count.get();
        let active = cnt.v_active_count.get();
        for (now, what) in [(kernel, What::Kernel), (kmem, What::Kmem), (active, What::Pageable)] {
            let known = self.naive.pages_of(what);
            let most = known + self.underway(what);
            assert!(
                (known..=most).contains(&now),
                "{now} pages of {what:?}, not {known} to {most}"
            );
        }
        let all =
            cnt.v_free_count.get() + cnt.v_wire_count.get() + active + cnt.v_inactive_count.get();
        // kmem_alloc wires its pages when it has all of them.
        let missing = cnt.v_page_count.get() - all;
        let most = self.underway(What::Kernel);
        assert!(
            missing <= most,
            "{missing} pages are neither free nor wired nor queued, not up to {most}"
        );
    }

    /// Checks that entries are exactly where the model has ranges, and that an allocation that
    /// sleeps has an entry of its own.
    fn compare_places(&self) {
        let entries = Entries::look(&self.sim, &self.naive.maps);
        assert!(
            entries.fit(&self.naive.maps),
            "{entries:#x?}, where {:#x?} was expected",
            self.naive.maps
        );
        for sleeper in &self.sleepers {
            if let Cause::Memory { map, start, bytes, what, .. } = sleeper.cause {
                assert!(
                    entries.has(map, start, bytes, what),
                    "{entries:#x?} without {sleeper:#x?}"
                );
            }
        }
    }

    /// Adds the expected counters of a guest to the script.
    pub(super) fn tell_counters(&self) {
        let cnt = self.sim.vm().cnt();
        let mut script = self.script.borrow_mut();
        script.counter("v_free_count", cnt.v_free_count.get());
        script.counter("v_wire_count", cnt.v_wire_count.get());
        script.counter("v_active_count", cnt.v_active_count.get());
        script.counter("v_zfod", cnt.v_zfod.get());
        script.counter("lowmem_events", cnt.lowmem_events.get());
        for m in &self.naive.maps {
            let map = self.sim.map(m.id);
            match m.id {
                MapId::KERNEL => script.kernel_size(self.kernel_size, map.size.get()),
                id => script.map_counter(id, "size", map.size.get()),
            }
            script.map_counter(m.id, "entries", map.nentries.get());
        }
    }

    /// Checks all invariants, unless an allocation is half done.
    pub fn check(&self) {
        if !self.sleepers.iter().any(|sleeper| matches!(sleeper.cause, Cause::Memory { .. })) {
            check(&self.sim);
            check_zeros(&self.sim);
        }
    }

    /// [`World::check`], unless the kernel has panicked.
    pub fn check_unless_over(&self) {
        if !self.over {
            self.check();
        }
    }

    /// Free pages, and those that the memory system uses for its own structures.
    pub(super) fn free_and_used_by_itself(&self) -> u64 {
        let state = self.sim.vm().state();
        let slabs: u64 = state.zones.iter().map(|zone| zone.slabs.get()).sum();
        self.sim.free_pages() + state.map_pages.get() + slabs + state.kernel_pmap.table_count.get()
    }
}
