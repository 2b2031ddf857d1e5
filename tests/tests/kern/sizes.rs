//! Size 0, and sizes that wrap when they are rounded up to pages: in 2008 each had an effect of its
//! own; here they do no harm.

use vmkern::{GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_tests::Run;
use vmkern_tests::harness::in_guest;
use vmkern_tests::kern::{Account, Calls as _, KernGuest, PAGE};

use crate::{NOWAIT, WAITOK, ZEROED};

/// Sizes that are 0 after rounding up.
const NOTHING: [u64; 4] = [0, u64::MAX, u64::MAX - 1, u64::MAX - PAGE + 2];

fn accounts(guest: &mut KernGuest) -> [Account; 3] {
    [MapId::KERNEL, MapId::KMEM, MapId::EXEC].map(|map| guest.account(map))
}

/// Asserts that the operation from `op` returns null for each of these sizes, and that nothing
/// changes.
fn gives_null_for_nothing(op: impl Fn(u64) -> Op) {
    in_guest(|guest| {
        let before = accounts(guest);
        for size in NOTHING {
            assert_eq!(guest.run(op(size)), Outcome::Null, "{:?}", op(size));
        }
        assert_eq!(accounts(guest), before);
    });
}

#[test]
fn kmem_alloc_nofault_of_nothing_gives_null() {
    gives_null_for_nothing(|size| Op::KmemAllocNofault { map: MapId::KERNEL, size });
}

#[test]
fn kmem_alloc_of_nothing_gives_null_and_leaks_no_reference() {
    gives_null_for_nothing(|size| Op::KmemAlloc { map: MapId::KERNEL, size });
}

#[test]
fn kmem_malloc_of_nothing_gives_null_with_every_flag_and_does_not_panic() {
    for flags in [NOWAIT, WAITOK, ZEROED, MallocFlags::empty(), NOWAIT | MallocFlags::USE_RESERVE] {
        gives_null_for_nothing(|size| Op::KmemMalloc { map: MapId::KMEM, size, flags });
    }
}

#[test]
fn kmem_alloc_wait_of_nothing_gives_null_and_waits_for_nothing() {
    gives_null_for_nothing(|size| Op::KmemAllocWait { map: MapId::EXEC, size });
    in_guest(|guest| {
        let map = guest.kmem_suballoc(MapId::KERNEL, PAGE, MapKind::User);
        guest.kmem_alloc_wait(map, PAGE).expect("the map is empty");
        assert_eq!(guest.kmem_alloc_wait(map, 0), None, "in a full map, too");
    });
}

#[test]
fn sizes_beyond_the_map_give_null_at_once() {
    in_guest(|guest| {
        let before = accounts(guest);
        for size in [1 << 40, 1 << 63, u64::MAX - PAGE + 1, u64::MAX - PAGE] {
            assert_eq!(guest.kmem_alloc_nofault(MapId::KERNEL, size), None, "{size:#x}");
            assert_eq!(guest.kmem_alloc(MapId::KERNEL, size), None, "{size:#x}");
            assert_eq!(guest.kmem_malloc(MapId::KMEM, size, NOWAIT), None, "{size:#x}");
            assert_eq!(guest.kmem_alloc_wait(MapId::EXEC, size), None, "{size:#x}");
        }
        assert_eq!(accounts(guest), before);
        assert_eq!(guest.counters().lowmem_events.get(), 0);
    });
}

#[test]
fn freeing_nothing_and_what_wraps_changes_nothing() {
    in_guest(|guest| {
        guest.malloc(4 * PAGE);
        guest.kmem_alloc_wait(MapId::EXEC, 4 * PAGE).expect("there is room");
        let before = accounts(guest);
        for (map, free) in [(MapId::KMEM, false), (MapId::EXEC, true)] {
            let min = guest.stats(map).min;
            for (addr, size) in [
                (min, 0),
                (min, u64::MAX),
                (GuestVirt::new(0), 0),
                (min.add(PAGE), u64::MAX - PAGE),
            ] {
                guest.ok(match free {
                    false => Op::KmemFree { map, addr, size },
                    true => Op::KmemFreeWakeup { map, addr, size },
                });
            }
        }
        assert_eq!(accounts(guest), before);
    });
}
