//! Random operations against a naive model: sets of pages, searched from the lowest.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::super::Sim;
use super::super::check::{check, check_zeros};
use super::{MIB, NOWAIT};
use crate::num::to_usize;

/// What a script may do next. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Malloc { size: u64, zero: bool, reserve: bool },
    Alloc { size: u64 },
    Nofault { size: u64 },
    Free { which: prop::sample::Index },
    FreePart { which: prop::sample::Index, from: u64, size: u64 },
    Window { which: prop::sample::Index, from: u64, count: u64 },
    Unwindow { which: prop::sample::Index, from: u64, count: u64 },
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 1..6 * PAGE_SIZE,
        3 => 1..80 * PAGE_SIZE,
        1 => 1..2048 * PAGE_SIZE,
        1 => Just(0),
        1 => u64::MAX - 8192..=u64::MAX,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    let pages = || 0u64..40;
    prop_oneof![
        4 => (size(), any::<bool>(), any::<bool>())
            .prop_map(|(size, zero, reserve)| Step::Malloc { size, zero, reserve }),
        2 => (0..40 * PAGE_SIZE).prop_map(|size| Step::Alloc { size }),
        2 => size().prop_map(|size| Step::Nofault { size }),
        4 => which().prop_map(|which| Step::Free { which }),
        3 => (which(), 0..40 * PAGE_SIZE, 0..20 * PAGE_SIZE)
            .prop_map(|(which, from, size)| Step::FreePart { which, from, size }),
        1 => (which(), pages(), pages()).prop_map(|(which, from, count)| Step::Window { which, from, count }),
        1 => (which(), pages(), pages()).prop_map(|(which, from, count)| Step::Unwindow { which, from, count }),
    ]
}

/// What a page of address space holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Memory { seed: u64 },
    Nofault { mapped: bool },
    Other,
}

struct Model {
    sim: Sim,
    maps: [BTreeMap<u64, Page>; 2],
    blocks: Vec<(MapId, GuestVirt, u64)>,
    seed: u64,
}

impl Model {
    fn new(sim: Sim) -> Self {
        let mut pages = BTreeMap::new();
        for entry in sim.vm().vm_map_entries(sim.vm().kernel_map()).map(|entry| sim.vm().get(entry)) {
            for va in (entry.start.get().get()..entry.end.get().get()).step_by(to_usize(PAGE_SIZE)) {
                pages.insert(va, Page::Other);
            }
        }
        Self { sim, maps: [pages, BTreeMap::new()], blocks: Vec::new(), seed: 0 }
    }

    /// The lowest hole of `size` bytes, found page by page.
    fn lowest_hole(&self, map: MapId, size: u64) -> Option<u64> {
        let taken = &self.maps[to_usize(map.0)];
        let m = self.sim.map(map);
        let mut start = m.min_offset().get();
        for &page in taken.keys() {
            if page - start >= size {
                break;
            }
            start = page + PAGE_SIZE;
        }
        (start.checked_add(size)? <= m.max_offset().get()).then_some(start)
    }

    fn allocate(&mut self, op: Op) {
        let (map, size) = match op {
            Op::KmemMalloc { map, size, .. } | Op::KmemAlloc { map, size } | Op::KmemAllocNofault { map, size } => {
                (map, size)
            }
            _ => unreachable!("only allocations"),
        };
        let available = self.sim.free_pages();
        let rounded = size.checked_next_multiple_of(PAGE_SIZE).filter(|&size| size > 0);
        let hole = rounded.and_then(|size| self.lowest_hole(map, size));
        let before = (self.sim.map(map).size.get(), self.sim.vm().state().kmem_object.resident_page_count.get());
        let got = self.sim.address(&op);
        let (Some(addr), Some(size)) = (got, rounded) else {
            assert_eq!(got, None, "{op:?}: a size of nothing");
            let after = (self.sim.map(map).size.get(), self.sim.vm().state().kmem_object.resident_page_count.get());
            assert_eq!(before, after, "{op:?}: a failure left something");
            let pages = rounded.unwrap_or(0) / PAGE_SIZE;
            assert!(hole.is_none() || pages + 16 > available, "{op:?} failed with {available} pages free");
            return;
        };
        assert_eq!(Some(addr.get()), hole, "{op:?}: not the lowest hole");
        let is_nofault = matches!(op, Op::KmemAllocNofault { .. });
        if !is_nofault {
            assert!(size / PAGE_SIZE <= available, "{op:?}: more pages than there were");
            if matches!(op, Op::KmemAlloc { .. })
                || matches!(op, Op::KmemMalloc { flags, .. } if flags.contains(MallocFlags::ZERO))
            {
                self.sim.ok(&Op::VerifyZero { addr, size });
            }
            self.seed += 1;
            self.sim.fill(addr, size, self.seed);
        }
        let page = if is_nofault { Page::Nofault { mapped: false } } else { Page::Memory { seed: self.seed } };
        for va in (addr.get()..addr.get() + size).step_by(to_usize(PAGE_SIZE)) {
            assert_eq!(self.maps[to_usize(map.0)].insert(va, page), None);
        }
        self.blocks.push((map, addr, size));
    }

    /// Frees a range inside a block: contents first looked at, windows taken down, as a kernel would.
    fn free(&mut self, map: MapId, addr: GuestVirt, size: u64) {
        let (start, end) = (addr.page(), addr.get() + size);
        for va in (start.get()..end).step_by(to_usize(PAGE_SIZE)) {
            match self.maps[to_usize(map.0)].remove(&va) {
                Some(Page::Memory { seed }) => self.sim.verify(GuestVirt::new(va), PAGE_SIZE, seed),
                Some(Page::Nofault { mapped: true }) => {
                    self.sim.ok(&Op::PmapQremove { addr: GuestVirt::new(va), count: 1 });
                }
                _ => {}
            }
        }
        self.sim.free(map, addr, size);
        for va in (start.get()..end).step_by(to_usize(PAGE_SIZE)) {
            assert_eq!(self.sim.execute(&Op::Vtop { addr: GuestVirt::new(va) }), Outcome::Null);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Malloc { size, zero, reserve } => {
                let mut flags = NOWAIT;
                flags.set(MallocFlags::ZERO, zero);
                flags.set(MallocFlags::USE_RESERVE, reserve);
                self.allocate(Op::KmemMalloc { map: MapId::KMEM, size, flags });
            }
            // kmem_alloc would wait for pages, which nobody would free.
            Step::Alloc { size } if self.sim.free_pages() > size / PAGE_SIZE + 120 => {
                self.allocate(Op::KmemAlloc { map: MapId::KERNEL, size });
            }
            Step::Alloc { .. } => {}
            Step::Nofault { size } => self.allocate(Op::KmemAllocNofault { map: MapId::KERNEL, size }),
            Step::Free { ref which } if !self.blocks.is_empty() => {
                let (map, addr, size) = self.blocks.swap_remove(which.index(self.blocks.len()));
                self.free(map, addr, size);
            }
            Step::FreePart { ref which, from, size } if !self.blocks.is_empty() => {
                let (map, addr, whole) = self.blocks[which.index(self.blocks.len())];
                let from = from % whole;
                let size = size.min(whole - from).max(1);
                self.free(map, addr.add(from), size);
            }
            Step::Window { ref which, from, count } => self.window(which, from, count, true),
            Step::Unwindow { ref which, from, count } => self.window(which, from, count, false),
            Step::Free { .. } | Step::FreePart { .. } => {}
        }
    }

    fn window(&mut self, which: &prop::sample::Index, from: u64, count: u64, mapped: bool) {
        let ranges: Vec<_> = self.blocks.iter().filter(|(map, ..)| *map == MapId::KERNEL).collect();
        if ranges.is_empty() {
            return;
        }
        let (_, addr, size) = *ranges[which.index(ranges.len())];
        let (from, pages) = (from % (size / PAGE_SIZE), size / PAGE_SIZE);
        let (addr, count) = (addr.add(from * PAGE_SIZE), count.min(pages - from));
        let range = addr.get()..addr.get() + count * PAGE_SIZE;
        let all_nofault = range
            .clone()
            .step_by(to_usize(PAGE_SIZE))
            .all(|va| matches!(self.maps[0].get(&va), Some(Page::Nofault { .. })));
        if !all_nofault || self.sim.free_pages() < count + 64 {
            return;
        }
        self.sim.ok(&if mapped { Op::PmapQenter { addr, count } } else { Op::PmapQremove { addr, count } });
        for (_, page) in self.maps[0].range_mut(range) {
            *page = Page::Nofault { mapped };
        }
        if mapped {
            self.sim.ok(&Op::Touch { addr, size: count * PAGE_SIZE });
        }
    }

    fn verify_all(&self) {
        for map in &self.maps {
            for (&va, page) in map {
                if let Page::Memory { seed } = *page {
                    self.sim.verify(GuestVirt::new(va), PAGE_SIZE, seed);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_agree_with_a_naive_model(steps in prop::collection::vec(step(), 1..60), mib in 12u64..40) {
        let mut model = Model::new(Sim::boot(mib * MIB, Tunables::default()));
        let tables = |sim: &Sim| sim.vm().state().kernel_pmap.table_count.get();
        let full = model.sim.free_pages() + tables(&model.sim);
        for step in &steps {
            model.step(step);
            check(&model.sim);
        }
        model.verify_all();
        check_zeros(&model.sim);
        // Partly freed blocks are freed again as a whole: what is gone already does not matter.
        while let Some((map, addr, size)) = model.blocks.pop() {
            model.free(map, addr, size);
        }
        check(&model.sim);
        prop_assert_eq!(model.sim.free_pages() + tables(&model.sim), full);
        prop_assert_eq!(model.sim.map(MapId::KMEM).size.get(), 0);
    }
}
