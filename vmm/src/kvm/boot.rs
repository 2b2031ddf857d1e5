//! Boot by PVH: the image, the start information, and the CPU's first state.
//!
//! The first MiB is the loader's: start information, memory map, command line and control region lie there, and the
//! image above. The protocol is Xen's `hvm_start_info` (version 1): 32-bit protected mode, paging off, flat segments,
//! EBX at the start information.

use std::mem::offset_of;
use std::ops::Range;

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::GuestAddress;
use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::boot::{AP_END, BootArgs};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::layout::BootRegion;

use super::KvmError;
use super::elf::{Entry, Plan};
use super::ioctl::ioctl;
use super::memory::{GuestRam, NotRam, ram_ranges};

/// Where the start information lies. Memory map and command line follow in the same page, as each page that a guest touches
/// costs its launch.
const START_INFO: GuestPhys = GuestPhys::new(0x8000);
/// Where the memory map lies.
const MEMORY_MAP: GuestPhys = GuestPhys::new(0x8080);
/// Where the command line lies. It is short as a rule, and may go on for pages.
const COMMAND_LINE: GuestPhys = GuestPhys::new(0x8100);
/// Where the control region lies: next to the rest, so that KVM may map both at once.
pub(crate) const CONTROL: GuestPhys = GuestPhys::new(0x9000);
/// Where what the loader places ends: memory that a PC's firmware would use begins here.
pub(super) const LOADER_END: GuestPhys = GuestPhys::new(0xa_0000);

const _: () = {
    let ranges = 2;
    assert!(AP_END.get() <= START_INFO.get());
    assert!(START_INFO.get() + size_of::<hvm_start_info>() as u64 <= MEMORY_MAP.get());
    assert!(MEMORY_MAP.get() + ranges * size_of::<hvm_memmap_table_entry>() as u64 <= COMMAND_LINE.get());
    assert!(COMMAND_LINE.get() + BootArgs::MAX_LEN as u64 <= CONTROL.get());
    assert!(CONTROL.is_page_aligned() && CONTROL.get() + size_of::<ControlRegion>() as u64 <= LOADER_END.get());
};

/// `hvm_start_info.magic`: "xEn3" with the top bit of the "E" set.
const START_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const MEMMAP_RAM: u32 = 1;

/// What a boot of the kernel that `plan` describes touches in a guest with `memory` bytes, foreseen: what the loader writes,
/// the image, and what [`BootRegion`] says.
pub(crate) fn touched_by_boot(plan: &Plan, memory: u64) -> Vec<Range<GuestPhys>> {
    let mut touched: Vec<_> = plan.segments.iter().map(|segment| segment.start..segment.end).collect();
    let log = CONTROL.add(offset_of!(ControlRegion, log) as u64);
    touched.push(START_INFO..log.add(PAGE_SIZE));
    let image_end = plan.segments.iter().map(|segment| segment.end).max().unwrap_or(START_INFO);
    let managed = managed(memory, image_end);
    let pages = managed.iter().copied();
    // The page directories of the direct map.
    touched.extend(managed.first().map(|&(first, _)| image_end..GuestPhys::from_pfn(first)));
    if let Some(region) = BootRegion::plan(pages.clone()) {
        touched.extend(region.touched_by_boot(pages));
    }
    touched
}

/// The pages that the kernel will manage, by number: behind the image and the direct map's page directories, one for each GiB
/// in which there is RAM but the first.
fn managed(memory: u64, image_end: GuestPhys) -> Vec<(u64, u64)> {
    const GIB: u64 = 1 << 30;
    let directories = ram_ranges(memory).map(|range| range.size.div_ceil(GIB)).sum::<u64>() - 1;
    let first = image_end.get().div_ceil(PAGE_SIZE) + directories;
    ram_ranges(memory).map(|range| (range.start.pfn().max(first), range.start.add(range.size).pfn())).collect()
}

/// Writes the start information, the memory map and `command_line`, which is shorter than [`BootArgs::MAX_LEN`].
pub(crate) fn write_start_info(ram: &GuestRam, command_line: &str) -> Result<(), NotRam> {
    let map: Vec<_> = ram_ranges(ram.size())
        .map(|range| hvm_memmap_table_entry {
            addr: range.start.get(),
            size: range.size,
            type_: MEMMAP_RAM,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE.get(),
        memmap_paddr: MEMORY_MAP.get(),
        memmap_entries: u32::try_from(map.len()).expect("RAM has two ranges at most"),
        ..Default::default()
    };
    assert!(command_line.len() < BootArgs::MAX_LEN, "the builder checked the command line's length");
    ram.write(COMMAND_LINE, command_line.as_bytes())?;
    ram.write(COMMAND_LINE.add(command_line.len() as u64), &[0])?;
    let mut params = BootParams::new(&info, GuestAddress(START_INFO.get()));
    params.set_sections(&map, GuestAddress(MEMORY_MAP.get()));
    PvhBootConfigurator::write_bootparams(&params, ram.memory())
        .map_err(|_| NotRam { start: START_INFO, len: PAGE_SIZE })
}

/// Brings `vcpu` to the state in which PVH enters a kernel at `entry`.
pub(crate) fn set_entry_state(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    const CR0_PE: u64 = 1;
    const RFLAGS_FIXED: u64 = 2;
    let flat = |type_, selector| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let mut sregs = ioctl("KVM_GET_SREGS", || vcpu.get_sregs())?;
    let data = flat(0x3, 0x10);
    sregs.cs = flat(0xb, 0x8);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { type_: 0xb, limit: 0x67, present: 1, selector: 0x18, ..Default::default() };
    sregs.cr0 = CR0_PE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    ioctl("KVM_SET_SREGS", || vcpu.set_sregs(&sregs))?;
    let regs = kvm_regs { rip: entry.0.get(), rbx: START_INFO.get(), rflags: RFLAGS_FIXED, ..Default::default() };
    ioctl("KVM_SET_REGS", || vcpu.set_regs(&regs))
}
