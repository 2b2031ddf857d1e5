//! Page tables: their owners, the direct map, the image's window, and the pmap's counts.

use std::mem::offset_of;

use vmkern_abi::addr::{GuestPhys, GuestVirt, NBPDR, PAGE_SIZE};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::field::Field;
use vmkern_abi::kva::{KERNBASE, NKPT, VM_MIN_KERNEL_ADDRESS, phys_to_dmap};
use vmkern_abi::layout::{BootTables, KernelPmap, KernelRoots};
use vmkern_abi::pte::{Level, Pte, PteFlags};

use super::context::Context;
use super::owners::Owner;
use super::rule::Rule;
use super::rule::rules;
use super::tables::{Table, Translation, level_name};
use super::translations::{PTE_USER, PTE_WX};
use crate::ram::{HOLE_END, HOLE_START};
use crate::read::leaves::name;

rules! {
    Some(check);
    Tables {
        TABLE_VALID = "table-valid":
            "a page table's valid entries are counted, in its page or, for the boot's, in the \
             roots";
        BOOT_TABLES = "boot-tables":
            "page tables of kernel_map are the boot's, `nkpt` in a row, or managed pages";
        TABLE_REACH = "table-reach":
            "there are tables from the start of kernel_map to `kernel_vm_end` and for the image, \
             and no others";
        DIRECT_MAP = "direct-map":
            "the direct map maps all RAM, and devices uncached in the gap below 4 GiB, in pages of \
             2 MiB, each at its fixed address, writable \
             and not executable";
        IMAGE_MAPPING = "image-mapping":
            "the image's window is low memory, text, read-only data and data in this order, at \
             their places, and the local APIC";
        IMAGE_GUARDS = "image-guards":
            "the guard pages of the three stacks in the image are not mapped";
        PMAP_ROOT = "pmap-root":
            "the pmap's root is the CPU's root";
        PMAP_RESIDENT = "pmap-resident":
            "`resident_count` is the number of translations that `pmap_enter` made";
        PMAP_WIRED = "pmap-wired":
            "`wired_count` is the number of those that are wired";
        PMAP_TABLES = "pmap-tables":
            "`table_count` is the number of pages that are tables";
    }
}

/// End of low memory, which the image's window maps as data.
const LOW_END: u64 = 1 << 20;
/// Physical address of the local APIC. The last page of the image's window maps it.
const APIC: GuestPhys = GuestPhys::new(0xfee0_0000);
/// Guard pages in the image: below the boot stack, the trap stack and the emergency stack.
const GUARDS: u64 = 3;

/// Checks all tables.
fn check(ctx: &Context<'_>) {
    tables(ctx);
    boot_tables(ctx);
    reach(ctx);
    direct_map(ctx);
    image(ctx);
    counts(ctx);
}

/// The U flag or none, according to the privilege level of the kernel.
pub(super) fn user(ctx: &Context<'_>) -> PteFlags {
    let place = ctx
        .memory
        .source()
        .anchors()
        .control
        .checked_add(offset_of!(ControlRegion, body_cpl) as u64);
    let cpl = place.and_then(|place| ctx.memory.at::<Field<u32>>("control region", place).ok());
    match cpl.map(|cpl| cpl.get()) {
        Some(0) => PteFlags::empty(),
        Some(3) => PteFlags::U,
        // If the kernel has not stated its level, the root table's entries show it.
        _ => ctx
            .tables
            .all
            .iter()
            .find(|table| table.level == Level::Pdpt)
            .map_or(PteFlags::empty(), |table| table.pte.flags() & PteFlags::U),
    }
}

fn tables(ctx: &Context<'_>) {
    // 1. Each table's entry allows CPL3 according to the kernel's privilege level.
    let pmap_is_still = ctx.roots.kernel_pmap.lock.owner.get() == 0;
    let user = user(ctx);
    let mut managed = 0;
    for table in &ctx.tables.all {
        let pfn = table.at.pfn();
        let is_managed = ctx.pages.is_managed(pfn);
        // The image's tables always allow CPL3; for them, only the root's entries decide.
        let is_kernels = table.level == Level::Pdpt || is_managed || is_below_image(table);
        let expected = if is_kernels { user } else { PteFlags::U };
        if table.level != Level::Pml4 && table.pte.flags() & PteFlags::U != expected {
            ctx.finding(&PTE_USER, parent_name(table), table.base, || {
                format!(
                    "the entry of a table is {:?}, but the kernel's privilege asks for \
                     {expected:?}",
                    table.pte.flags()
                )
            });
        }
        // 2. Tables in managed pages belong to the pmap, which counts the entries of the lowest
        //    level.
        if !is_managed {
            continue;
        }
        managed += 1;
        ctx.claim(pfn, Owner::PageTable, table.base);
        let counted = if table.level == Level::Pt { table.valid } else { 0 };
        let Some(page) = ctx.pages.get(pfn).filter(|_| pmap_is_still) else { continue };
        if page.private != counted {
            ctx.finding(&TABLE_VALID, "vm_page", ctx.pages.address(pfn), || {
                let (level, Table { base, valid, .. }) = (name(table.level), table);
                format!(
                    "page {pfn:#x} is the {level} for {base}: private says {}, but it has {valid} \
                     valid entries",
                    page.private
                )
            });
        }
    }
    // 3. It also counts these tables.
    let count = ctx.roots.kernel_pmap.table_count.get();
    if count != managed && pmap_is_still {
        pmap_finding(ctx, &PMAP_TABLES, || {
            format!("table_count says {count}, but {managed} pages are page tables")
        });
    }
}

/// Whether `table` is a page directory or a page table of kernel_map below the image.
fn is_below_image(table: &Table) -> bool {
    table.level <= Level::Pd && (VM_MIN_KERNEL_ADDRESS..KERNBASE).contains(&table.base)
}

/// Checks that the page directory leads to all of the boot's page tables in order, and that each
/// has the right count.
fn boot_tables(ctx: &Context<'_>) {
    // 1. The number of tables.
    let boots = &ctx.roots.boot_tables;
    let nkpt = boots.nkpt.get();
    if nkpt > NKPT as u64 {
        ctx.finding(&BOOT_TABLES, "boot_tables", ctx.root_of(&boots.nkpt), || {
            format!("nkpt is {nkpt}, expected at most {NKPT}")
        });
    }
    // 2. The tables that the page directory leads to, with their numbers of valid entries.
    let mut valid = [None; NKPT];
    for table in ctx.tables.all.iter().filter(|table| is_below_image(table)) {
        if let Some(number) = boot_table(ctx, boots, table) {
            valid[number] = Some(table.valid);
        }
    }
    // 3. The boot's counts.
    let pmap_is_still = ctx.roots.kernel_pmap.lock.owner.get() == 0;
    for (number, (counted, valid)) in (0u64..).zip(boots.valid.iter().zip(valid)) {
        if number < nkpt && valid.is_none() {
            ctx.finding(
                &BOOT_TABLES,
                "page table",
                VM_MIN_KERNEL_ADDRESS.add(number * NBPDR),
                || format!("the page directory does not lead to page table {number} of {nkpt}"),
            );
        }
        let valid = valid.unwrap_or(0);
        if counted.get() != valid && pmap_is_still {
            ctx.finding(&TABLE_VALID, "boot_tables", ctx.root_of(counted), || {
                let counted = counted.get();
                format!("page table {number} has {valid} valid entries, but {counted} are counted")
            });
        }
    }
}

/// The number of the boot's page table that `table` is, if it is in its place. A table that is
/// neither the boot's nor managed is a finding.
fn boot_table(ctx: &Context<'_>, boots: &BootTables, table: &Table) -> Option<usize> {
    let number = table.base.since(VM_MIN_KERNEL_ADDRESS) / NBPDR;
    let is_boots = match table.level {
        Level::Pt => number < boots.nkpt.get().min(NKPT as u64),
        _ => table.base == VM_MIN_KERNEL_ADDRESS && boots.nkpt.get() != 0,
    };
    if !is_boots && ctx.pages.is_managed(table.at.pfn()) {
        return None;
    }
    let first = if table.level == Level::Pt { &boots.kptphys } else { &boots.kpdphys };
    let place = if table.level == Level::Pt { number.saturating_mul(PAGE_SIZE) } else { 0 };
    if !is_boots || first.get().checked_add(place) != Some(table.at) {
        ctx.finding(&BOOT_TABLES, "page table", table.base, || {
            let (level, at) = (name(table.level), table.at);
            format!("the {level} at {at} is neither a managed page nor the boot's for here")
        });
        return None;
    }
    (table.level == Level::Pt).then(|| usize::try_from(number).unwrap_or(NKPT))
}

/// The name of the entry that leads to `table`.
fn parent_name(table: &Table) -> &'static str {
    level_name(match table.level {
        Level::Pml4 | Level::Pdpt => Level::Pml4,
        Level::Pd => Level::Pdpt,
        Level::Pt => Level::Pd,
    })
}

fn pmap_finding(ctx: &Context<'_>, rule: &'static Rule, detail: impl FnOnce() -> String) {
    ctx.finding(rule, "kernel_pmap", ctx.root(offset_of!(KernelRoots, kernel_pmap)), detail);
}

/// Checks that there are page tables from the start of kernel_map to `kernel_vm_end`, and for the
/// image, and no others.
fn reach(ctx: &Context<'_>) {
    // 1. A pmap or a map that is being changed may be only half grown.
    if ctx.roots.kernel_pmap.lock.owner.get() != 0
        || ctx.maps.all.iter().any(|map| map.is_updating())
    {
        return;
    }
    // 2. The tables in order of addresses: none is missing below kernel_vm_end, and none is at or
    //    above it.
    let (end, image_end) = (ctx.roots.kernel_vm_end.get(), ctx.roots.virtual_avail.get());
    let mut next = VM_MIN_KERNEL_ADDRESS;
    let missing = |from: GuestVirt, to: GuestVirt| {
        ctx.finding(&TABLE_REACH, "page table", from, || {
            format!("page tables should reach to {end}, but there is none for [{from}, {to})")
        });
    };
    for table in ctx
        .tables
        .all
        .iter()
        .filter(|table| table.level == Level::Pt && table.base >= VM_MIN_KERNEL_ADDRESS)
    {
        let is_image = (KERNBASE..image_end).contains(&table.base);
        if table.base >= end && !is_image {
            ctx.finding(&TABLE_REACH, "page table", table.base, || {
                format!(
                    "kernel_vm_end is {end}, but the page table at {} is for this address",
                    table.at
                )
            });
            continue;
        }
        if table.base > next && next < end {
            missing(next, table.base.min(end));
        }
        next = next.max(table.base.checked_add(NBPDR).unwrap_or(GuestVirt::new(u64::MAX)));
    }
    // 3. A hole after the last table.
    if next < end {
        missing(next, end);
    }
}

/// Checks that the direct map maps all RAM as data, at the addresses that direct-map arithmetic
/// assumes.
fn direct_map(ctx: &Context<'_>) {
    // 1. The flags that every entry must have.
    let flags = PteFlags::V
        | PteFlags::RW
        | PteFlags::A
        | PteFlags::M
        | PteFlags::PS
        | PteFlags::G
        | PteFlags::NX;
    let flags = flags | user(ctx);
    let mut found = ctx.tables.direct.iter().peekable();
    let extra = |translation: &Translation| {
        // The registers of devices, in the gap below 4 GiB.
        let device = Pte::new(translation.pte.frame(), flags | PteFlags::PCD | PteFlags::PWT);
        let is_in_gap = (HOLE_START..HOLE_END).contains(&translation.pte.frame().get());
        if is_in_gap && translation.pte == device && translation.va == phys_to_dmap(device.frame())
        {
            return;
        }
        ctx.finding(&DIRECT_MAP, "PDE", translation.va, || {
            format!("the entry {:#x} maps memory that does not exist", translation.pte.bits())
        });
    };
    // 2. Compare RAM, in steps of a large page, with the entries found.
    let mut done = GuestPhys::new(0);
    for segment in ctx.memory.source().segments() {
        let mut at = GuestPhys::new(segment.start.get() & !(NBPDR - 1)).max(done);
        while at < segment.end {
            let (va, want) = (phys_to_dmap(at), Pte::new(at, flags));
            while let Some(translation) = found.next_if(|translation| translation.va < va) {
                extra(translation);
            }
            match found.next_if(|translation| translation.va == va) {
                None => {
                    ctx.finding(&DIRECT_MAP, "PDE", va, || format!("nothing maps the RAM at {at}"))
                }
                Some(translation) if translation.pte != want => {
                    ctx.finding(&DIRECT_MAP, "PDE", va, || {
                        format!(
                            "the entry is {:#x}, but that of the RAM at {at} is {:#x}",
                            translation.pte.bits(),
                            want.bits()
                        )
                    });
                }
                Some(_) => {}
            }
            at = at.add(NBPDR);
        }
        done = at;
    }
    // 3. Any entries left map no RAM.
    found.for_each(extra);
}

/// Parts of the image's window in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Low,
    Text,
    ReadOnly,
    Data,
}

/// Checks the image's window: low memory and the image at fixed addresses, text before read-only
/// data before data, no page both writable and executable, guard pages unmapped, and the local
/// APIC.
fn image(ctx: &Context<'_>) {
    // 1. The local APIC has the last page of the image's range.
    let end = ctx.roots.virtual_avail.get();
    let apic = GuestVirt::new(end.get().wrapping_sub(PAGE_SIZE));
    let (mut part, mut last_data, mut data, mut seen_apic) = (Part::Low, None, 0u64, false);
    let mut next_low = KERNBASE;
    for &Translation { va, pte } in &ctx.tables.image {
        let flags = pte.bits() & !vmkern_abi::pte::PG_FRAME;
        let finding = |detail: &dyn Fn() -> String| {
            ctx.finding(&IMAGE_MAPPING, "PTE", va, || {
                format!("the entry is {:#x}: {}", pte.bits(), detail())
            });
        };
        if va == apic {
            seen_apic = true;
            let want = data_flags() | PteFlags::PWT | PteFlags::PCD;
            if flags != want.bits() || pte.frame() != APIC {
                finding(&|| format!("the local APIC's is {:#x}", Pte::new(APIC, want).bits()));
            }
            continue;
        }
        // 2. Every other page maps its address minus KERNBASE.
        let expected = GuestPhys::new(va.get().wrapping_sub(KERNBASE.get()));
        if pte.frame() != expected {
            finding(&|| format!("its frame should be {expected}"));
        }
        let flags = PteFlags::from_bits_retain(flags);
        // 3. The parts come in order, each with its own flags.
        let Some(is) = part_of(flags, expected) else {
            if flags.contains(PteFlags::RW) && !flags.contains(PteFlags::NX) {
                ctx.finding(&PTE_WX, "PTE", va, || {
                    format!("the entry {:#x} is writable and executable", pte.bits())
                });
            } else {
                finding(&|| "no part of the image has these flags".to_owned());
            }
            continue;
        };
        if is < part {
            finding(&|| format!("{is:?} after {part:?}"));
            continue;
        }
        part = is;
        // 4. Low memory is mapped without a hole.
        match is {
            Part::Low if va == next_low => next_low = va.add(PAGE_SIZE),
            Part::Low => {
                finding(&|| format!("low memory from {next_low} on is not mapped"));
                next_low = va.add(PAGE_SIZE);
            }
            Part::Data => {
                data += 1;
                last_data = Some(va);
            }
            Part::Text | Part::ReadOnly => {}
        }
    }
    // 5. Checks that need the whole range.
    if !seen_apic {
        ctx.finding(&IMAGE_MAPPING, "PTE", apic, || "the local APIC is not mapped");
    }
    image_holes(ctx, last_data, data);
}

/// The part of the image whose pages have these flags, if any. The frame `expected` distinguishes
/// low memory from data.
fn part_of(flags: PteFlags, expected: GuestPhys) -> Option<Part> {
    match flags {
        flags if flags == data_flags() && expected.get() < LOW_END => Some(Part::Low),
        flags if flags == data_flags() => Some(Part::Data),
        flags if flags == text_flags() => Some(Part::Text),
        flags if flags == text_flags() | PteFlags::NX => Some(Part::ReadOnly),
        _ => None,
    }
}

/// Checks that text, read-only data and data are contiguous, except for guard pages.
fn image_holes(ctx: &Context<'_>, last_data: Option<GuestVirt>, data: u64) {
    // 1. The data, from its first page to its last.
    let mapped = |va: GuestVirt| {
        ctx.tables.image.binary_search_by_key(&va, |translation| translation.va).is_ok()
    };
    let Some(last) = last_data else {
        return ctx.finding(
            &IMAGE_MAPPING,
            "PTE",
            KERNBASE.add(LOW_END),
            || "the image has no data",
        );
    };
    let first_data = ctx.tables.image.iter().find(|t| {
        t.va >= KERNBASE.add(LOW_END) && t.pte.flags().contains(PteFlags::RW | PteFlags::NX)
    });
    let Some(first) = first_data.map(|translation| translation.va) else { return };
    // 2. Its holes are the guard pages.
    let pages = last.get().saturating_sub(first.get()) / PAGE_SIZE + 1;
    let holes = pages.saturating_sub(data);
    if holes != GUARDS {
        ctx.finding(&IMAGE_GUARDS, "PTE", first, || {
            format!(
                "the image's data, [{first}, {last}], has {holes} pages that are not mapped, not \
                 {GUARDS} guard pages"
            )
        });
    }
    // 3. Text and read-only data have no holes.
    let start = KERNBASE.get() + LOW_END;
    let hole = (start..first.get()).step_by(4096).map(GuestVirt::new).find(|&va| !mapped(va));
    if let Some(va) = hole {
        ctx.finding(
            &IMAGE_MAPPING,
            "PTE",
            va,
            || "a page of the image's text or read-only data is not mapped",
        );
    }
}

fn text_flags() -> PteFlags {
    PteFlags::V | PteFlags::U | PteFlags::A | PteFlags::G
}

fn data_flags() -> PteFlags {
    text_flags() | PteFlags::RW | PteFlags::M | PteFlags::NX
}

/// Checks the pmap's counts of what `pmap_enter` has mapped.
fn counts(ctx: &Context<'_>) {
    // 1. The translations in the tables, without those of pmap_kenter, which are not counted.
    let pmap: &KernelPmap = &ctx.roots.kernel_pmap;
    if pmap.lock.owner.get() != 0 {
        return;
    }
    let entered = || {
        ctx.tables
            .kernel
            .iter()
            .filter(|translation| !translation.pte.flags().contains(PteFlags::KENTER))
    };
    let resident = entered().count() as u64;
    let wired = entered()
        .filter(|translation| translation.pte.flags().contains(PteFlags::W))
        .count() as u64;
    // 2. The pmap's counts.
    for (rule, name, counted, found) in [
        (&PMAP_RESIDENT, "resident_count", pmap.resident_count.get(), resident),
        (&PMAP_WIRED, "wired_count", pmap.wired_count.get(), wired),
    ] {
        if counted != found {
            pmap_finding(ctx, rule, || {
                format!("{name} says {counted}, but there are {found} such translations")
            });
        }
    }
    // 3. The root that it names is the one that the kernel has published.
    if pmap.pml4.get() != ctx.memory.source().anchors().pml4 {
        let (pml4, published) = (pmap.pml4.get(), ctx.memory.source().anchors().pml4);
        pmap_finding(ctx, &PMAP_ROOT, || {
            format!("pml4 says {pml4}, but the published root table is {published}")
        });
    }
}
