//! Finding maps: the maps with names, and those that `kmem_suballoc` made.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::atomic::{Ordering, fence};
use vmkern_abi::field::Field;
use vmkern_abi::kmem::MapId;
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::{PageFlags, VmMap};

use super::Map;
use crate::machine::Machine;
use crate::num::to_usize;

impl<M: Machine> Map<M> {
    /// Where the boot stores the map `id`.
    pub(crate) fn named_map(&self, id: MapId) -> &Field<KPtr<VmMap>> {
        &self.state().maps[to_usize(id.0)]
    }

    /// kernel_map, or null before `kmem_init`.
    #[must_use]
    pub fn kernel_map(&self) -> KPtr<VmMap> {
        self.named_map(MapId::KERNEL).get()
    }

    /// kmem_map, or null before `kmeminit`.
    #[must_use]
    pub fn kmem_map(&self) -> KPtr<VmMap> {
        self.named_map(MapId::KMEM).get()
    }

    /// The map with this number, or at this address, in constant time. An address is accepted only
    /// if it is the address of a page of the direct map whose page structure has
    /// [`PageFlags::MAP_HOME`]; no operation can write to that structure. A map is never destroyed,
    /// so no address becomes stale.
    #[must_use]
    pub fn map_by_id(&self, id: MapId) -> Option<KPtr<VmMap>> {
        if id.0 < MapId::NAMED_MAX {
            return self.state().map_slot(id)?.get().non_null();
        }
        let wanted = GuestVirt::new(id.0);
        let home = dmap_to_phys(wanted).filter(|pa| pa.page_offset() == 0)?;
        let page = self.page(self.phys_to_vm_page(home)?);
        let is_home = page.flags.get().contains(PageFlags::MAP_HOME);
        // A reader that finds the mark finds the map complete.
        fence(Ordering::Acquire);
        is_home.then_some(KPtr::new(wanted))
    }

    /// All maps, the youngest first.
    pub fn vm_maps(&self) -> impl Iterator<Item = KPtr<VmMap>> {
        self.map_list().iter()
    }
}
