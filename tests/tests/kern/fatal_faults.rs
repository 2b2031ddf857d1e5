//! Page faults that end the kernel, with the body at CPL3: a test for each fatal row of the table
//! in `docs/faults.md`. The kernel causes them itself, at the end of its boot.

use vmkern::abi::crash::{CrashKind, FatalFault};
use vmkern::abi::kva::{DMAP_MAX, DMAP_MIN, VM_MIN_KERNEL_ADDRESS};
use vmkern::{Context, Crash, Guest, GuestError, LaunchError, MapId, Op, Privilege};
use vmkern_tests::MEMORY;
use vmkern_tests::harness::in_guest_of;
use vmkern_tests::kern::{Calls as _, PAGE};

/// Calls `judge` with the crash of a guest that dies of `fault`, on 1, 2 and 4 CPUs.
fn dies(fault: FatalFault, judge: impl Fn(&Crash)) {
    for vcpus in [1, 2, 4] {
        let builder = Guest::builder().memory(MEMORY).vcpus(vcpus).privilege(Privilege::User);
        match builder.fault(fault).launch() {
            Err(LaunchError::Guest(GuestError::Crashed(crash))) => judge(&crash),
            other => panic!("fault={} on {vcpus} CPUs gave {other:?}", fault.name()),
        }
    }
}

/// Asserts that `crash` is a page fault whose message is `access`, the two addresses and `why`.
fn is_page_fault(crash: &Crash, access: &str, why: &str) {
    let (cr2, rip) = (crash.cr2.get(), crash.rip.get());
    let message = format!("page fault: {access} at {cr2:#x}, rip {rip:#x}{why}");
    assert_eq!((crash.kind, &*crash.message), (CrashKind::PageFault, &*message));
}

#[test]
fn hole_is_a_page_fault() {
    dies(FatalFault::Hole, |crash| {
        assert!(crash.cr2 >= VM_MIN_KERNEL_ADDRESS);
        is_page_fault(crash, "read (not present)", "");
    });
}

#[test]
fn submap_hole_is_a_page_fault() {
    dies(FatalFault::SubmapHole, |crash| is_page_fault(crash, "read (not present)", ""));
}

#[test]
fn nofault_is_freebsds_panic_with_the_address_of_the_page() {
    dies(FatalFault::NoFault, |crash| {
        let words = "vm_fault: fault on nofault entry, addr: ffffff80";
        assert!(crash.message.starts_with(words), "{}", crash.message);
        assert_eq!(crash.kind, CrashKind::Panic);
    });
}

#[test]
fn no_object_in_a_system_map_is_a_page_fault() {
    dies(FatalFault::NoObject, |crash| is_page_fault(crash, "read (not present)", ""));
}

#[test]
fn dmap_hole_is_a_page_fault() {
    dies(FatalFault::DirectMapHole, |crash| {
        assert!((DMAP_MIN..DMAP_MAX).contains(&crash.cr2));
        is_page_fault(crash, "read (not present)", "");
    });
}

#[test]
fn execute_is_a_protection_violation_at_the_address_that_is_fetched() {
    dies(FatalFault::Execute, |crash| {
        assert_eq!(crash.cr2, crash.rip);
        is_page_fault(crash, "instruction fetch (protection violation)", "");
    });
}

#[test]
fn read_only_is_a_protection_violation_that_says_what_the_entry_allows() {
    dies(FatalFault::ReadOnly, |crash| {
        let (start, end) = (crash.cr2.get(), crash.cr2.get() + PAGE);
        let why = format!(": [{start:#x}, {end:#x}) allows r--");
        is_page_fault(crash, "write (protection violation)", &why);
    });
}

#[test]
fn lost_page_is_freebsds_panic_when_its_range_is_freed() {
    dies(FatalFault::LostPage, |crash| {
        let panic = (CrashKind::Panic, "vm_page_unwire: invalid wire count: 0");
        assert_eq!((crash.kind, &*crash.message), panic);
    });
}

#[test]
fn interrupt_is_a_page_fault_that_says_so() {
    dies(FatalFault::Interrupt, |crash| {
        assert!(crash.in_interrupt);
        is_page_fault(crash, "read (not present)", ", in an interrupt handler");
    });
}

#[test]
fn mutex_is_a_page_fault_that_names_the_class() {
    dies(FatalFault::Mutex, |crash| {
        is_page_fault(crash, "read (not present)", ", while holding system map");
    });
}

#[test]
fn critical_section_is_a_page_fault_that_says_so() {
    dies(FatalFault::CriticalSection, |crash| {
        is_page_fault(crash, "read (not present)", ", in a critical section");
    });
}

#[test]
fn a_real_interrupt_handler_may_not_touch_a_page_for_the_first_time() {
    for vcpus in [1, 2, 4] {
        in_guest_of(Guest::builder().memory(MEMORY).vcpus(vcpus), |guest| {
            let addr = guest.kmem_alloc_wait(MapId::EXEC, PAGE).expect("there is room");
            let crash = guest.dies_of_in(Context::Interrupt, Op::Read { addr });
            assert_eq!((crash.cr2, crash.in_interrupt), (addr, true));
            is_page_fault(&crash, "read (not present)", ", in an interrupt handler");
        });
    }
}
