//! Zones of small equal items in the direct map: objects, threads, event handlers. The parts of
//! maps lie in pools of the maps ([`super::map`]).
//!
//! A zone grows by one page, a slab, and frees a slab as soon as its last item is free. A slab
//! begins with a [`SlabHeader`]; its free items form a list inside themselves, and slabs with free
//! items form the zone's list. No item needs address space outside of the direct map. Zones grow by
//! INTERRUPT-class pages and never sleep.

use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kva::phys_to_dmap;
pub use vmkern_abi::layout::ZoneItem;
use vmkern_abi::layout::{SlabHeader, SlabItem, SlabZone, Zone};

use super::page::{AllocFlags, Contents};
use super::phys::{Phys, phys_of};
use crate::kern::guard::{Guard, Lock};
use crate::kern::lock::LockClass;
use crate::kern::queue::{PointerList, PointerSList, pointer_links};
use crate::machine::{AllocClass, Cpu, Mark, PhysMem};
use crate::num::to_u32;
use crate::window::Line;

/// The kind of a zone's mutex.
enum ZoneLock {}

impl Lock for ZoneLock {
    const CLASS: LockClass = LockClass::Zone;
}

/// A zone, locked.
type LockedZone<'a, M> = Guard<'a, M, ZoneLock>;

/// Bytes of the item size's unit: a cache line.
const LINE: usize = size_of::<Line>();

const fn items_per_slab(item_size: u64) -> u64 {
    (PAGE_SIZE - size_of::<SlabHeader>() as u64) / item_size
}

pointer_links! {
    /// The slabs of a zone (`us_link`).
    SlabLinks: SlabHeader { next: next, prev: prev }
    /// The free items of a slab.
    ItemLinks: SlabItem { next: next }
}

impl<M: PhysMem + Cpu> Phys<M> {
    /// Sets up the zones, empty (`vm_map_startup`).
    pub(crate) fn zone_startup(&self) {
        for (zone, kind) in self.state().zones.iter().zip(Zone::ALL) {
            zone.item_size.set(to_u32(kind.item_size()));
        }
    }

    /// An item, all zero, or `None` when a page was needed and none was available (`uma_zalloc`
    /// with M_NOWAIT). Locks: takes the zone's.
    #[must_use]
    pub fn zone_alloc<T: ZoneItem>(&self) -> Option<KPtr<T>> {
        let zone = &self.state().zones[T::ZONE.index()];
        let item = self.zone_take(&self.zone_lock(zone), zone, T::ZONE);
        let pa = phys_of(item?)?;
        for line in 0..u64::from(zone.item_size.get()) / LINE as u64 {
            self.at::<Line>(pa.add(line * LINE as u64)).iter().for_each(|word| word.set(0));
        }
        Some(KPtr::new(phys_to_dmap(pa)))
    }

    /// Frees an item (`uma_zfree`). Locks: takes the zone's.
    pub fn zone_free<T: ZoneItem>(&self, item: KPtr<T>) {
        let zone = &self.state().zones[T::ZONE.index()];
        self.zone_put(&self.zone_lock(zone), zone, KPtr::new(item.addr()));
    }

    fn zone_lock<'a>(&'a self, zone: &'a SlabZone) -> LockedZone<'a, M> {
        self.mtx_guard(&zone.lock)
    }

    fn zone_take(
        &self,
        locked: &LockedZone<'_, M>,
        zone: &SlabZone,
        kind: Zone,
    ) -> Option<KPtr<SlabItem>> {
        let slab = match self.zone_slabs(locked, zone).first() {
            Some(slab) => slab,
            None => self.zone_grow(locked, zone, kind)?,
        };
        let header = self.get(slab);
        let items = self.slab_items(header);
        let item = items.remove_head();
        self.item_mark(zone, item, Mark::Used);
        header.free_count.dec();
        if items.first().is_none() {
            self.slab_unlink(locked, zone, slab);
        }
        zone.free.dec();
        zone.used.inc();
        Some(item)
    }

    fn zone_put(&self, locked: &LockedZone<'_, M>, zone: &SlabZone, item: KPtr<SlabItem>) {
        let slab: KPtr<SlabHeader> = KPtr::new(item.addr().page());
        let header = self.get(slab);
        let free = self.slab_items(header);
        if free.first().is_none() {
            self.zone_slabs(locked, zone).insert_head(slab);
        }
        free.insert_head(item);
        self.item_mark(zone, item, Mark::Free);
        header.free_count.inc();
        zone.free.inc();
        zone.used.dec();
        let items = items_per_slab(u64::from(zone.item_size.get()));
        if u64::from(header.free_count.get()) == items {
            self.slab_unlink(locked, zone, slab);
            zone.free.update_locked(|n| n - items);
            zone.slabs.dec();
            self.wired_page_free(slab);
        }
    }

    fn zone_grow(
        &self,
        locked: &LockedZone<'_, M>,
        zone: &SlabZone,
        kind: Zone,
    ) -> Option<KPtr<SlabHeader>> {
        // 1. A page, and the slab's header at its start.
        if self.fails(FailSite::SlabZalloc) {
            return None;
        }
        let page = self.vm_page_alloc_noobj(AllocClass::Interrupt, AllocFlags::WIRED)?;
        let pa = self.vm_page_to_phys(page);
        let slab: KPtr<SlabHeader> = KPtr::new(phys_to_dmap(pa));
        let header = self.get(slab);
        let size = u64::from(zone.item_size.get());
        let items = items_per_slab(size);
        // 2. The items behind it, all free, in the order of addresses.
        header.free.set(KPtr::NULL);
        let free = self.slab_items(header);
        for index in (0..items).rev() {
            let item: KPtr<SlabItem> =
                KPtr::new(phys_to_dmap(pa.add(size_of::<SlabHeader>() as u64 + index * size)));
            free.insert_head(item);
            self.item_mark(zone, item, Mark::Free);
        }
        // 3. The slab joins the zone.
        header.free_count.set(to_u32(items));
        header.zone.put(kind);
        self.zone_slabs(locked, zone).insert_head(slab);
        zone.free.update_locked(|n| n + items);
        zone.slabs.inc();
        Some(slab)
    }

    /// Reports the state of an item to the machine. The link at its head belongs to the zone even
    /// while the item is free.
    #[inline]
    fn item_mark(&self, zone: &SlabZone, item: KPtr<SlabItem>, mark: Mark) {
        const LINK: u64 = size_of::<SlabItem>() as u64;
        if let Some(pa) = phys_of(item) {
            self.machine().mark(pa.add(LINK), u64::from(zone.item_size.get()) - LINK, mark);
        }
    }

    /// The slabs of `zone` that have free items.
    fn zone_slabs<'a>(
        &'a self,
        _: &LockedZone<'_, M>,
        zone: &'a SlabZone,
    ) -> PointerList<'a, M, SlabLinks> {
        self.list(&zone.partial)
    }

    /// The free items of the slab whose header is `header`.
    fn slab_items<'a>(&'a self, header: &'a SlabHeader) -> PointerSList<'a, M, ItemLinks> {
        self.slist(&header.free)
    }

    /// Takes `slab` off the list of those that have free items.
    fn slab_unlink(&self, locked: &LockedZone<'_, M>, zone: &SlabZone, slab: KPtr<SlabHeader>) {
        self.zone_slabs(locked, zone).remove(slab);
        let header = self.get(slab);
        header.next.set(KPtr::NULL);
        header.prev.set(KPtr::NULL);
    }

    /// Frees the wired page, without an object, that holds `slab`.
    fn wired_page_free(&self, slab: KPtr<SlabHeader>) {
        match phys_of(slab).and_then(|pa| self.phys_to_vm_page(pa)) {
            Some(page) => self.vm_page_free_wired(page, Contents::Unknown),
            None => self.panic(format_args!("zone_free: {} is not in a slab", slab.addr())),
        }
    }
}
