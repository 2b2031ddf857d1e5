//! Rules of `table_rules`.

use std::mem::offset_of;

use vmkern_abi::addr::{GuestPhys, GuestVirt, NBPDR, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::kva::{KERNBASE, NKPT, VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS, phys_to_dmap};
use vmkern_abi::layout::{KernelPmap, KernelRoots};
use vmkern_abi::pte::{Level, Pte, PteFlags};

use super::lab::{Lab, expect_finding};
use crate::check::{Finding, Report};

/// Where the kernel's image begins in low memory.
const LOW_END: u64 = 1 << 20;

/// The flags of the image's data.
const DATA_FLAGS: PteFlags = PteFlags::V
    .union(PteFlags::U)
    .union(PteFlags::RW)
    .union(PteFlags::A)
    .union(PteFlags::M)
    .union(PteFlags::G)
    .union(PteFlags::NX);

/// The report of a check while the entry of `level` for `va` is damaged by `damage`.
fn damaged(lab: &Lab, va: GuestVirt, level: Level, damage: impl Fn(u64) -> u64) -> Report {
    lab.damaged_phys::<Field<u64>>(lab.pte_at(va, level), |entry| entry.update_locked(&damage))
}

fn flip(lab: &Lab, va: GuestVirt, level: Level, flags: PteFlags) -> Report {
    damaged(lab, va, level, |bits| bits ^ flags.bits())
}

/// The first address that an entry of `level` translates.
fn base(va: GuestVirt, level: Level) -> GuestVirt {
    GuestVirt::new(va.get() & !(level.span() - 1))
}

#[test]
fn wrong_entries_of_tables_are_found() {
    let mut lab = Lab::new();
    let va = lab.grow();
    for (level, what) in [(Level::Pml4, "PML4E"), (Level::Pdpt, "PDPTE"), (Level::Pd, "PDE")] {
        let at = base(va, level);
        for flags in [PteFlags::RW, PteFlags::NX, PteFlags::G, PteFlags::W, PteFlags::A] {
            expect_finding(&flip(&lab, va, level, flags), "table-flags", what, at);
        }
        expect_finding(&flip(&lab, va, level, PteFlags::U), "pte-user", what, at);
        let report = damaged(&lab, va, level, |bits| bits | 1 << 51);
        expect_finding(&report, "table-frame", "page table", at);
    }
    expect_finding(
        &flip(&lab, va, Level::Pd, PteFlags::PS),
        "table-large",
        "PDE",
        base(va, Level::Pd),
    );
    let report = flip(&lab, va, Level::Pd, PteFlags::V);
    expect_finding(&report, "pte-invalid", "PDE", base(va, Level::Pd));
    expect_finding(&report, "table-reach", "page table", base(va, Level::Pd));
    let pmap = lab.roots().0.addr().add(offset_of!(KernelRoots, kernel_pmap) as u64);
    expect_finding(&report, "pmap-tables", "kernel_pmap", pmap);
    assert!(lab.check().is_clean());
}

#[test]
fn a_table_that_is_used_twice_is_found() {
    let lab = Lab::new();
    let (first, second) = (lab.block, base(lab.block, Level::Pd).add(NBPDR));
    let pte = lab
        .guest
        .vtop(first)
        .expect("the tables can be read")
        .steps()
        .find(|s| s.level == Level::Pd)
        .expect("a PDE")
        .pte;
    let report = damaged(&lab, second, Level::Pd, |_| pte.bits());
    expect_finding(&report, "table-shared", "page table", second);
    let root = lab.pte_at(VM_MIN_KERNEL_ADDRESS, Level::Pml4).page();
    let report = damaged(&lab, VM_MIN_KERNEL_ADDRESS, Level::Pml4, |bits| {
        bits & !vmkern_abi::pte::PG_FRAME | root.get()
    });
    expect_finding(&report, "table-shared", "page table", VM_MIN_KERNEL_ADDRESS);
    let report = lab.damaged_phys::<Field<u64>>(root, |entry| entry.set(pte.bits()));
    expect_finding(&report, "table-slot", "PML4E", GuestVirt::new(0));
}

#[test]
fn the_direct_map_is_checked_entry_by_entry() {
    let lab = Lab::new();
    let va = phys_to_dmap(GuestPhys::new(8 << 20));
    for damage in [
        1 << 13,
        1 << 21,
        PteFlags::NX.bits(),
        PteFlags::RW.bits(),
        PteFlags::G.bits(),
        PteFlags::U.bits(),
        PteFlags::PS.bits(),
    ] {
        expect_finding(
            &damaged(&lab, va, Level::Pd, |bits| bits ^ damage),
            "direct-map",
            "PDE",
            va,
        );
    }
    expect_finding(&damaged(&lab, va, Level::Pd, |_| 0), "direct-map", "PDE", va);
    let past = phys_to_dmap(GuestPhys::new(32 << 20));
    let report = damaged(&lab, past, Level::Pd, |_| {
        Pte::new(GuestPhys::new(32 << 20), PteFlags::V | PteFlags::PS).bits()
    });
    expect_finding(&report, "direct-map", "PDE", past);
}

#[test]
fn the_images_window_is_checked_page_by_page() {
    let lab = Lab::new();
    let text = KERNBASE.add(LOW_END);
    expect_finding(&flip(&lab, text, Level::Pt, PteFlags::RW), "pte-wx", "PTE", text);
    let second = text.add(4096);
    expect_finding(&damaged(&lab, second, Level::Pt, |_| 0), "image-mapping", "PTE", second);
    expect_finding(&flip(&lab, second, Level::Pt, PteFlags::PCD), "image-mapping", "PTE", second);
    expect_finding(
        &damaged(&lab, second, Level::Pt, |bits| bits ^ 0x1000),
        "image-mapping",
        "PTE",
        second,
    );
    let low = KERNBASE.add(0x3000);
    expect_finding(&flip(&lab, low, Level::Pt, PteFlags::NX), "pte-wx", "PTE", low);
    let apic = KERNBASE.add((4 << 20) - 4096);
    expect_finding(&flip(&lab, apic, Level::Pt, PteFlags::PCD), "image-mapping", "PTE", apic);
    expect_finding(&damaged(&lab, apic, Level::Pt, |_| 0), "image-mapping", "PTE", apic);
}

#[test]
fn a_guard_page_of_the_image_that_is_mapped_is_found() {
    let lab = Lab::new();
    let runs = lab.guest.page_runs(text(), KERNBASE.add(4 << 20)).expect("the tables can be read");
    let data = DATA_FLAGS;
    let guard = runs
        .windows(2)
        .find(|pair| pair[0].flags == data && pair[0].end < pair[1].start)
        .expect("a guard")[0]
        .end;
    let pte = Pte::new(GuestPhys::new(guard.since(KERNBASE)), data);
    let report = damaged(&lab, guard, Level::Pt, |_| pte.bits());
    let found: Vec<&Finding> =
        report.findings.iter().filter(|f| f.rule == "image-guards").collect();
    assert_eq!(found.len(), 1, "{report}");
}

fn text() -> GuestVirt {
    KERNBASE.add(LOW_END)
}

/// A change of the roots.
type RootDamage = fn(&KernelRoots);

#[test]
fn a_wrong_word_about_the_page_tables_of_the_boot_is_found() {
    let lab = Lab::new();
    // 1. The count of a page table's entries.
    let (roots_at, roots) = lab.roots();
    let kmem = lab.pte_at(lab.block, Level::Pt).page();
    let number = roots.boot_tables.number(kmem).expect("the boot has made it");
    assert!(roots.boot_tables.valid[number].get() > 0);
    let nkpt = roots.boot_tables.nkpt.get();
    let valid = |roots: &KernelRoots| roots.boot_tables.valid[number].inc();
    let report = lab.damaged(roots_at, valid);
    expect_finding(
        &report,
        "table-valid",
        "boot_tables",
        lab.root_field(|roots| &roots.boot_tables.valid).add(number as u64 * 4),
    );
    // 2. The number of page tables, and their place.
    lab.root_word(
        "boot-tables",
        "boot_tables",
        |roots| &roots.boot_tables.nkpt,
        |_| NKPT as u64 + 1,
    );
    let first = VM_MIN_KERNEL_ADDRESS;
    let last = first.add((nkpt - 1) * NBPDR);
    let damages: [(RootDamage, GuestVirt); 5] = [
        (|roots| roots.boot_tables.nkpt.inc(), last.add(NBPDR)),
        (|roots| roots.boot_tables.nkpt.dec(), last),
        (|roots| roots.boot_tables.kptphys.update_locked(|at| at.add(PAGE_SIZE)), first),
        (|roots| roots.boot_tables.kptphys.update_locked(|at| at.add(8)), first),
        (|roots| roots.boot_tables.kpdphys.update_locked(|at| at.add(PAGE_SIZE)), first),
    ];
    for (damage, at) in damages {
        expect_finding(&lab.damaged(roots_at, damage), "boot-tables", "page table", at);
    }
    assert!(lab.check().is_clean());
}

#[test]
fn a_page_directory_that_does_not_lead_to_a_page_table_of_the_boot_is_found() {
    let lab = Lab::new();
    for number in [0, 1, lab.roots().1.boot_tables.nkpt.get() - 1] {
        let va = VM_MIN_KERNEL_ADDRESS.add(number * NBPDR);
        let none = damaged(&lab, va, Level::Pd, |_| 0);
        let other = damaged(&lab, va, Level::Pd, |bits| bits + 0x1000);
        for report in [&none, &other] {
            expect_finding(report, "boot-tables", "page table", va);
        }
        expect_finding(&none, "table-reach", "page table", va);
        expect_finding(&flip(&lab, va, Level::Pd, PteFlags::U), "pte-user", "PDE", va);
    }
}

#[test]
fn wrong_counts_of_the_pmap_are_found() {
    let mut lab = Lab::new();
    let (roots_at, _) = lab.roots();
    let at = roots_at.addr().add(offset_of!(KernelRoots, kernel_pmap) as u64);
    type Damage = fn(&KernelPmap);
    let damages: [(&str, Damage); 4] = [
        ("pmap-resident", |pmap| pmap.resident_count.inc()),
        ("pmap-wired", |pmap| pmap.wired_count.dec()),
        ("pmap-tables", |pmap| pmap.table_count.inc()),
        ("pmap-root", |pmap| pmap.pml4.set(GuestPhys::new(0x1000))),
    ];
    for (rule, damage) in damages {
        let report = lab.damaged(roots_at, |roots| damage(&roots.kernel_pmap));
        expect_finding(&report, rule, "kernel_pmap", at);
    }
    let grown = lab.grow();
    let pfn = lab.pte_at(grown, Level::Pt).pfn();
    let page = lab.vm_page(pfn);
    lab.each(page, "vm_page", &[("table-valid", |page| page.private.inc())]);
    let report = lab.damaged(roots_at, |roots| roots.kernel_vm_end.set(VM_MAX_KERNEL_ADDRESS));
    assert!(report.findings.iter().any(|f| f.rule == "table-reach"), "{report}");
}
