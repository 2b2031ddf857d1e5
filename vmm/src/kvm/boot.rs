//! Boot: the image, the start information, and the CPU's initial state.
//!
//! The first MiB belongs to the loader: it holds the start information, memory map, command line
//! and control region. The image lies above. The start information is Xen's `hvm_start_info`
//! (version 1). The kernel's notes say how it is entered:
//!
//! - directly, in long mode ([`vmkern_abi::entry`]), like the built-in kernel;
//! - by PVH: 32-bit protected mode, paging off, flat segments, EBX at the start information. A
//!   kernel without vmkern's note is entered in this way, as by any other loader.

use std::mem::offset_of;
use std::ops::Range;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::GuestAddress;
use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::{AP_END, BootArgs, Privilege};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::entry::{self, EntryNote};
use vmkern_abi::layout::{BootRegion, PREFETCH};

use super::KvmError;
use super::ioctl::ioctl;
use super::memory::GuestRam;
use crate::inspect::NotRam;
use crate::kernel::elf::{Entry, Plan, Segment};
use vmkern_inspect::ram::ram_ranges;

/// Where the start information lies. Memory map and command line follow in the same page, and the
/// control region in the next: everything that a boot touches here lies in one group of
/// [`PREFETCH`] pages and costs one fault.
const START_INFO: GuestPhys = GuestPhys::new(0x8000);
/// Where the memory map lies.
const MEMORY_MAP: GuestPhys = GuestPhys::new(0x8080);
/// Where the command line lies. It is usually short, but may extend over several pages.
const COMMAND_LINE: GuestPhys = GuestPhys::new(0x8100);
/// Where the control region lies.
pub(crate) const CONTROL: GuestPhys = GuestPhys::new(0x9000);
/// Where its log lies. The kernel writes less than a page of it before it is ready.
const LOG: GuestPhys = CONTROL.add(offset_of!(ControlRegion, log) as u64);
/// The end of the loader's area: memory that a PC's firmware would use begins here.
pub(super) const LOADER_END: GuestPhys = GuestPhys::new(0xa_0000);

const _: () = {
    let ranges = 2;
    assert!(AP_END.get() <= START_INFO.get());
    assert!(START_INFO.get() + size_of::<hvm_start_info>() as u64 <= MEMORY_MAP.get());
    assert!(
        MEMORY_MAP.get() + ranges * size_of::<hvm_memmap_table_entry>() as u64
            <= COMMAND_LINE.get()
    );
    assert!(COMMAND_LINE.get() + BootArgs::MAX_LEN as u64 <= CONTROL.get());
    assert!(START_INFO.pfn() / PREFETCH == LOG.add(PAGE_SIZE - 1).pfn() / PREFETCH);
    assert!(
        CONTROL.is_page_aligned()
            && CONTROL.get() + size_of::<ControlRegion>() as u64 <= LOADER_END.get()
    );
};

/// `hvm_start_info.magic`: "xEn3" with the top bit of the "E" set.
const START_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const MEMMAP_RAM: u32 = 1;

/// The most zeros after a segment's content that are populated in advance, in bytes. A file may
/// claim any number.
const ZEROS_FORESEEN: u64 = 1 << 20;

/// The memory that a boot of `plan`'s kernel will touch in a guest with `memory` bytes: the
/// loader's area, the image, and the regions of [`BootRegion`].
pub(crate) fn touched_by_boot(plan: &Plan, memory: u64) -> Vec<Range<GuestPhys>> {
    let zeros = |segment: &Segment| segment.start.add(segment.file.len() as u64 + ZEROS_FORESEEN);
    let touched =
        plan.segments.iter().map(|segment| segment.start..segment.end.min(zeros(segment)));
    let mut touched: Vec<_> = touched.collect();
    touched.push(START_INFO..LOG.add(PAGE_SIZE));
    let image_end = plan.segments.iter().map(|segment| segment.end).max().unwrap_or(START_INFO);
    let managed = managed(memory, image_end);
    let pages = managed.iter().copied();
    // The page directories of the direct map.
    touched.extend(managed.first().map(|&(first, _)| image_end..GuestPhys::from_pfn(first)));
    if let Some(region) = BootRegion::plan(pages.clone()) {
        touched.extend(region.touched_by_boot(pages));
    }
    // In a small guest, memory may end before some of these ranges do.
    touched.into_iter().filter_map(|range| within(memory, &range)).collect()
}

/// The part of `range` that lies in the range of RAM in which it begins.
fn within(memory: u64, range: &Range<GuestPhys>) -> Option<Range<GuestPhys>> {
    let mut parts = ram_ranges(memory).map(|ram| ram.start..ram.start.add(ram.size));
    let part = parts.find(|part| part.contains(&range.start))?;
    Some(range.start..range.end.min(part.end))
}

/// The pages that the kernel will manage, by number: those after the image and the direct map's
/// page directories, one for each GiB with RAM except the first.
fn managed(memory: u64, image_end: GuestPhys) -> Vec<(u64, u64)> {
    const GIB: u64 = 1 << 30;
    let directories = ram_ranges(memory).map(|range| range.size.div_ceil(GIB)).sum::<u64>() - 1;
    let first = image_end.get().div_ceil(PAGE_SIZE) + directories;
    ram_ranges(memory)
        .map(|range| (range.start.pfn().max(first), range.start.add(range.size).pfn()))
        .collect()
}

/// Writes the start information, the memory map and `command_line`, which must be shorter than
/// [`BootArgs::MAX_LEN`].
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
    assert!(
        command_line.len() < BootArgs::MAX_LEN,
        "the builder checked the command line's length"
    );
    ram.write(COMMAND_LINE, command_line.as_bytes())?;
    ram.write(COMMAND_LINE.add(command_line.len() as u64), &[0])?;
    let mut params = BootParams::new(&info, GuestAddress(START_INFO.get()));
    params.set_sections(&map, GuestAddress(MEMORY_MAP.get()));
    PvhBootConfigurator::write_bootparams(&params, ram.memory())
        .map_err(|_| NotRam { start: START_INFO, len: PAGE_SIZE })
}

/// How the boot vCPU begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    /// The entry point and state.
    pub(crate) entry: Entry,
    /// The privilege that the command line requests.
    pub(crate) privilege: Privilege,
}

/// RFLAGS with only the bit that is always set.
const RFLAGS_FIXED: u64 = 2;
/// `IA32_APIC_BASE` of the boot CPU after a reset: the local APIC is enabled, at its default
/// address.
const APIC_BASE_OF_BOOT_CPU: u64 = 0xfee0_0000 | 1 << 11 | 1 << 8;
/// Type of a busy task-state segment.
const TSS_BUSY: u8 = 0xb;

/// Puts `vcpu` into the state in which its kernel expects to be entered.
pub(crate) fn set_entry_state(vcpu: &VcpuFd, begin: &Begin) -> Result<(), KvmError> {
    let (sregs, regs) = match &begin.entry {
        Entry::Pvh(entry) => pvh_state(ioctl("KVM_GET_SREGS", || vcpu.get_sregs())?, *entry),
        Entry::Direct(note) => direct_state(note, begin.privilege),
    };
    ioctl("KVM_SET_SREGS", || vcpu.set_sregs(&sregs))?;
    ioctl("KVM_SET_REGS", || vcpu.set_regs(&regs))
}

/// A present segment of all addresses below 4 GiB. The caller sets the code size.
fn flat(type_: u8, selector: u16) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, type_, present: 1, s: 1, g: 1, ..Default::default() }
}

/// The state in which PVH enters a kernel at `entry`.
fn pvh_state(old: kvm_sregs, entry: GuestPhys) -> (kvm_sregs, kvm_regs) {
    const CR0_PE: u64 = 1;
    let wide = |type_, selector| kvm_segment { db: 1, ..flat(type_, selector) };
    let data = wide(0x3, 0x10);
    let (ds, es, fs, gs, ss) = (data, data, data, data, data);
    let tr = kvm_segment {
        type_: TSS_BUSY,
        limit: 0x67,
        present: 1,
        selector: 0x18,
        ..Default::default()
    };
    let cs = wide(0xb, 0x8);
    let sregs = kvm_sregs { cs, ds, es, fs, gs, ss, tr, cr0: CR0_PE, cr4: 0, efer: 0, ..old };
    let regs = kvm_regs {
        rip: entry.get(),
        rbx: START_INFO.get(),
        rflags: RFLAGS_FIXED,
        ..Default::default()
    };
    (sregs, regs)
}

/// The state in which a kernel with this note is entered. It is complete, so KVM need not be asked
/// for the old one.
fn direct_state(note: &EntryNote, privilege: Privilege) -> (kvm_sregs, kvm_regs) {
    // 1. The segment of a null selector. The bases of FS and GS still count.
    let null = kvm_segment { unusable: 1, ..Default::default() };
    let table =
        |base: GuestVirt, limit| kvm_dtable { base: base.get(), limit, ..Default::default() };
    let (ds, es, fs, ss, ldt) = (null, null, null, null, null);
    // 2. 64-bit mode, with the page tables that the note names.
    let sregs = kvm_sregs {
        cs: kvm_segment { l: 1, ..flat(0xb, entry::CS) },
        ds,
        es,
        fs,
        gs: kvm_segment { base: note.gs_base.get(), ..null },
        ss,
        tr: kvm_segment {
            base: note.tss_base.get(),
            limit: note.tss_limit,
            selector: note.tss_selector,
            type_: TSS_BUSY,
            present: 1,
            ..Default::default()
        },
        ldt,
        gdt: table(note.gdt_base, note.gdt_limit),
        idt: table(note.idt_base, note.idt_limit),
        cr0: entry::CR0,
        cr3: note.cr3.get(),
        cr4: entry::CR4,
        efer: entry::EFER,
        apic_base: APIC_BASE_OF_BOOT_CPU,
        ..Default::default()
    };
    // 3. The arguments of the entry.
    let regs = kvm_regs {
        rip: note.rip.get(),
        rsp: note.rsp.get(),
        rdi: START_INFO.get(),
        rcx: entry::user_from(privilege).into(),
        rflags: RFLAGS_FIXED,
        ..Default::default()
    };
    (sregs, regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The initial state of a vCPU for a kernel with this note.
    fn direct(privilege: Privilege) -> (kvm_sregs, kvm_regs) {
        let note = EntryNote {
            version: entry::VERSION,
            tss_limit: 0x168,
            tss_selector: 0x30,
            gdt_limit: 0x3f,
            idt_limit: 0xfff,
            reserved: 0,
            rip: GuestVirt::new(0xffff_ffff_8010_0000),
            rsp: GuestVirt::new(0xffff_ffff_8014_0000),
            cr3: GuestPhys::new(0x15_0000),
            gdt_base: GuestVirt::new(0xffff_ffff_8014_b000),
            idt_base: GuestVirt::new(0xffff_ffff_8014_8000),
            tss_base: GuestVirt::new(0xffff_ffff_8014_a000),
            gs_base: GuestVirt::new(0xffff_ffff_8014_a000),
        };
        direct_state(&note, privilege)
    }

    #[test]
    fn the_state_of_a_direct_entry_is_one_that_a_processor_can_be_in() {
        let (sregs, regs) = direct(Privilege::Auto);
        // SDM volume 3, sections 4.1.1 and 27.3.1: requirements of long mode and VM entry.
        let (pe, pg, pae, lme_lma) = (1, 1 << 31, 1 << 5, 1 << 8 | 1 << 10);
        assert_eq!(
            (sregs.cr0 & (pe | pg), sregs.cr4 & pae, sregs.efer & lme_lma),
            (pe | pg, pae, lme_lma)
        );
        assert_eq!(
            (sregs.cs.l, sregs.cs.db, sregs.cs.g, sregs.cs.s, sregs.cs.present),
            (1, 0, 1, 1, 1)
        );
        assert_eq!((sregs.cs.type_, sregs.cs.dpl, sregs.cs.selector & 7), (0xb, 0, 0));
        assert_eq!(
            (sregs.tr.type_, sregs.tr.s, sregs.tr.present, sregs.tr.unusable, sregs.tr.g),
            (0xb, 0, 1, 0, 0)
        );
        for null in [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.ldt] {
            assert_eq!((null.unusable, null.selector, null.dpl), (1, 0, 0));
        }
        assert_eq!((regs.rflags, sregs.apic_base), (2, 0xfee0_0900));
    }

    #[test]
    fn a_direct_entry_is_told_the_privilege_and_where_the_start_information_lies() {
        for (privilege, from) in [
            (Privilege::Auto, entry::EMULATED_FROM),
            (Privilege::User, 0),
            (Privilege::Supervisor, u32::MAX),
        ] {
            let (_, regs) = direct(privilege);
            assert_eq!((regs.rcx, regs.rdi, regs.rbp), (from.into(), START_INFO.get(), 0));
        }
    }
}
