//! Guests with a balloon, and drivers that do not do as they should.

use std::time::Duration;

use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use crate::guest::{Guest, Pages, PressureError, Refusal, ThreadId};

fn launch(memory: u64) -> Guest {
    Guest::builder().memory(memory).balloon().launch().expect("this host can run guests")
}

fn malloc(guest: &mut Guest, size: u64) -> Outcome {
    let op = Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT };
    guest.call(ThreadId::MAIN, op).expect("the guest answers").outcome
}

fn check(guest: &Guest) {
    let report = guest.check().expect("it can be checked");
    assert!(report.is_clean(), "{report}");
}

#[test]
fn request_structures_and_the_hosts_account_agree_to_the_page() {
    let mut guest = launch(64 << 20);
    // 1. Memory that was used, so that the host has it.
    let Outcome::Value(addr) = malloc(&mut guest, 16 << 20) else { panic!("there is room") };
    let addr = vmkern_abi::addr::GuestVirt::new(addr);
    for op in [
        Op::Touch { addr, size: 16 << 20 },
        Op::KmemFree { map: MapId::KMEM, addr, size: 16 << 20 },
    ] {
        assert_eq!(guest.call(ThreadId::MAIN, op).expect("it answers").outcome, Outcome::Ok);
    }
    // 2. All of it goes to the balloon.
    let free = guest.meter().expect("it can be read").v_free_count.get();
    let report = guest.pressure().squeeze(Pages(12_000)).expect("it has a balloon");
    assert_eq!(
        (report.asked, report.held, report.taken),
        (Pages(12_000), Pages(12_000), Pages(12_000))
    );
    assert_eq!(report.refused, None);
    assert_eq!(guest.meter().expect("it can be read").v_free_count.get(), free - 12_000);
    let account = guest.balloon.as_ref().expect("it has one").account();
    assert_eq!((account.actual, account.given, account.discarded), (12_000, 12_000, 12_000));
    assert_eq!(account.misuse.iter().sum::<u64>(), 0);
    assert!(report.back > Pages(3000), "{report:?}");
    check(&guest);
    // 3. And comes back.
    let report = guest.pressure().squeeze(Pages(0)).expect("it has a balloon");
    assert_eq!((report.held, report.taken, report.refused), (Pages(0), Pages(0), None));
    assert_eq!(guest.meter().expect("it can be read").v_free_count.get(), free);
    check(&guest);
}

#[test]
fn a_target_below_the_floors_ends_with_the_drivers_reason() {
    let mut guest = launch(32 << 20);
    let report = guest.pressure().squeeze(Pages(8192)).expect("it has a balloon");
    let reserved = guest.meter().expect("it can be read").v_free_reserved.get();
    assert_eq!(guest.meter().expect("it can be read").v_free_count.get(), reserved);
    assert!(
        matches!(report.refused, Some(Refusal::Driver(why)) if why.contains("v_free_reserved"))
    );
    check(&guest);
    // The same question is asked anew, and answered.
    let again = guest.pressure().squeeze(Pages(8192)).expect("it has a balloon");
    assert_eq!((again.held, again.refused), (report.held, report.refused));
    let report = guest.pressure().squeeze(Pages(0)).expect("it has a balloon");
    assert_eq!((report.held, report.refused), (Pages(0), None));
    check(&guest);
}

#[test]
fn more_than_the_guest_has_is_refused_before_it_is_asked() {
    let mut guest = launch(32 << 20);
    let error = guest.pressure().squeeze(Pages(8193)).expect_err("it is too much");
    assert_eq!(error, PressureError::TooMuch { asked: Pages(8193), memory: Pages(8192) });
}

#[test]
fn a_guest_without_a_balloon_says_how_to_get_one() {
    let mut guest = Guest::builder().launch().expect("this host can run guests");
    let error = guest.pressure().squeeze(Pages(1)).expect_err("it has none");
    assert_eq!(error, PressureError::NoBalloon);
    assert!(error.to_string().contains("GuestBuilder::balloon"), "{error}");
}

#[test]
fn statistics_are_those_of_the_kernels_meter() {
    let mut guest = launch(32 << 20);
    let stats = guest.pressure().statistics().expect("the driver answers");
    let meter = guest.meter().expect("it can be read");
    let value = |name| stats.iter().find(|(stat, _)| *stat == name).map(|(_, value)| *value);
    assert_eq!(value("free"), Some(meter.v_free_count.get() * 4096));
    assert_eq!(value("total"), Some(meter.v_page_count.get() * 4096));
    assert_eq!(value("swap_in"), None);
}

#[test]
fn a_driver_that_never_answers_ends_with_the_guests_time() {
    let mut guest = launch(32 << 20);
    guest.balloon.as_ref().expect("it has one").transport.cut_line();
    guest.set_timeout(Duration::from_millis(300));
    let report = guest.pressure().squeeze(Pages(100)).expect("the guest is alive");
    assert_eq!((report.held, report.refused), (Pages(0), Some(Refusal::Silent)));
}

#[test]
fn a_device_that_was_reset_has_no_driver() {
    use crate::devices::{Device as _, Offset};
    let mut guest = launch(32 << 20);
    let transport = &guest.balloon.as_ref().expect("it has one").transport;
    let _ = transport.write(Offset(0x70), &0_u32.to_le_bytes());
    let report = guest.pressure().squeeze(Pages(100)).expect("the guest is alive");
    assert_eq!(report.refused, Some(Refusal::NoDriver));
}
