//! `kmem_init`: kernel_map, with the kernel image in it.

use vmkern::abi::crash::CrashKind;
use vmkern::abi::kva::{KERNBASE, VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern::abi::layout::EntryFlags;
use vmkern::inspect::ObjectView;
use vmkern::{GuestVirt, MapId, Op};
use vmkern_tests::harness::in_guest;
use vmkern_tests::kern::{Calls as _, PAGE};

const MAP: MapId = MapId::KERNEL;

#[test]
fn kernel_map_reaches_from_the_first_kernel_address_to_the_last_but_one_page() {
    in_guest(|guest| {
        let stats = guest.stats(MAP);
        assert_eq!((stats.min, stats.max), (VM_MIN_KERNEL_ADDRESS, VM_MAX_KERNEL_ADDRESS));
    });
}

#[test]
fn the_kernel_image_is_one_nofault_entry_from_kernbase_on() {
    in_guest(|guest| {
        let entry = guest.entry(MAP, KERNBASE);
        assert_eq!(entry.start, KERNBASE);
        assert_eq!(
            (entry.object, entry.eflags, entry.wired),
            (ObjectView::None, EntryFlags::NOFAULT, 0)
        );
        let image = guest.page_runs(entry.start, entry.end).expect("the page tables can be read");
        assert!(!image.is_empty(), "it is mapped, but by the boot and not by the map");
    });
}

#[test]
fn the_boot_maps_lie_behind_each_other_from_the_start() {
    in_guest(|guest| {
        let stats =
            [MapId::KMEM, MapId::BUFFER, MapId::EXEC, MapId::PIPE].map(|map| guest.stats(map));
        assert_eq!(stats[0].min, VM_MIN_KERNEL_ADDRESS);
        assert_eq!(stats[1].min, stats[0].max);
        assert_eq!(stats[3].min, stats[2].max);
        for stats in stats {
            assert_eq!((stats.entries, stats.size), (0, 0));
        }
    });
}

#[test]
fn a_touch_of_the_boot_range_where_nothing_is_mapped_is_the_nofault_panic() {
    in_guest(|guest| {
        let entry = guest.entry(MAP, KERNBASE);
        let pages =
            (0..entry.end.since(entry.start) / PAGE).map(|page| entry.start.add(page * PAGE));
        let hole = pages
            .into_iter()
            .find(|&at| !guest.is_mapped(at))
            .expect("stack guards are holes in the image");
        let crash = guest.dies_of(Op::Read { addr: hole.add(40) });
        // A guard page below a stack is recognized, and the report names it.
        assert!(
            crash.message == format!("vm_fault: fault on nofault entry, addr: {:x}", hole.get())
                || crash.kind == CrashKind::StackOverflow,
            "{}",
            crash.message
        );
    });
}

#[test]
fn freeing_a_part_of_the_kernel_image_is_a_panic() {
    in_guest(|guest| {
        let start = guest.entry(MAP, KERNBASE).start;
        let crash = guest.dies_of(Op::KmemFree { map: MAP, addr: start, size: PAGE });
        assert_eq!(crash.kind, CrashKind::Panic, "{}", crash.message);
    });
}

#[test]
fn what_kernel_map_gives_comes_after_the_boot_maps_and_before_the_image() {
    in_guest(|guest| {
        let pipe = guest.stats(MapId::PIPE);
        let addr = guest.kmem_alloc(MAP, PAGE).expect("there is room");
        assert!(addr >= pipe.max && addr < KERNBASE, "{addr}");
        assert_eq!(guest.stats(MAP).min, GuestVirt::new(0xffff_ff80_0000_0000));
        guest.kmem_free(MAP, addr, PAGE);
    });
}
