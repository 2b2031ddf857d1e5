//! The result of an access, depending on what the functions have mapped at its address.

use vmkern::abi::crash::CrashKind;
use vmkern::abi::kva::VM_MAX_KERNEL_ADDRESS;
use vmkern::{GuestVirt, MapId, MapKind, Op};
use vmkern_tests::Run;
use vmkern_tests::harness::in_guest;
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};

use crate::NOWAIT;

/// Asserts that reads and writes at the address from `prepare` are fatal page faults.
fn is_fatal(prepare: impl Fn(&mut KernGuest) -> GuestVirt) {
    for (write, word) in [(false, "read"), (true, "write")] {
        in_guest(|guest| {
            let addr = prepare(guest);
            let op = if write { Op::Write { addr, value: 1 } } else { Op::Read { addr } };
            let crash = guest.dies_of(op);
            assert_eq!((crash.kind, crash.cr2), (CrashKind::PageFault, addr), "{}", crash.message);
            assert!(
                crash.message.starts_with(&format!("page fault: {word} (not present)")),
                "{}",
                crash.message
            );
        });
    }
}

#[test]
fn wired_memory_is_used_without_a_fault() {
    in_guest(|guest| {
        let blocks = [
            guest.kmem_alloc(MapId::KERNEL, 4 * PAGE).expect("there is room"),
            guest.kmem_malloc(MapId::KMEM, 4 * PAGE, NOWAIT).expect("there is room"),
        ];
        let faults = guest.counters().v_faults.get();
        for addr in blocks {
            guest.use_memory(addr, 4 * PAGE);
        }
        assert_eq!(guest.counters().v_faults.get(), faults);
    });
}

#[test]
fn a_hole_of_kernel_map_is_fatal() {
    is_fatal(|guest| {
        let addr = guest.kmem_alloc_nofault(MapId::KERNEL, PAGE).expect("there is room");
        addr.add(1 << 30)
    });
}

#[test]
fn a_hole_of_a_submap_is_fatal_whatever_its_kind() {
    for kind in [MapKind::User, MapKind::System] {
        is_fatal(|guest| {
            let map = guest.kmem_suballoc(MapId::KERNEL, 8 * PAGE, kind);
            guest.kmem_alloc_nofault(map, 3 * PAGE).expect("there is room");
            guest.stats(map).min.add(3 * PAGE)
        });
    }
}

#[test]
fn the_page_past_kernel_map_and_addresses_below_it_are_fatal() {
    is_fatal(|_| VM_MAX_KERNEL_ADDRESS);
    is_fatal(|_| GuestVirt::new(0));
    is_fatal(|_| GuestVirt::new(0x7fff_ffff_f000));
}

#[test]
fn a_fault_waits_for_nobody_while_pages_are_there_and_each_page_faults_once() {
    in_guest(|guest| {
        let addr = guest.kmem_alloc_wait(MapId::EXEC, 6 * PAGE).expect("there is room");
        let faults = guest.counters().v_faults.get();
        for _ in 0..3 {
            guest.ok(Op::Touch { addr, size: 6 * PAGE });
        }
        assert_eq!(guest.counters().v_faults.get(), faults + 6);
    });
}

#[test]
fn an_access_over_the_end_of_memory_stops_at_the_first_page_that_is_not_there() {
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, 8 * PAGE, MapKind::System);
        let addr = guest.kmem_malloc(map, 2 * PAGE, NOWAIT).expect("there is room");
        let crash = guest.dies_of(Op::Fill { addr, size: 3 * PAGE, seed: 1 });
        assert_eq!((crash.kind, crash.cr2), (CrashKind::PageFault, addr.add(2 * PAGE)));
    });
}
