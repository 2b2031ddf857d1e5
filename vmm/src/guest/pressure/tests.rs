//! Guests whose free memory is taken away.

use std::time::Duration;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};
use vmkern_abi::seize::{OwnedLock, Structures as _};

use super::*;
use crate::guest::{Guest, ThreadId};
use crate::inspect::What;

fn launch(memory: u64) -> Guest {
    let builder = Guest::builder().memory(memory).timeout(Duration::from_secs(300));
    builder.launch().unwrap_or_else(|error| panic!("{error}"))
}

fn malloc(guest: &mut Guest, size: u64) -> Option<vmkern_abi::addr::GuestVirt> {
    let op = Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT };
    match guest.call(ThreadId::MAIN, op).expect("the guest answers").outcome {
        Outcome::Value(addr) => Some(vmkern_abi::addr::GuestVirt::new(addr)),
        _ => None,
    }
}

fn free(guest: &Guest) -> u64 {
    guest.meter().expect("the counters can be read").v_free_count.get()
}

fn is_clean(guest: &Guest) {
    let report = guest.check().expect("the guest can be checked");
    assert!(report.is_clean(), "{report}");
}

#[test]
fn request_structures_and_the_hosts_account_agree_about_memory_that_was_touched() {
    let mut guest = launch(64 << 20);
    let size = 16 << 20;
    let addr = malloc(&mut guest, size).expect("there is memory");
    let fill = Op::Fill { addr, size, seed: 5 };
    let mut is_done = |op| {
        let response = guest.call(ThreadId::MAIN, op).expect("the guest answers");
        assert_eq!(response.outcome, Outcome::Ok);
    };
    is_done(fill);
    let op = Op::KmemFree { map: MapId::KMEM, addr, size };
    is_done(op);
    // The fresh part goes first, and takes no memory of the host.
    let fresh = free(&guest) - size / PAGE_SIZE;
    let report = guest.pressure().seize(PressureTarget::More(Pages(fresh))).expect("seized");
    assert_eq!((report.taken.0, &report.refused), (fresh, &None));
    assert!(report.back.0 < 100, "{report:?}");
    let touched = Pages(size / PAGE_SIZE - 64);
    let report = guest.pressure().seize(PressureTarget::More(touched)).expect("seized");
    assert_eq!((report.asked, report.taken), (touched, touched));
    assert!(report.taken.0 - report.back.0 <= 1, "{report:?}");
    is_clean(&guest);
}

#[test]
fn looks_checks_and_dumps_leave_holes_as_they_are() {
    let mut guest = launch(64 << 20);
    let size = 8 << 20;
    let addr = malloc(&mut guest, size).expect("there is memory");
    let op = Op::KmemFree { map: MapId::KMEM, addr, size };
    assert!(guest.call(ThreadId::MAIN, Op::Fill { addr, size, seed: 1 }).is_ok());
    assert!(guest.call(ThreadId::MAIN, op).is_ok());
    guest.pressure().seize(PressureTarget::Leave(Pages(500))).expect("seized");
    let held = guest.pressure().release(Pages(1500)).expect("released");
    assert!(held > Pages(0), "some stay seized");
    let resident = guest.resident_memory();
    is_clean(&guest);
    assert_eq!(guest.resident_memory(), resident, "a check");
    for what in [What::Summary, What::Pages, What::Maps, What::Threads] {
        assert!(guest.inspect("guest", &what).is_ok());
        assert_eq!(guest.resident_memory(), resident, "inspect {what}");
    }
    let dir = std::env::temp_dir().join(format!("vmkern-holes-{}", std::process::id()));
    guest.save_dump(&dir).expect("the dump can be written");
    std::fs::remove_file(&dir).expect("it was written");
    assert_eq!(guest.resident_memory(), resident, "a dump");
}

#[test]
fn a_dead_guest_is_taken_as_it_stands_and_gets_its_frames_back() {
    let mut guest = launch(32 << 20);
    let death =
        guest.call(ThreadId::MAIN, Op::Read { addr: vmkern_abi::addr::GuestVirt::new(0x10) });
    assert!(death.is_err(), "{death:?}");
    let before = free(&guest);
    let report = guest.pressure().seize(PressureTarget::Leave(Pages(7))).expect("seized");
    assert_eq!((free(&guest), report.taken.0), (7, before - 7));
    is_clean(&guest);
    assert_eq!(guest.pressure().release(Pages::ALL), Ok(Pages(0)));
    assert_eq!(free(&guest), before);
    is_clean(&guest);
}

#[test]
fn more_than_the_guest_has_is_refused_and_all_that_is_free_is_taken_with_a_reason() {
    let mut guest = launch(16 << 20);
    let error = guest.pressure().seize(PressureTarget::More(Pages(4097))).expect_err("too much");
    assert_eq!(
        error.to_string(),
        "cannot take 4097 pages (16388 KiB) of a guest that has 4096 pages (16384 KiB) of memory"
    );
    let before = free(&guest);
    let report = guest.pressure().seize(PressureTarget::More(Pages(4096))).expect("seized");
    assert_eq!((report.taken.0, report.refused), (before, Some(Refusal::NotFree)));
    assert_eq!(malloc(&mut guest, PAGE_SIZE), None);
    assert_eq!(guest.pressure().release(Pages::ALL), Ok(Pages(0)));
    assert!(malloc(&mut guest, PAGE_SIZE).is_some());
    is_clean(&guest);
}

#[test]
fn a_guest_that_died_with_the_free_queue_locked_is_left_alone_and_the_owner_named() {
    let mut guest = launch(32 << 20);
    assert!(
        guest
            .call(ThreadId::MAIN, Op::Read { addr: vmkern_abi::addr::GuestVirt::new(0x10) })
            .is_err()
    );
    let roots = guest.link.region().roots.get();
    let ram = std::sync::Arc::clone(&guest.hypervisor.ram);
    let found = ram.behind(roots).expect("roots lie in the direct map");
    found.vm_page_queue_free_mtx.owner.set(1);
    let before = free(&guest);
    let error = guest.pressure().seize(PressureTarget::Leave(Pages(7))).expect_err("locked");
    let named =
        PressureError::Locked { lock: OwnedLock::FreeQueue, thread: "thread t0".to_owned() };
    assert_eq!((error, free(&guest)), (named, before));
}
