//! Kinds of corruption, each with the rule that must find it and the structure that it must name.

use std::mem::offset_of;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::Rng as _;
use vmkern::abi::addr::KPtr;
use vmkern::abi::field::Code;
use vmkern::abi::kva::{DMAP_MIN, KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern::abi::layout::{
    EntryFlags, EventhandlerEntry, EventhandlerList, HeldLocks, KernelRoots, MapNode, ObjectFlags,
    PageCache, PageFlags, PageOflags, Pcpu, PoolPage, Protection, SlabHeader, SlabItem, SleepQueue,
    StoredOp, Thread, ThreadState, VmFreeList, VmMap, VmMapEntry, VmObject, VmPage, VmPhysSeg,
};
use vmkern::abi::pte::{Level, Pte, PteFlags};
use vmkern::inspect::Source as _;
use vmkern::{GuestPhys, GuestVirt};
use vmkern_tests::damage::Overlay;
use vmkern_tests::damage::anatomy::{Anatomy, page_element};

/// A guest's memory, to be damaged.
pub struct Scene<'a, 'i> {
    pub anatomy: &'a Anatomy<'i>,
    pub overlay: Overlay<'i>,
    pub random: Xoshiro256PlusPlus,
}

/// The address at which a finding must be.
type At = GuestVirt;

/// A kind of corruption.
pub struct Kind {
    /// A description of the damage.
    pub name: &'static str,
    /// The rule that finds it.
    pub rule: &'static str,
    /// The structure's name in the finding.
    pub what: &'static str,
    /// Does the damage, and returns where the finding must be.
    pub damage: fn(&mut Scene<'_, '_>) -> At,
}

impl Scene<'_, '_> {
    fn draw<T: Copy>(&mut self, all: &[T]) -> T {
        assert!(
            !all.is_empty(),
            "the guest has nothing of the kind: {}",
            std::any::type_name::<T>()
        );
        all[usize::try_from(self.random.next_u64() % all.len() as u64).expect("an index")]
    }

    fn roots(&self) -> (GuestVirt, KernelRoots) {
        let at = self.overlay.anchors().roots.addr();
        (at, self.overlay.get(at))
    }

    /// The address of a field of the roots.
    fn root_of<F>(&self, field: fn(&KernelRoots) -> &F) -> At {
        let (at, roots) = self.roots();
        at.add(
            (std::ptr::from_ref(field(&roots)).addr() - std::ptr::from_ref(&roots).addr()) as u64,
        )
    }

    /// Changes the roots; the finding is at `field`.
    fn change_root<F>(&mut self, field: fn(&KernelRoots) -> &F, change: impl FnOnce(&F)) -> At {
        let at = self.overlay.anchors().roots.addr();
        self.overlay.change(at, |roots: &KernelRoots| change(field(roots)));
        self.root_of(field)
    }

    /// Changes the structure at `at`, where the finding is.
    fn change<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &mut self,
        at: At,
        change: impl FnOnce(&T),
    ) -> At {
        self.overlay.change(at, change);
        at
    }

    /// One of the structures called `name` that satisfy `wanted`.
    fn one<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &mut self,
        name: &str,
        wanted: impl Fn(&T) -> bool,
    ) -> At {
        let all: Vec<At> = self
            .anatomy
            .places
            .iter()
            .filter(|(own, at)| *own == name && wanted(&self.overlay.get(*at)))
            .map(|(_, at)| *at)
            .collect();
        self.draw(&all)
    }

    fn map(&self, slot: usize) -> At {
        self.roots().1.maps[slot].get().addr()
    }

    /// The entries of the map in a slot of the roots, in their order.
    fn entries(&self, slot: usize) -> Vec<At> {
        let map = self.map(slot);
        let mut entries = Vec::new();
        let mut at = self.overlay.get::<VmMap>(map).header.next.get().addr();
        while at != map {
            entries.push(at);
            at = self.overlay.get::<VmMapEntry>(at).next.get().addr();
        }
        entries
    }

    /// An entry of kmem_map that has neighbours on both sides.
    fn kmem_entry(&mut self) -> At {
        let entries = self.entries(1);
        self.draw(&entries[1..entries.len() - 1])
    }

    /// Makes an entry of kmem_map allow this, and leaves its translations. Returns its start.
    fn allow(&mut self, protection: Protection) -> At {
        let at = self.kmem_entry();
        self.change(at, |e: &VmMapEntry| e.protection.set(protection));
        self.overlay.get::<VmMapEntry>(at).start.get()
    }

    /// An entry of an anonymous object.
    fn pageable_entry(&mut self) -> At {
        let entries: Vec<At> = [2, 3].into_iter().flat_map(|slot| self.entries(slot)).collect();
        let all: Vec<At> = entries
            .into_iter()
            .filter(|at| !self.overlay.get::<VmMapEntry>(*at).object.get().is_null())
            .collect();
        self.draw(&all)
    }

    /// The page tables of kernel_map below the image that satisfy `wanted`.
    fn page_tables(&self, wanted: impl Fn(GuestPhys) -> bool) -> Vec<GuestPhys> {
        let kernels = VM_MIN_KERNEL_ADDRESS..KERNBASE;
        let is_one = |level: Level, base| level == Level::Pt && kernels.contains(base);
        let all = self.anatomy.tables.iter().filter(|(level, _, base)| is_one(*level, base));
        all.map(|(_, at, _)| *at).filter(|at| wanted(*at)).collect()
    }

    fn page_of(&self, pfn: u64) -> At {
        page_element(&self.roots().1, pfn)
    }

    /// The element of a page that satisfies `wanted`.
    fn page(&mut self, wanted: impl Fn(&VmPage) -> bool) -> At {
        self.one("VmPage", wanted)
    }

    /// A page of kmem_object.
    fn kmem_page(&mut self) -> At {
        let kmem = self.root_of(|roots| &roots.kmem_object);
        self.page(|page| page.object.get().addr() == kmem)
    }

    /// A page of kmem_object that is a leaf of the tree and a left child: its parent, and the page
    /// itself.
    fn lower(&mut self) -> (At, At) {
        let kmem = self.root_of(|roots| &roots.kmem_object);
        let is_leaf = |page: &VmPage| page.left.get() | page.right.get() == 0;
        let below =
            |page: &VmPage| self.overlay.get::<VmPage>(self.page_of(page.left.get().into()));
        let has_one = |page: &VmPage| page.left.get() != 0 && is_leaf(&below(page));
        let uppers: Vec<At> = self
            .anatomy
            .places
            .iter()
            .filter(|(name, _)| *name == "VmPage")
            .map(|(_, at)| *at)
            .collect();
        let of_kmem = |at: &At| {
            Some(self.overlay.get::<VmPage>(*at))
                .is_some_and(|page| page.object.get().addr() == kmem && has_one(&page))
        };
        let uppers: Vec<At> = uppers.into_iter().filter(of_kmem).collect();
        let upper = self.draw(&uppers);
        (upper, self.page_of(self.overlay.get::<VmPage>(upper).left.get().into()))
    }

    /// Page number of the element at `at`.
    fn pfn(&self, at: At) -> u64 {
        let roots = self.roots().1;
        roots.first_page.get()
            + at.since(roots.vm_page_array.get().addr()) / size_of::<VmPage>() as u64
    }

    /// A CPU with several pages in its cache.
    fn caching_cpu(&mut self) -> At {
        self.one("Pcpu", |cpu: &Pcpu| cpu.page_cache.pages.count.get() > 1)
    }

    /// Changes the list of pages in the cache of the CPU at `cpu`, where the finding is.
    fn change_cache(&mut self, cpu: At, change: impl FnOnce(&VmFreeList)) -> At {
        self.change(cpu, |cpu: &Pcpu| change(&cpu.page_cache.pages));
        cpu.add((offset_of!(Pcpu, page_cache) + offset_of!(PageCache, pages)) as u64)
    }

    /// A page in a CPU's cache.
    fn cached_page(&mut self) -> At {
        self.page(|page| page.flags.get().contains(PageFlags::PCPU_CACHE))
    }

    /// A sleeping thread that serves requests.
    fn sleeper(&mut self) -> At {
        self.one("Thread", |t: &Thread| {
            t.tid.get() < 64 && t.state() == Some(ThreadState::Sleeping)
        })
    }

    /// A thread with a time-out.
    fn timed(&mut self, wanted: impl Fn(&Thread) -> bool) -> At {
        self.one("Thread", |t: &Thread| t.callout.sequence.get() != 0 && wanted(t))
    }

    /// An entry of a table of `level` that satisfies `wanted`, with its place and the address that
    /// it translates.
    fn pte(
        &mut self,
        level: Level,
        wanted: impl Fn(GuestVirt, Pte) -> bool,
    ) -> (GuestPhys, GuestVirt, Pte) {
        let shift = match level {
            Level::Pml4 => 39,
            Level::Pdpt => 30,
            Level::Pd => 21,
            Level::Pt => 12,
        };
        let mut all = Vec::new();
        for &(_, table, base) in self.anatomy.tables.iter().filter(|(own, ..)| *own == level) {
            for index in 0..512u64 {
                let place = table.add(index * 8);
                let pte = Pte::from_bits(self.overlay.load(place).expect("it is RAM"));
                let va = GuestVirt::new(base.get() | index << shift);
                if wanted(va, pte) {
                    all.push((place, va, pte));
                }
            }
        }
        self.draw(&all)
    }

    /// A translation of kmem_map.
    fn kmem_pte(&mut self) -> (GuestPhys, GuestVirt, Pte) {
        let map: VmMap = self.overlay.get(self.map(1));
        let range = map.min_offset()..map.max_offset();
        self.pte(Level::Pt, |va, pte| range.contains(&va) && pte.is_valid())
    }

    fn set_pte(&mut self, at: GuestPhys, bits: u64) {
        self.overlay.word(at).store(bits, std::sync::atomic::Ordering::Relaxed);
    }

    /// Changes the bits of a translation of kmem_map.
    fn kmem_flags(&mut self, change: impl FnOnce(u64) -> u64) -> At {
        let (at, va, pte) = self.kmem_pte();
        self.set_pte(at, change(pte.bits()));
        va
    }

    /// A leaf of kmem_map's index.
    fn leaf(&mut self) -> At {
        let entries = self.entries(1);
        self.one("MapNode", |node: &MapNode| {
            node.level.get() == 0
                && node.count.get() > 7
                && (2..7).all(|slot| entries.contains(&node.entry(slot).addr()))
        })
    }
}

fn null<T>() -> KPtr<T> {
    KPtr::NULL
}

macro_rules! kinds {
    ($($name:literal, $rule:literal, $what:literal => $damage:expr;)*) => {
        &[$(Kind { name: $name, rule: $rule, what: $what, damage: $damage }),*]
    };
}

/// All kinds.
pub const KINDS: &[Kind] = kinds! {
    // Maps and entries.
    "a map counts an entry too many", "map-nentries", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.nentries.inc());
    "a map's size is a page too small", "map-size", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.size.update_locked(|n| n - 4096));
    "a map of another pmap", "map-pmap", "exec_map" =>
        |s| s.change(s.map(2), |m: &VmMap| m.pmap.set(GuestPhys::new(0x7000)));
    "a map with the other kind of lock", "map-system", "pipe_map" =>
        |s| s.change(s.map(3), |m: &VmMap| m.system_map.raise());
    "a map waits for nobody", "map-wakeup", "exec_map" =>
        |s| s.change(s.map(2), |m: &VmMap| m.needs_wakeup.raise());
    "a map that ends inside of a page", "map-bounds", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.header.end.update_locked(|at| at.add(5)));
    "a map falls off the list of maps", "map-registry", "kernel_map" =>
        |s| { s.change_root(|r| &r.map_list, |list| list.set(null())); s.map(0) };
    "a map of two names", "map-registry", "pipe_map" =>
        |s| {
            let exec = s.map(2);
            s.change_root(|r| &r.maps, |maps| maps[3].set(KPtr::new(exec)));
            exec
        };
    "a map without its home", "map-home", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.reserve.home.set(null()));
    "a backward link that is lost", "map-list", "vm_map_entry" =>
        |s| { let at = s.kmem_entry(); s.change(at, |e: &VmMapEntry| e.prev.set(null())) };
    "the links of an entry swapped", "map-list", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            let entry: VmMapEntry = s.overlay.get(at);
            s.change(at, |e: &VmMapEntry| {
                e.next.set(entry.prev.get());
                e.prev.set(entry.next.get());
            })
        };
    "an entry cut out of the list", "map-list", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            let entry: VmMapEntry = s.overlay.get(at);
            s.change(entry.prev.get().addr(), |e: &VmMapEntry| e.next.set(entry.next.get()));
            entry.next.get().addr()
        };
    "a list of entries that bites its tail", "map-list", "vm_map_entry" =>
        |s| {
            let entries = s.entries(1);
            let at = s.draw(&entries[3..]);
            s.change(at, |e: &VmMapEntry| e.next.set(KPtr::new(entries[2])));
            entries[2]
        };
    "a link that leads nowhere", "unreadable", "vm_map_entry" =>
        |s| {
            let nowhere = GuestVirt::new(0xdead_0000_0000_0000);
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.next.set(KPtr::new(nowhere)));
            nowhere
        };
    "an entry past the map's end", "map-order", "vm_map_entry" =>
        |s| {
            let last = *s.entries(1).last().expect("there are entries");
            let end = s.overlay.get::<VmMap>(s.map(1)).max_offset();
            s.change(last, |e: &VmMapEntry| e.end.set(end.add(4096)))
        };
    "entries that overlap", "map-order", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            let below: VmMapEntry =
                s.overlay.get(s.overlay.get::<VmMapEntry>(at).prev.get().addr());
            s.change(at, |e: &VmMapEntry| e.start.set(below.start.get()))
        };
    "an empty entry", "entry-range", "vm_map_entry" =>
        |s| { let at = s.kmem_entry(); s.change(at, |e: &VmMapEntry| e.end.set(e.start.get())) };
    "an entry that starts inside of a page", "entry-range", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.start.update_locked(|at| at.add(64)))
        };
    "an entry that is copied on write", "entry-flags", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.eflags.set(EntryFlags::COW))
        };
    "an entry in transition for ever", "entry-transition", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.eflags.set(EntryFlags::IN_TRANSITION))
        };
    "an entry that is being deleted for ever", "entry-transition", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.eflags.set(EntryFlags::DELETING))
        };
    "an entry that allows what nothing asks for", "entry-protection", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.protection.set(Protection::EXECUTE))
        };
    "an entry without a right at most", "entry-protection", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.max_protection.set(Protection::READ))
        };
    "an entry wired twice", "entry-wired", "vm_map_entry" =>
        |s| { let at = s.kmem_entry(); s.change(at, |e: &VmMapEntry| e.wired_count.set(2)) };
    "an entry at another place of its object", "entry-offset", "vm_map_entry" =>
        |s| {
            let at = s.kmem_entry();
            s.change(at, |e: &VmMapEntry| e.offset.update_locked(|o| o + 4096))
        };
    "an entry that loses its object", "entry-wired", "vm_map_entry" =>
        |s| { let at = s.kmem_entry(); s.change(at, |e: &VmMapEntry| e.object.set(null())) };
    "a submap's entry that is too short", "submap-range", "vm_map_entry" =>
        |s| {
            let at = s.entries(0)[0];
            s.change(at, |e: &VmMapEntry| e.end.update_locked(|at| GuestVirt::new(at.get() - 4096)))
        };
    // The index of a map.
    "a stale max_free", "index-gap", "map index node" =>
        |s| {
            let at = s.one("MapNode", |node: &MapNode| node.level.get() > 0);
            s.change(at, |node: &MapNode| node.gaps[0].inc())
        };
    "a gap of a leaf that is wrong", "index-gap", "map index node" =>
        |s| { let at = s.leaf(); s.change(at, |node: &MapNode| node.gaps[3].inc()) };
    "two tree links swapped", "index-item", "map index node" =>
        |s| {
            let at = s.leaf();
            s.change(at, |node: &MapNode| {
                let (a, b) = (node.targets[3].get(), node.targets[5].get());
                node.targets[3].set(b);
                node.targets[5].set(a);
            })
        };
    "a key that is wrong", "index-item", "map index node" =>
        |s| { let at = s.leaf(); s.change(at, |node: &MapNode| node.keys[4].inc()) };
    "a node of the wrong level", "index-level", "map index node" =>
        |s| { let at = s.leaf(); s.change(at, |node: &MapNode| node.level.set(1)) };
    "a node that says it is fuller", "index-fill", "map index node" =>
        |s| { let at = s.leaf(); s.change(at, |node: &MapNode| node.count.set(40)) };
    "a tree counts a node too many", "index-nodes", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.index.nodes.inc());
    "a tree without a root", "unreadable", "map index node" =>
        |s| { s.change(s.map(1), |m: &VmMap| m.index.root.set(null())); GuestVirt::new(0) };
    "a pool counts an entry too few", "pool-used", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.reserve.entries.used.dec());
    "a pool without its last page", "pool-pages", "kmem_map" =>
        |s| s.change(s.map(1), |m: &VmMap| m.reserve.entries.last.set(null()));
    "a page of a pool with a wrong link", "pool-pages", "pool page" =>
        |s| {
            let at = s.one("PoolPage", |_: &PoolPage| true);
            s.change(at, |p: &PoolPage| p.prev.set(KPtr::new(at)))
        };
    "a leak of a page of maps", "map-pages", "map_pages" =>
        |s| s.change_root(|r| &r.map_pages, |n| n.inc());
    // Objects.
    "a reference too many", "object-ref-count", "vm_object" =>
        |s| {
            let at = s.one("VmObject", |_: &VmObject| true);
            s.change(at, |o: &VmObject| o.ref_count.inc())
        };
    "an object that counts a page too few", "object-resident", "kmem_object" =>
        |s| s.change_root(|r| &r.kmem_object, |o| o.resident_page_count.dec());
    "an object of the wrong type", "object-kind", "vm_object" =>
        |s| {
            let at = s.one("VmObject", |_: &VmObject| true);
            s.change(at, |o: &VmObject| o.kind.set(Code::from_raw(4)))
        };
    "an object that is dying", "object-flags", "vm_object" =>
        |s| {
            let at = s.one("VmObject", |_: &VmObject| true);
            s.change(at, |o: &VmObject| o.flags.set(ObjectFlags::DEAD))
        };
    "a page that leaves its object's index", "object-page", "vm_page" =>
        |s| { let (upper, at) = s.lower(); s.change(upper, |p: &VmPage| p.left.set(0)); at };
    "a page at another index", "object-index", "vm_page" =>
        |s| {
            let (_, at) = s.lower();
            s.change(at, |p: &VmPage| p.pindex.update_locked(|n| n + (1 << 26)))
        };
    "a page that does not know what is above it", "object-index", "vm_page" =>
        |s| {
            let (_, at) = s.lower();
            s.change(at, |p: &VmPage| p.parent.update_locked(|pfn| pfn ^ 1))
        };
    "an index that goes round in a circle", "object-index", "vm_page" =>
        |s| {
            let (upper, at) = s.lower();
            let pfn = u32::try_from(s.pfn(upper)).expect("it is small");
            s.change(at, |p: &VmPage| p.left.set(pfn));
            upper
        };
    "an index that leads out of memory", "object-index", "vm_page" =>
        |s| { let (_, at) = s.lower(); s.change(at, |p: &VmPage| p.right.set(u32::MAX)) };
    "an index that is turned", "object-index", "vm_page" =>
        |s| {
            // The root and its left child change places: the order is right, but the heap is upside
            // down.
            let pfn = s.roots().1.kmem_object.root.get();
            let at = s.page_of(pfn.into());
            let other = s.overlay.get::<VmPage>(at).left.get();
            let top = s.page_of(other.into());
            let middle = s.overlay.get::<VmPage>(top).right.get();
            s.change_root(|r| &r.kmem_object, |o| o.root.set(other));
            s.change(top, |p: &VmPage| { p.right.set(pfn); p.parent.set(0) });
            if middle != 0 {
                s.change(s.page_of(middle.into()), |p: &VmPage| p.parent.set(pfn));
            }
            s.change(at, |p: &VmPage| { p.left.set(middle); p.parent.set(other) })
        };
    "a search that ended between strangers", "object-search", "kmem_object" =>
        |s| s.change_root(|r| &r.kmem_object, |o| o.after.inc());
    // Pages.
    "a page without a wiring", "page-state", "vm_page" =>
        |s| { let at = s.kmem_page(); s.change(at, |p: &VmPage| p.wire_count.set(0)) };
    "a leaked page", "page-lost", "vm_page" =>
        |s| {
            // The first page that was never used is allocated, counted as wired, and forgotten.
            let segs = s.roots().1.vm_phys_segs.get().addr();
            let number = s.roots().1.vm_phys_nsegs.get() - 1;
            let seg = segs.add(number * size_of::<VmPhysSeg>() as u64);
            let pfn = s.overlay.get::<VmPhysSeg>(seg).fresh.get();
            s.change(seg, |seg: &VmPhysSeg| seg.fresh.inc());
            s.change_root(|r| &r.meter, |meter| {
                meter.v_free_count.dec();
                meter.v_wire_count.inc();
            });
            s.change_root(|r| &r.vm_page_zero_count, |n| n.dec());
            let at = s.page_of(pfn.into());
            s.change(at, |p: &VmPage| {
                p.flags.set(PageFlags::ALLOCATED | PageFlags::TOUCHED | PageFlags::UNMANAGED);
                p.wire_count.set(1);
                p.segind.set(u16::try_from(number).expect("there are few segments"));
            })
        };
    "a page of an object that is free", "page-free", "vm_page" =>
        |s| { let at = s.kmem_page(); s.change(at, |p: &VmPage| p.flags.set(PageFlags::TOUCHED)) };
    "a page of two objects", "page-owner", "vm_page" =>
        |s| {
            let kmem = s.root_of(|r| &r.kmem_object);
            let (_, ours) = s.lower();
            let theirs = s.page(|p| !p.object.get().is_null() && p.object.get().addr() != kmem);
            let pfn = u32::try_from(s.pfn(theirs)).expect("it is small");
            s.change(ours, |p: &VmPage| p.left.set(pfn));
            theirs
        };
    "a page that is busy for ever", "page-state", "vm_page" =>
        |s| { let at = s.kmem_page(); s.change(at, |p: &VmPage| p.oflags.set(PageOflags::BUSY)) };
    "a page that is held", "page-state", "vm_page" =>
        |s| { let at = s.kmem_page(); s.change(at, |p: &VmPage| p.hold_count.set(1)) };
    "a free page with a wiring", "page-free-state", "vm_page" =>
        |s| {
            let at = s.page(|p| p.block.get() > 0);
            s.change(at, |p: &VmPage| p.wire_count.set(1))
        };
    "a block on the list of another order", "free-block-order", "vm_page" =>
        |s| {
            let at = s.page(|p| p.block.get() > 0);
            s.change(at, |p: &VmPage| p.block.update_locked(|block| block ^ 3))
        };
    "a free list with a wrong link", "free-list-link", "vm_page" =>
        |s| {
            let at = s.page(|p| p.block.get() > 0);
            s.change(at, |p: &VmPage| p.prev.inc())
        };
    "a page on two lists", "page-owner", "vm_page" =>
        |s| {
            let at = s.page(|p| p.block.get() > 0);
            let pfn = u32::try_from(s.pfn(at)).expect("it is small");
            let roots = s.roots().1;
            let own = usize::from(s.overlay.get::<VmPage>(at).block.get()) - 1;
            let list = roots.vm_phys_free_queues.iter().position(|orders| {
                let mut next = orders[own].head.get();
                while next != 0 && next != pfn {
                    next = s.overlay.get::<VmPage>(s.page_of(next.into())).next.get();
                }
                next == pfn
            });
            let list = list.expect("a free block is on a list");
            s.change_root(|r| &r.vm_phys_free_queues, |queues| {
                let other = &queues[list][if own == 12 { 0 } else { 12 }];
                other.head.set(pfn);
                other.tail.set(pfn);
                other.count.set(1);
            });
            at
        };
    "a free list counts a block too many", "free-list-count", "free list" =>
        |s| {
            s.change_root(|r| &r.vm_phys_free_queues, |queues| queues[0][0].count.inc());
            s.root_of(|r| &r.vm_phys_free_queues[0][0])
        };
    "free pages counted wrong", "page-counts", "vmmeter" =>
        |s| s.change_root(|r| &r.meter.v_free_count, |n| n.dec());
    "wired pages counted wrong", "page-counts", "vmmeter" =>
        |s| s.change_root(|r| &r.meter.v_wire_count, |n| n.inc());
    "zeroed pages counted wrong", "page-counts", "vmmeter" =>
        |s| s.change_root(|r| &r.vm_page_zero_count, |n| n.inc());
    "a threshold that is wrong", "thresholds", "vmmeter" =>
        |s| s.change_root(|r| &r.meter.v_free_min, |n| n.inc());
    "segments that overlap", "segment-order", "vm_phys_seg" =>
        |s| {
            let at = s.roots().1.vm_phys_segs.get().addr().add(size_of::<VmPhysSeg>() as u64);
            s.change(at, |seg: &VmPhysSeg| seg.start.set(0))
        };
    "a page of a paging queue that is on none", "page-queue", "vm_page" =>
        |s| { let at = s.page(|p| p.queue.get() == 2); s.change(at, |p: &VmPage| p.queue.set(0)) };
    // Page tables.
    "a translation that is not valid and not 0", "pte-invalid", "PTE" =>
        |s| s.kmem_flags(|bits| bits & !1);
    "a translation that is gone", "pte-missing", "PTE" => |s| s.kmem_flags(|_| 0);
    "a translation to another page", "pte-frame", "PTE" => |s| s.kmem_flags(|bits| bits ^ 0x1_0000);
    "a translation that may be executed", "pte-wx", "PTE" =>
        |s| s.kmem_flags(|bits| bits & !(1 << 63));
    "a translation that may not be written", "pte-protection", "PTE" =>
        |s| s.kmem_flags(|bits| bits & !PteFlags::RW.bits());
    "writable translations in a range that is read-only", "pte-protection", "PTE" =>
        |s| s.allow(Protection::READ);
    "translations in a range that allows nothing", "pte-protection", "PTE" =>
        |s| s.allow(Protection::empty());
    "a translation of the wrong privilege", "pte-user", "PTE" =>
        |s| s.kmem_flags(|bits| bits ^ PteFlags::U.bits());
    "a translation that is not wired", "pte-wired", "PTE" =>
        |s| s.kmem_flags(|bits| bits & !PteFlags::W.bits());
    "a translation with a bit that nobody sets", "pte-reserved", "PTE" =>
        |s| s.kmem_flags(|bits| bits | 1 << 55);
    "a translation made by another function", "pte-kenter", "PTE" =>
        |s| s.kmem_flags(|bits| bits | PteFlags::KENTER.bits());
    "a translation in a hole", "pte-hole", "PTE" =>
        |s| {
            let (_, _, pte) = s.kmem_pte();
            let map: VmMap = s.overlay.get(s.map(1));
            let used: Vec<_> = s
                .entries(1)
                .into_iter()
                .map(|at| {
                    let e: VmMapEntry = s.overlay.get(at);
                    e.start.get()..e.end.get()
                })
                .collect();
            let range = map.min_offset()..map.max_offset();
            let (at, va, _) = s.pte(Level::Pt, |va, _| {
                range.contains(&va) && !used.iter().any(|used| used.contains(&va))
            });
            s.set_pte(at, pte.bits());
            va
        };
    "a guard page of a stack that is mapped", "kernel-stack", "thread" =>
        |s| {
            let thread = s.one("Thread", |t: &Thread| t.kstack.get().get() != 0);
            let low = s.overlay.get::<Thread>(thread).kstack.get();
            let guard = GuestVirt::new(low.get() - 4096);
            let (_, _, pte) = s.kmem_pte();
            let (at, _, _) = s.pte(Level::Pt, |va, _| va == guard);
            s.set_pte(at, pte.bits());
            thread
        };
    "a hole in the direct map", "direct-map", "PDE" =>
        |s| {
            let (roots, _) = s.roots();
            let (at, va, _) = s.pte(Level::Pd, |va, pte| {
                let shown = va < VM_MIN_KERNEL_ADDRESS && va >= DMAP_MIN && pte.is_valid();
                // Without the roots the check cannot begin.
                shown && !(va..va.add(2 << 20)).contains(&roots)
            });
            s.set_pte(at, 0);
            va
        };
    "the image's text that may be written", "pte-wx", "PTE" =>
        |s| {
            let nx = PteFlags::NX.bits();
            let (at, va, pte) = s
                .pte(Level::Pt, |va, pte| va >= KERNBASE && pte.is_valid() && pte.bits() & nx == 0);
            s.set_pte(at, pte.bits() | PteFlags::RW.bits());
            va
        };
    "a page table counts an entry too many", "table-valid", "vm_page" =>
        |s| {
            let boots = s.roots().1.boot_tables;
            let tables = s.page_tables(|at| boots.number(at).is_none());
            let table = s.draw(&tables);
            let at = s.page_of(table.pfn());
            s.change(at, |p: &VmPage| p.private.inc())
        };
    "an entry of a page table of the boot counted too many", "table-valid", "boot_tables" =>
        |s| {
            let (at, roots) = s.roots();
            let tables = s.page_tables(|at| roots.boot_tables.number(at).is_some());
            let table = s.draw(&tables);
            let number = roots.boot_tables.number(table).expect("it is the boot's");
            let valid = |roots: &KernelRoots| roots.boot_tables.valid[number].inc();
            s.overlay.change(at, valid);
            s.root_of(|r| &r.boot_tables.valid).add(number as u64 * 4)
        };
    "page tables of the boot that begin elsewhere", "boot-tables", "page table" =>
        |s| {
            s.change_root(|r| &r.boot_tables.kptphys, |at| at.update_locked(|at| at.add(4096)));
            VM_MIN_KERNEL_ADDRESS
        };
    "a page table of the boot that no page directory leads to", "boot-tables", "page table" =>
        |s| {
            let end = VM_MIN_KERNEL_ADDRESS.add(s.roots().1.boot_tables.nkpt.get() << 21);
            let (at, va, _) = s.pte(Level::Pd, |va, _| (VM_MIN_KERNEL_ADDRESS..end).contains(&va));
            s.set_pte(at, 0);
            va
        };
    "two entries of one page table", "table-shared", "page table" =>
        |s| {
            let tables = |va: GuestVirt, pte: Pte| {
                va >= VM_MIN_KERNEL_ADDRESS && va < KERNBASE && pte.is_valid()
            };
            let (_, first, pte) = s.pte(Level::Pd, tables);
            let (at, second, _) = s.pte(Level::Pd, |va, pte| tables(va, pte) && va != first);
            s.set_pte(at, pte.bits());
            first.max(second)
        };
    "translations counted wrong", "pmap-resident", "kernel_pmap" =>
        |s| s.change_root(|r| &r.kernel_pmap, |pmap| pmap.resident_count.inc());
    // Zones.
    "a zone counts an item too many", "zone-count", "zone" =>
        |s| {
            s.change_root(|r| &r.zones, |zones| zones[4].used.inc());
            s.root_of(|r| &r.zones[4].used)
        };
    "an item of the wrong size", "zone-item-size", "zone" =>
        |s| {
            s.change_root(|r| &r.zones, |zones| zones[5].item_size.set(4096));
            s.root_of(|r| &r.zones[5])
        };
    "a slab of another zone", "slab-zone", "slab" =>
        |s| {
            let at = s.one("SlabHeader", |_: &SlabHeader| true);
            s.change(at, |slab: &SlabHeader| {
                slab.zone.update_locked(|z| Code::from_raw(z.raw() ^ 1))
            })
        };
    "a slab counts a free item too many", "slab-free-count", "slab" =>
        |s| {
            let at = s.one("SlabHeader", |slab: &SlabHeader| slab.free_count.get() > 0);
            s.change(at, |slab: &SlabHeader| slab.free_count.inc())
        };
    "a free item that leads to itself", "slab-free", "slab" =>
        |s| {
            let at = s.one("SlabItem", |_: &SlabItem| true);
            s.change(at, |item: &SlabItem| item.next.set(KPtr::new(at)));
            at.page()
        };
    // Threads.
    "a thread without a list", "thread-list", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.all_prev.set(null())) };
    "a thread of another number", "thread-number", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.tid.update_locked(|tid| tid ^ 1)) };
    "a thread in an impossible state", "thread-state", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.state.set(Code::from_raw(77))) };
    "a thread that runs nowhere", "thread-state", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.state.put(ThreadState::Running)) };
    "a thread that could run, and nobody knows", "runq-missing", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.state.put(ThreadState::Runnable)) };
    "a thread that sleeps elsewhere", "sleepq-sleeper", "thread" =>
        |s| {
            let at = s.sleeper();
            s.change(at, |t: &Thread| t.wchan.update_locked(|at| at.add(64)))
        };
    "a stack pointer beside the stack", "saved-context", "thread" =>
        |s| {
            let at = s.sleeper();
            s.change(at, |t: &Thread| t.md[0].update_locked(|rsp| rsp + (1 << 20)))
        };
    "a thread that holds a lock in its sleep", "held-locks", "thread" =>
        |s| {
            let at = s.sleeper();
            s.change(at, |t: &Thread| t.held_locks.update_locked(|held| held | HeldLocks::MAP))
        };
    "a lock of a thread that does not exist", "mutex-owner", "vm_page_queue_mtx" =>
        |s| s.change_root(|r| &r.vm_page_queue_mtx, |mtx| mtx.owner.set(0x7ff));
    "an sx lock that nobody owns and somebody counts", "sx-held", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.sx_held.set(1)) };
    "an sx lock of a thread that does not exist", "sx-owner", "exec_map" =>
        |s| {
            let at = s.map(2);
            s.change(at, |m: &VmMap| m.sx.owner.set(0x7ff));
            at.add(std::mem::offset_of!(VmMap, sx) as u64)
        };
    "a time-out that is lost", "callout-queued", "thread" =>
        |s| { let at = s.timed(|_| true); s.change(at, |t: &Thread| t.callout.sequence.set(0)) };
    "a time-out that is past", "callout-due", "thread" =>
        |s| { let at = s.timed(|_| true); s.change(at, |t: &Thread| t.callout.deadline.set(0)) };
    "a time-out from the future", "callout-sequence", "thread" =>
        |s| {
            let at = s.timed(|_| true);
            s.change(at, |t: &Thread| t.callout.sequence.set(1 << 40))
        };
    "a sleep queue of another channel", "sleepq-chain", "sleep queue" =>
        |s| {
            let at = s.one("SleepQueue", |q: &SleepQueue| {
                !q.blocked.head.get().is_null() && q.wchan.get().get() != 0
            });
            let used = s
                .roots()
                .1
                .sched
                .sleepqueues
                .iter()
                .map(|q| q.get().addr())
                .find(|at| at.get() != 0);
            let at = used.unwrap_or(at);
            s.change(at, |q: &SleepQueue| q.wchan.update_locked(|at| at.add(8)))
        };
    "CPUs counted wrong", "cpu-list", "vmmeter" =>
        |s| s.change_root(|r| &r.meter.ncpu, |n| n.inc());
    "a CPU that runs no thread", "cpu", "CPU" =>
        |s| {
            let at = s.roots().1.cpuhead.get().addr();
            s.change(at, |cpu: &Pcpu| cpu.curthread.set(null()))
        };
    "a run queue that says it is not empty", "runq-status", "run queue" =>
        |s| {
            let at = s.roots().1.cpuhead.get().addr();
            s.change(at, |cpu: &Pcpu| cpu.runq.status.update_locked(|status| status ^ 1 << 7));
            let cpu: Pcpu = s.overlay.get(at);
            at.add(
                (std::ptr::from_ref(&cpu.runq.queues[7]).addr() - std::ptr::from_ref(&cpu).addr())
                    as u64,
            )
        };
    // Event handlers.
    "an event that runs for ever", "event-runcount", "event" =>
        |s| {
            let at = s.one("EventhandlerList", |_: &EventhandlerList| true);
            s.change(at, |l: &EventhandlerList| l.runcount.set(1))
        };
    "a handler outside of the image", "event-function", "event handler" =>
        |s| {
            let at = s.one("EventhandlerEntry", |_: &EventhandlerEntry| true);
            s.change(at, |e: &EventhandlerEntry| e.func.set(0x1000))
        };
    "a stored operation of another handler", "stored-op", "stored operation" =>
        |s| {
            let at = s.one("StoredOp", |_: &StoredOp| true);
            s.change(at, |op: &StoredOp| op.handler.set(null()))
        };
    "a pageable page that nobody maps", "object-page", "vm_page" =>
        |s| {
            let entry = s.pageable_entry();
            let object = s.overlay.get::<VmMapEntry>(entry).object.get();
            let at = s.page(|p| p.object.get() == object);
            s.change(at, |p: &VmPage| p.object.set(null()))
        };
    // Words with few values.
    "a map's header with rights", "map-header", "exec_map" =>
        |s| s.change(s.map(2), |m: &VmMap| m.header.protection.set(Protection::READ));
    "a map whose other lock is held", "map-other-lock", "exec_map" =>
        |s| {
            let at = s.map(2);
            s.change(at, |m: &VmMap| m.lock.owner.set(3));
            at.add(std::mem::offset_of!(VmMap, lock) as u64)
        };
    "a thread of another name", "thread-name", "thread" =>
        |s| {
            let at = s.sleeper();
            s.change(at, |t: &Thread| t.name[0].update_locked(|word| word ^ 0x100))
        };
    "a thread of another priority", "thread-priority", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.base_priority.set(3)) };
    "a thread on a run queue that it is not on", "runq-link", "thread" =>
        |s| { let at = s.sleeper(); s.change(at, |t: &Thread| t.rq_next.set(KPtr::new(at))) };
    "a thread that waits for what nobody waits for", "wait-message", "thread" =>
        |s| {
            let at = s.sleeper();
            s.change(at, |t: &Thread| t.wmesg[0].update_locked(|word| word ^ 1))
        };
    "pages that came from a disk", "meter", "vmmeter" =>
        |s| s.change_root(|r| &r.meter.v_swapin, |n| n.set(1));
    "a page array that ends early", "page-array", "kernel roots" =>
        |s| s.change_root(|r| &r.vm_page_array_size, |n| n.dec());
    "locks that the boot holds for ever", "held-locks", "kernel roots" =>
        |s| s.change_root(|r| &r.boot_held_locks, |held| held.set(HeldLocks::DRIVER));
    "an object locked by nobody", "mutex-owner", "vm_object" =>
        |s| {
            let at = s.one("VmObject", |_: &VmObject| true);
            s.change(at, |o: &VmObject| o.lock.owner.set(0x7ff))
        };
    "the scheduler locked by nobody", "mutex-owner", "sched_lock" =>
        |s| {
            s.change_root(|r| &r.sched.lock, |lock| lock.owner.set(0x7ff));
            s.root_of(|r| &r.sched.lock)
        };
    "another pagedaemon", "pageproc", "kernel roots" =>
        |s| {
            let at = s.sleeper();
            s.change_root(|r| &r.pageproc, |thread| thread.set(KPtr::new(at)))
        };
    "a submap at a place of an object", "entry-offset", "vm_map_entry" =>
        |s| { let at = s.entries(0)[0]; s.change(at, |e: &VmMapEntry| e.offset.set(4096)) };
    "an event of another name", "event-name", "event" =>
        |s| {
            let at = s.one("EventhandlerList", |_: &EventhandlerList| true);
            s.change(at, |l: &EventhandlerList| l.name[0].update_locked(|w| w ^ 1))
        };
    "a stored operation of another function", "stored-op", "stored operation" =>
        |s| {
            let at = s.one("StoredOp", |_: &StoredOp| true);
            s.change(at, |op: &StoredOp| op.run.set(4096))
        };
    "a slot of no use that leads somewhere", "index-unused", "map index node" =>
        |s| {
            let at = s.one("MapNode", |node: &MapNode| node.count.get() < 15);
            s.change(at, |node: &MapNode| node.targets[14].set(at))
        };
};

/// Kinds for guests whose CPUs have caches of pages.
pub const CACHE_KINDS: &[Kind] = kinds! {
    "a cache counts a page too many", "page-cache-count", "page cache" =>
        |s| { let cpu = s.caching_cpu(); s.change_cache(cpu, |pages| pages.count.inc()) };
    "a cache with another tail", "page-cache-link", "page cache" =>
        |s| {
            let cpu = s.caching_cpu();
            s.change_cache(cpu, |pages| pages.tail.set(pages.head.get()))
        };
    "a cache that leads out of memory", "page-cache-link", "page cache" =>
        |s| { let cpu = s.caching_cpu(); s.change_cache(cpu, |pages| pages.head.set(u32::MAX)) };
    "a page in a cache with a wrong link", "page-cache-link", "vm_page" =>
        |s| { let at = s.cached_page(); s.change(at, |p: &VmPage| p.prev.inc()) };
    "a page in a cache that leads to itself", "page-cache-link", "vm_page" =>
        |s| {
            let at = s.cached_page();
            let pfn = u32::try_from(s.pfn(at)).expect("it is small");
            s.change(at, |p: &VmPage| p.next.set(pfn))
        };
    "a page in a cache of another segment", "page-cache-link", "vm_page" =>
        |s| { let at = s.cached_page(); s.change(at, |p: &VmPage| p.segind.inc()) };
    "a page in two caches", "page-owner", "vm_page" =>
        |s| {
            let cpu = s.caching_cpu();
            let pfn = s.overlay.get::<Pcpu>(cpu).page_cache.pages.head.get();
            let other = s.one("Pcpu", |_: &Pcpu| true);
            let first = s.roots().1.cpuhead.get().addr();
            let second = s.overlay.get::<Pcpu>(first).allcpu_next.get().addr();
            let other =
                if other == cpu { if cpu == first { second } else { first } } else { other };
            s.change_cache(other, |pages| pages.head.set(pfn));
            s.page_of(pfn.into())
        };
    "a page in a cache and on a free list", "page-owner", "vm_page" =>
        |s| {
            let at = s.page(|p| p.block.get() > 0);
            let pfn = u32::try_from(s.pfn(at)).expect("it is small");
            let cpu = s.caching_cpu();
            s.change_cache(cpu, |pages| pages.head.set(pfn));
            at
        };
    "a page in a cache that somebody has", "page-free", "vm_page" =>
        |s| {
            let at = s.cached_page();
            s.change(at, |p: &VmPage| {
                p.flags.set(PageFlags::ALLOCATED | PageFlags::TOUCHED | PageFlags::UNMANAGED)
            })
        };
    "a page in a cache that does not say so", "page-free-state", "vm_page" =>
        |s| {
            let at = s.cached_page();
            s.change(at, |p: &VmPage| p.flags.update_locked(|flags| flags - PageFlags::PCPU_CACHE))
        };
    "a free block that says it is in a cache", "page-free-state", "vm_page" =>
        |s| {
            let at = s.page(|p| p.block.get() > 0);
            s.change(at, |p: &VmPage| p.flags.update_locked(|flags| flags | PageFlags::PCPU_CACHE))
        };
    "a page in a cache with a wiring", "page-free-state", "vm_page" =>
        |s| { let at = s.cached_page(); s.change(at, |p: &VmPage| p.wire_count.set(1)) };
    "a page that is gone from its cache", "page-lost", "vm_page" =>
        |s| {
            let cpu = s.caching_cpu();
            let pfn = s.overlay.get::<Pcpu>(cpu).page_cache.pages.head.get();
            let at = s.page_of(pfn.into());
            let next = s.overlay.get::<VmPage>(at).next.get();
            s.change(s.page_of(next.into()), |p: &VmPage| p.prev.set(0));
            s.change_cache(cpu, |pages| {
                pages.head.set(next);
                pages.count.dec();
            });
            at
        };
    "a cache locked by nobody", "mutex-owner", "page cache" =>
        |s| {
            let cpu = s.caching_cpu();
            s.change(cpu, |cpu: &Pcpu| cpu.page_cache.lock.owner.set(0x7ff));
            cpu.add((offset_of!(Pcpu, page_cache) + offset_of!(PageCache, lock)) as u64)
        };
    "a floor of caches that is too low", "page-cache-floor", "kernel roots" =>
        |s| s.change_root(|r| &r.page_cache_floor, |n| n.dec());
    "caches larger than anybody asked for", "page-cache-floor", "kernel roots" =>
        |s| {
            s.change_root(|r| &r.page_cache_max, |n| n.inc());
            s.root_of(|r| &r.page_cache_floor)
        };
};

const _: () = assert!(KINDS.len() >= 60);
