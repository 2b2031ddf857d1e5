//! Rules of `translations`.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MapId, Op};
use vmkern_abi::field::Field;
use vmkern_abi::layout::{PageFlags, PageOflags, Protection};
use vmkern_abi::pte::{Level, PteFlags};

use super::lab::{Lab, expect_finding};
use crate::check::Report;

fn damaged(lab: &Lab, va: GuestVirt, damage: impl Fn(u64) -> u64) -> Report {
    lab.damaged_phys::<Field<u64>>(lab.pte_at(va, Level::Pt), |entry| entry.update_locked(&damage))
}

#[test]
fn every_bit_of_a_translation_that_matters_is_checked() {
    let lab = Lab::new();
    let va = lab.block;
    let cases = [
        ("pte-wx", PteFlags::NX),
        ("pte-protection", PteFlags::RW),
        ("pte-user", PteFlags::U),
        ("pte-reserved", PteFlags::PWT),
        ("pte-reserved", PteFlags::PCD),
        ("pte-reserved", PteFlags::PS),
        ("pte-reserved", PteFlags::MANAGED),
        ("pte-flags", PteFlags::A),
        ("pte-flags", PteFlags::M),
        ("pte-flags", PteFlags::G),
        ("pte-wired", PteFlags::W),
        ("pte-kenter", PteFlags::KENTER),
        ("pte-missing", PteFlags::V),
        ("pte-invalid", PteFlags::V),
    ];
    for (rule, flag) in cases {
        expect_finding(&damaged(&lab, va, |bits| bits ^ flag.bits()), rule, "PTE", va);
    }
    for bit in 12..52 {
        expect_finding(&damaged(&lab, va, |bits| bits ^ 1 << bit), "pte-frame", "PTE", va);
    }
    for bit in 52..63 {
        expect_finding(&damaged(&lab, va, |bits| bits ^ 1 << bit), "pte-reserved", "PTE", va);
    }
    assert!(lab.check().is_clean());
}

#[test]
fn a_translation_that_allows_more_than_its_entry_is_found() {
    let mut lab = Lab::new();
    let va = lab.block;
    let good = lab.guest.vtop(va).expect("the tables can be read").last().pte.bits();
    for allowed in [Protection::READ, Protection::empty()] {
        let (map, size) = (MapId::KMEM, PAGE_SIZE);
        lab.ok(Op::Protect { map, addr: va, size, protection: allowed });
        assert!(lab.check().is_clean());
        expect_finding(&damaged(&lab, va, |_| good), "pte-protection", "PTE", va);
    }
}

#[test]
fn a_read_only_translation_is_not_modified_and_may_be_missing_until_the_next_access() {
    let mut lab = Lab::new();
    let (map, addr, size) = (MapId::KMEM, lab.block, PAGE_SIZE);
    let protect = |protection| Op::Protect { map, addr, size, protection };
    lab.ok(protect(Protection::READ));
    let rw = PteFlags::RW.bits();
    expect_finding(&damaged(&lab, addr, |bits| bits | rw), "pte-flags", "PTE", addr);
    lab.ok(protect(Protection::empty()));
    lab.ok(protect(Protection::READ | Protection::WRITE));
    assert!(lab.check().is_clean());
    lab.ok(Op::Touch { addr, size });
    assert!(lab.check().is_clean());
    assert!(lab.guest.vtop(addr).expect("the tables can be read").last().pte.is_valid());
}

#[test]
fn translations_where_none_should_be_are_found() {
    let lab = Lab::new();
    let good = lab.guest.vtop(lab.block).expect("the tables can be read").last().pte.bits();
    let hole = GuestVirt::new(lab.block.get() - PAGE_SIZE);
    expect_finding(&damaged(&lab, hole, |_| good), "pte-hole", "PTE", hole);
    let untouched = lab.pageable.add(4 * PAGE_SIZE);
    expect_finding(&damaged(&lab, untouched, |_| good), "pte-unexplained", "PTE", untouched);
    let window = lab.window.add(3 * PAGE_SIZE);
    expect_finding(&damaged(&lab, window, |_| good), "pte-unexplained", "PTE", window);
    let stack = lab.guest.look(|view| {
        let thread = view.kernel_roots()?.1.sched.all.tail.get();
        view.copy("thread", thread)
    });
    let low = stack.expect("there is a thread").kstack.get();
    let guard = GuestVirt::new(low.get() - PAGE_SIZE);
    let kentered = lab.guest.vtop(lab.window).expect("the tables can be read").last().pte.bits();
    let report = damaged(&lab, guard, |_| kentered);
    assert!(
        report.findings.iter().any(|f| f.rule == "kernel-stack"),
        "the guard page is mapped:\n{report}"
    );
    assert!(
        report.findings.iter().any(|f| f.rule == "page-owner"),
        "one page is mapped twice:\n{report}"
    );
}

#[test]
fn pages_behind_entries_are_held_against_them() {
    let lab = Lab::new();
    let page = lab.vm_page(lab.pfn_at(lab.block));
    lab.each(
        page,
        "vm_page",
        &[
            ("page-resident", |page| page.wire_count.set(0)),
            ("page-resident", |page| page.wire_count.set(2)),
            ("page-resident", |page| page.valid.set(0)),
            ("page-resident", |page| page.oflags.set(PageOflags::BUSY)),
            ("page-resident", |page| page.busy.set(1)),
            ("page-resident", |page| {
                page.flags.update_locked(|flags| flags - PageFlags::UNMANAGED)
            }),
            ("page-free", |page| page.flags.update_locked(|flags| flags - PageFlags::ALLOCATED)),
        ],
    );
    let pageable = lab.vm_page(lab.pfn_at(lab.pageable));
    lab.each(
        pageable,
        "vm_page",
        &[
            ("page-resident", |page| page.wire_count.set(1)),
            ("page-resident", |page| {
                page.flags.update_locked(|flags| flags | PageFlags::UNMANAGED)
            }),
        ],
    );
}

#[test]
fn a_page_that_no_entry_shows_is_a_leak() {
    let lab = Lab::new();
    let entries = lab.guest.map_entries(crate::MapId::KMEM).expect("the map is good");
    let last = entries[0].end.get() - PAGE_SIZE;
    let page = lab.vm_page(lab.pfn_at(GuestVirt::new(last)));
    let report = lab.damaged(lab.entry(1, 0), |entry| {
        entry.end.update_locked(|end| GuestVirt::new(end.get() - PAGE_SIZE))
    });
    expect_finding(&report, "object-leak", "vm_page", page.addr());
    expect_finding(&report, "pte-hole", "PTE", GuestVirt::new(last));
    let report = lab
        .damaged(lab.entry(2, 0), |entry| entry.offset.update_locked(|offset| offset + PAGE_SIZE));
    let page = lab.vm_page(lab.pfn_at(lab.pageable));
    expect_finding(&report, "object-leak", "vm_page", page.addr());
}
