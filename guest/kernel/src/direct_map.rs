//! Building the direct map.
//!
//! The image's static tables end at `dmap_pd0`, the page directory of the first GiB, which starts
//! out empty. It is filled here through the image's mapping, before the direct map is used for the
//! first time: while no CPU has walked a table, a write to it causes no fault even if page tables
//! are shadowed. Page directories for more memory follow directly behind the image.

use vmkern_abi::addr::{GuestPhys, GuestVirt, NBPDR, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::kva::{KERNBASE, MAX_PHYS, phys_to_dmap};
use vmkern_abi::pte::{Level, NPTEPG, Pte, PteFlags};
use vmkern_abi::virtio::mmio::{IOAPIC_PINS, MmioDevices};

use crate::arch::ioapic::IOAPIC_AT;
use crate::arch::percpu::PerCpu;
use crate::host::pvh::MemoryMapEntry;

type Table = [Field<Pte>; NPTEPG];

unsafe extern "C" {
    safe static boot_pml4: Table;
    safe static dmap_pdpt: Table;
    safe static dmap_pd0: Table;
    safe static __image_end: [u8; 0];
}

/// The physical address of something in the image.
fn image_phys<T>(object: &T) -> GuestPhys {
    GuestPhys::new((&raw const *object) as u64 - KERNBASE.get())
}

/// The root page table.
pub fn pml4() -> GuestPhys {
    image_phys(&boot_pml4)
}

/// Entry `index` of the root page table.
pub fn root_entry(index: usize) -> Pte {
    boot_pml4[index].get()
}

/// First physical address past the image.
pub fn image_end() -> GuestPhys {
    image_phys(&__image_end)
}

/// Flags of the direct map's entries: data, global, with accessed and modified set so that the CPU
/// need not set them.
fn flags() -> PteFlags {
    let user = if PerCpu::current().body_is_user() { PteFlags::U } else { PteFlags::empty() };
    PteFlags::V
        | PteFlags::RW
        | PteFlags::A
        | PteFlags::M
        | PteFlags::PS
        | PteFlags::G
        | PteFlags::NX
        | user
}

/// Maps all RAM of `memory_map`, and `devices` uncached, with the I/O APIC if it leads their
/// interrupts. Returns the first physical address that the tables left free.
pub fn build(memory_map: &[MemoryMapEntry], devices: &MmioDevices) -> GuestPhys {
    let mut map = DirectMap { next_table: image_end() };
    for range in memory_map.iter().filter(|range| range.is_ram()) {
        let end = range.start.get().saturating_add(range.size).min(MAX_PHYS.get());
        let mut at = range.start.get() & !(NBPDR - 1);
        while at < end {
            map.enter(GuestPhys::new(at), PteFlags::empty());
            at += NBPDR;
        }
    }
    for device in devices.iter() {
        let ioapic = (device.irq < IOAPIC_PINS).then_some(IOAPIC_AT);
        for at in [Some(device.base), ioapic].into_iter().flatten() {
            let large = GuestPhys::new(at.get() & !(NBPDR - 1));
            map.enter(large, PteFlags::PCD | PteFlags::PWT);
        }
    }
    map.next_table
}

struct DirectMap {
    next_table: GuestPhys,
}

impl DirectMap {
    /// Maps the 2 MiB page at `pa`, with `more` flags than those of RAM.
    fn enter(&mut self, pa: GuestPhys, more: PteFlags) {
        let va = phys_to_dmap(pa);
        self.directory(va)[Level::Pd.index(va)].set(Pte::new(pa, flags() | more));
    }

    /// The page directory for `va`, created if it is missing.
    fn directory(&mut self, va: GuestVirt) -> &Table {
        let entry = &dmap_pdpt[Level::Pdpt.index(va)];
        if Level::Pdpt.index(va) == 0 {
            return &dmap_pd0;
        }
        if !entry.get().is_valid() {
            let table = self.next_table;
            self.next_table = table.add(PAGE_SIZE);
            // SAFETY: the page follows the image, is RAM of the first GiB and so mapped by
            // `dmap_pd0`, and nothing else uses it.
            unsafe { (phys_to_dmap(table).get() as *mut Table).write_bytes(0, 1) };
            entry.set(Pte::new(table, PteFlags::V | PteFlags::RW | PteFlags::U | PteFlags::A));
        }
        // SAFETY: a page directory made above lives for ever and consists of atomics.
        unsafe { &*(phys_to_dmap(entry.get().frame()).get() as *const Table) }
    }
}
