//! Errors in handlers are reported: in those of interrupts, and in those of the vm_lowmem event.
//! And pagezero's background work is correct.

use vmkern::testing::Calls as _;
use vmkern::{Context, Guest, GuestVirt, KernReturn, MallocFlags, MapId, Op, Outcome};
use vmkern_tests::{Run, guest, launch};

#[test]
fn a_crash_in_an_interrupt_handler_does_not_pass_for_one_of_the_thread_it_interrupted() {
    let mut guest = guest();
    let bad = Op::Read { addr: GuestVirt::new(0x1000) };
    let crash = guest.in_interrupt().expect_panic("page fault").perform::<Outcome>(bad);
    assert!(crash.in_interrupt, "{crash}");
    assert!(crash.to_string().contains("interrupt handler on thread "), "{crash}");
    let crash = self::guest().expect_panic("page fault").perform::<Outcome>(bad);
    assert!(!crash.in_interrupt && !crash.to_string().contains("interrupt handler"), "{crash}");
}

#[test]
fn pages_that_pagezero_has_cleared_are_zero_and_nothing_is_wrong_with_them() {
    const SIZE: u64 = 8 << 20;
    let builder = Guest::builder().memory(16 << 20).tunable("vm.idlezero_enable", 1);
    let mut guest = launch(builder.tunable("vm.kmem_size", 12 << 20));
    let addr = guest.malloc(SIZE);
    guest.ok(Op::Fill { addr, size: SIZE, seed: 1 });
    guest.ok(Op::KmemFree { map: MapId::KMEM, addr, size: SIZE });
    guest.ok(Op::Settle);
    let report = guest.check().expect("the guest can be checked");
    assert!(report.is_clean(), "{report}");
    let flags = MallocFlags::NOWAIT | MallocFlags::ZERO;
    let addr = guest.address(Op::KmemMalloc { map: MapId::KMEM, size: SIZE, flags });
    guest.ok(Op::VerifyZero { addr, size: SIZE });
}

#[test]
fn a_vm_lowmem_handler_cannot_wait_for_rest() {
    let outcome = guest().call_in(Context::Lowmem, Op::Settle).expect("the guest lives").outcome;
    assert_eq!(outcome, Outcome::Error(KernReturn::InvalidArgument));
}

#[test]
fn what_fails_in_a_vm_lowmem_handler_is_counted_and_logged() {
    const SIZE: u64 = 1 << 20;
    let mut guest = launch(Guest::builder().tunable("vm.kmem_size", SIZE));
    let addr = guest.malloc(SIZE);
    guest.ok(Op::Fill { addr, size: SIZE, seed: 1 });
    let free = Op::KmemFree { map: MapId::KMEM, addr, size: SIZE };
    for op in
        [Op::Verify { addr, size: SIZE, seed: 1 }, Op::Verify { addr, size: SIZE, seed: 2 }, free]
    {
        let outcome = guest.call_in(Context::Lowmem, op).expect("the guest lives").outcome;
        assert_eq!(outcome, Outcome::Ok, "{op:?} is kept");
    }
    guest.address(Op::KmemMalloc { map: MapId::KMEM, size: 4096, flags: MallocFlags::empty() });
    assert_eq!(guest.meter().expect("the counters can be read").lowmem_failures.get(), 1);
    let log = String::from_utf8_lossy(&guest.take_log()).into_owned();
    assert!(log.contains("vm_lowmem: Verify") && log.contains("Mismatch"), "{log}");
}
