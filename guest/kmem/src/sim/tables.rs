//! The page tables of a kernel image, as the boot code lays them out.
//!
//! The image is physical memory from 1 MiB to [`IMAGE_END`], mapped by 4 KiB pages at `KERNBASE +
//! address`; its page table has room past the image, which kernel_map uses later. The direct map
//! consists of 1 GiB pages.

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::kva::{DMAP_MIN, KERNBASE};
use vmkern_abi::pte::{Level, NPTEPG, Pte, PteFlags};

use super::machine::SimMachine;
use crate::machine::{Mmu, PhysMem};
use crate::window::{self, PageTable};

/// First byte of the image.
const IMAGE_START: GuestPhys = GuestPhys::new(1 << 20);
/// First byte past it.
pub const IMAGE_END: GuestPhys = GuestPhys::new(0x1c_0000);

/// End of the image's mapping.
pub fn virtual_avail() -> GuestVirt {
    KERNBASE.add(IMAGE_END.get())
}

/// Builds the tables in the image's first pages and returns the root.
pub fn build(machine: &SimMachine) -> GuestPhys {
    let table = |number: u64| IMAGE_START.add(number * PAGE_SIZE);
    let [pml4, dmap, pdpt, pd, pt] = [0, 1, 2, 3, 4].map(table);
    let at = |pa| -> &PageTable { window::at(machine, pa) };
    for pa in [pml4, dmap, pdpt, pd, pt] {
        machine.zero_page(pa);
    }
    let flags = PteFlags::V | PteFlags::RW | PteFlags::A | PteFlags::M | machine.pte_flags_base();
    at(pml4)[Level::Pml4.index(DMAP_MIN)].set(Pte::new(dmap, flags));
    at(pml4)[Level::Pml4.index(KERNBASE)].set(Pte::new(pdpt, flags));
    at(pdpt)[Level::Pdpt.index(KERNBASE)].set(Pte::new(pd, flags));
    at(pd)[Level::Pd.index(KERNBASE)].set(Pte::new(pt, flags));
    for slot in 0..NPTEPG {
        let page = GuestPhys::new(slot as u64 * Level::Pdpt.span());
        at(dmap)[slot].set(Pte::new(page, flags | PteFlags::PS | PteFlags::G | PteFlags::NX));
    }
    for pfn in IMAGE_START.pfn()..IMAGE_END.pfn() {
        let va = KERNBASE.add(pfn * PAGE_SIZE);
        at(pt)[Level::Pt.index(va)].set(Pte::new(GuestPhys::from_pfn(pfn), flags | PteFlags::G));
    }
    pml4
}
