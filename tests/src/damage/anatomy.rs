//! Where a guest's structures lie, field by field, found by following the kernel's own pointers
//! from its roots.

use std::collections::HashSet;

use vmkern::abi::addr::KPtr;
use vmkern::abi::describe::{STRUCTURES, Structure};
use vmkern::abi::kva::dmap_to_phys;
use vmkern::abi::layout::{
    EntryFlags, EventhandlerEntry, EventhandlerList, KernelRoots, MapNode, MapPool, Pcpu, PoolPage,
    SlabHeader, SleepQueue, StoredOp, Thread, VmMap, VmMapEntry, VmObject, VmPage, VmPhysSeg,
};
use vmkern::abi::pte::{Level, NPTEPG, Pte};
use vmkern::inspect::{Source, View};
use vmkern::{GuestPhys, GuestVirt};

/// A field of a structure in use. Nested structures are split into their fields; an array is one
/// field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// The structure.
    pub structure: &'static str,
    /// The field.
    pub field: &'static str,
    /// Where the field lies.
    pub at: GuestPhys,
    /// Its bytes.
    pub size: u64,
}

/// All structures of a guest.
#[derive(Debug)]
pub struct Anatomy<'a> {
    view: View<'a>,
    seen: HashSet<GuestPhys>,
    /// Their fields.
    pub parts: Vec<Part>,
    /// The structures: name and address.
    pub places: Vec<(&'static str, GuestVirt)>,
    /// The page tables: level, place, and first address that they translate.
    pub tables: Vec<(Level, GuestPhys, GuestVirt)>,
}

/// The entries of each level's tables, treated as structures.
pub const ENTRIES: [(Level, &str); 4] =
    [(Level::Pml4, "PML4E"), (Level::Pdpt, "PDPTE"), (Level::Pd, "PDE"), (Level::Pt, "PTE")];

impl<'a> Anatomy<'a> {
    /// The structures of `source`, which must not be damaged.
    ///
    /// # Panics
    /// When it is damaged.
    #[must_use]
    pub fn of(source: &'a dyn Source) -> Self {
        let view = View::new(source).expect("there are page tables");
        let mut all = Self {
            view,
            seen: HashSet::new(),
            parts: Vec::new(),
            places: Vec::new(),
            tables: Vec::new(),
        };
        let at = source.anchors().roots;
        let roots: KernelRoots = all.get(at);
        all.add("KernelRoots", at.addr());
        all.maps(&roots);
        all.pages(&roots);
        all.threads(&roots);
        all.events(&roots);
        all.slabs(&roots);
        all.table(Level::Pml4, source.anchors().pml4, GuestVirt::new(0));
        all
    }

    fn get<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, at: KPtr<T>) -> T {
        self.view.copy("structure", at).expect("the image is not damaged")
    }

    /// Adds the structure at `at`. Returns whether it was new.
    fn add(&mut self, name: &'static str, at: GuestVirt) -> bool {
        let place = dmap_to_phys(at).expect("structures lie in the direct map");
        if !self.seen.insert(place) {
            return false;
        }
        self.places.push((name, at));
        self.take_apart(structure(name).expect("it is described"), place);
        true
    }

    fn take_apart(&mut self, structure: &'static Structure, at: GuestPhys) {
        for field in structure.fields {
            let place = at.add(field.offset as u64);
            match self::structure(field.kind.name).filter(|_| field.kind.prefix.is_empty()) {
                Some(inner) => {
                    for index in 0..field.size / inner.size {
                        self.take_apart(inner, place.add((index * inner.size) as u64));
                    }
                }
                None => self.parts.push(Part {
                    structure: structure.name,
                    field: field.name,
                    at: place,
                    size: field.size as u64,
                }),
            }
        }
    }

    fn maps(&mut self, roots: &KernelRoots) {
        let mut next = roots.map_list.get();
        while let Some(at) = next.non_null() {
            let map: VmMap = self.get(at);
            self.add("VmMap", at.addr());
            let mut entry = map.header.next.get();
            while entry.addr() != at.addr() {
                let value: VmMapEntry = self.get(entry);
                self.add("VmMapEntry", entry.addr());
                if !value.eflags.get().contains(EntryFlags::IS_SUB_MAP)
                    && !value.object.get().is_null()
                {
                    self.object(value.object.get());
                }
                entry = value.next.get();
            }
            self.nodes(map.index.root.get());
            self.pool(&map.reserve.entries);
            self.pool(&map.reserve.nodes);
            next = map.next_map.get();
        }
    }

    fn nodes(&mut self, at: KPtr<MapNode>) {
        let node: MapNode = self.get(at);
        self.add("MapNode", at.addr());
        if node.level.get() > 0 {
            (0..usize::from(node.count.get())).for_each(|slot| self.nodes(node.child(slot)));
        }
    }

    fn pool(&mut self, pool: &MapPool) {
        let mut next = pool.first.get();
        while let Some(at) = next.non_null() {
            self.add("PoolPage", at.addr());
            next = self.get::<PoolPage>(at).next.get();
        }
    }

    fn object(&mut self, at: KPtr<VmObject>) {
        // The kernel's own objects lie in the roots.
        if at.addr().page() != self.view.roots().addr() {
            self.add("VmObject", at.addr());
        }
    }

    fn pages(&mut self, roots: &KernelRoots) {
        for number in 0..roots.vm_phys_nsegs.get() {
            let at = roots.vm_phys_segs.get().addr().add(number * size_of::<VmPhysSeg>() as u64);
            let seg: VmPhysSeg = self.get(KPtr::new(at));
            self.add("VmPhysSeg", at);
            for pfn in seg.start.get()..seg.fresh.get() {
                self.add("VmPage", page_element(roots, u64::from(pfn)));
            }
        }
    }

    fn threads(&mut self, roots: &KernelRoots) {
        let mut next = roots.sched.all.head.get();
        while let Some(at) = next.non_null() {
            let thread: Thread = self.get(at);
            self.add("Thread", at.addr());
            self.queue(thread.sleepqueue.get());
            next = thread.all_next.get();
        }
        roots.sched.sleepqueues.iter().for_each(|queue| self.queue(queue.get()));
        let mut next = roots.cpuhead.get();
        while let Some(at) = next.non_null() {
            if at.addr().page() != self.view.roots().addr() {
                self.add("Pcpu", at.addr());
            }
            next = self.get::<Pcpu>(at).allcpu_next.get();
        }
    }

    fn queue(&mut self, mut next: KPtr<SleepQueue>) {
        while let Some(at) = next.non_null() {
            if !self.add("SleepQueue", at.addr()) {
                return;
            }
            let queue: SleepQueue = self.get(at);
            self.queue(queue.spare.get());
            next = queue.hash_next.get();
        }
    }

    fn events(&mut self, roots: &KernelRoots) {
        let mut list = roots.eventhandler_lists.get();
        while let Some(at) = list.non_null() {
            let event: EventhandlerList = self.get(at);
            self.add("EventhandlerList", at.addr());
            let mut handler = event.first.get();
            while let Some(at) = handler.non_null() {
                let value: EventhandlerEntry = self.get(at);
                self.add("EventhandlerEntry", at.addr());
                let stored = GuestVirt::new(value.arg.get());
                if dmap_to_phys(stored).is_some() {
                    let op: StoredOp = self.get(KPtr::new(stored));
                    assert_eq!(op.handler.get(), at, "only stored operations are arguments");
                    self.add("StoredOp", stored);
                }
                handler = value.next.get();
            }
            list = event.next_list.get();
        }
    }

    /// All slabs, with used or free items.
    fn slabs(&mut self, roots: &KernelRoots) {
        let items = [
            "VmObject",
            "EventhandlerList",
            "EventhandlerEntry",
            "StoredOp",
            "Thread",
            "SleepQueue",
            "Pcpu",
        ];
        let mut slabs: Vec<GuestVirt> = self
            .places
            .iter()
            .filter(|(name, _)| items.contains(name))
            .map(|(_, at)| at.page())
            .collect();
        for zone in &roots.zones {
            let mut next = zone.partial.get();
            while let Some(at) = next.non_null() {
                slabs.push(at.addr());
                let header: SlabHeader = self.get(at);
                let mut free = header.free.get();
                while let Some(item) = free.non_null() {
                    self.add("SlabItem", item.addr());
                    free = self.get(item).next.get();
                }
                next = header.next.get();
            }
        }
        for slab in slabs {
            self.add("SlabHeader", slab);
        }
    }

    fn table(&mut self, level: Level, at: GuestPhys, base: GuestVirt) {
        self.tables.push((level, at, base));
        let (_, name) = ENTRIES
            [ENTRIES.iter().position(|(own, _)| *own == level).expect("there are four levels")];
        for index in 0..NPTEPG as u64 {
            let place = at.add(index * 8);
            self.parts.push(Part { structure: name, field: "bits", at: place, size: 8 });
            let pte = Pte::from_bits(self.view.source().load(place).expect("tables are RAM"));
            let (shift, below) = match level {
                Level::Pml4 => (39, Level::Pdpt),
                Level::Pdpt => (30, Level::Pd),
                Level::Pd => (21, Level::Pt),
                Level::Pt => continue,
            };
            if pte.is_valid() && !pte.is_large() {
                let va = base.get() | index << shift;
                let va = if level == Level::Pml4 && index >= 256 { va | 0xffff << 48 } else { va };
                self.table(below, pte.frame(), GuestVirt::new(va));
            }
        }
    }
}

/// The structure with this name.
#[must_use]
pub fn structure(name: &str) -> Option<&'static Structure> {
    STRUCTURES.iter().find(|structure| structure.name == name)
}

/// Where the element of the page array for page `pfn` lies.
#[must_use]
pub fn page_element(roots: &KernelRoots, pfn: u64) -> GuestVirt {
    roots
        .vm_page_array
        .get()
        .addr()
        .add((pfn - roots.first_page.get()) * size_of::<VmPage>() as u64)
}
