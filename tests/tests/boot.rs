//! Guests of every configuration boot, and a dying guest leaves a message.

use vmkern::abi::crash::CrashKind as Kind;
use vmkern::testing::{Balance, Calls as _};
use vmkern::{Crash, Guest, GuestError, LaunchError, Op, Outcome, Privilege, TimeMode};
use vmkern_tests::{Run, launch};

#[test]
fn memory_from_8_mib_to_64_gib_boots() {
    for megabytes in [8, 9, 16, 64, 1024, 3 * 1024, 5 * 1024, 64 * 1024] {
        let mut guest = launch(Guest::builder().memory(megabytes << 20));
        let size = 64 << 10;
        let addr = guest.malloc(size);
        guest.ok(Op::Fill { addr, size, seed: megabytes });
        guest.ok(Op::Verify { addr, size, seed: megabytes });
        guest.free(addr, size);
        let pages = guest.meter().expect("the counters can be read").v_page_count.get();
        assert!(pages * 4096 <= megabytes << 20, "{megabytes} MiB hold {pages} pages");
        // The image and low memory take 2 MiB, the page array 64 bytes for each page, including
        // those of the hole at 3 GiB.
        let hole = if megabytes > 3 * 1024 { 16 } else { 0 };
        let least = (megabytes - 3) * 63 / 64 - hole;
        assert!(pages * 4096 >= least << 20, "{megabytes} MiB hold only {pages} pages");
    }
}

#[test]
fn the_self_test_passes_at_user_privilege() {
    let report =
        Guest::builder().privilege(Privilege::User).run_selftest().expect("the self-test boots");
    let output = String::from_utf8_lossy(&report.output);
    assert!(report.success(), "{output}");
    assert!(output.contains("CPL3") && output.contains(" 0 failed"), "{output}");
}

#[test]
fn the_self_test_passes_at_user_privilege_on_2_and_4_cpus() {
    for vcpus in [2, 4] {
        let builder = Guest::builder().privilege(Privilege::User).time(TimeMode::Real);
        let report = builder.vcpus(vcpus).run_selftest().expect("the self-test boots");
        let output = String::from_utf8_lossy(&report.output);
        assert!(report.success(), "{output}");
        let first = format!("CPL3, {vcpus} CPUs");
        assert!(output.contains(&first) && output.contains(" 0 failed"), "{output}");
    }
}

fn crash(kind: Kind) -> Crash {
    match Guest::builder().crash(kind).launch() {
        Err(LaunchError::Guest(GuestError::Crashed(crash))) => *crash,
        other => panic!("crash={} gave {other:?}", kind.name()),
    }
}

#[test]
fn every_kind_of_crash_arrives_as_a_record_with_its_message() {
    for (kind, words) in [
        (Kind::Panic, "asked to by crash=panic"),
        (Kind::PageFault, "page fault: write (not present) at 0xffffffff7ffffff8"),
        (Kind::Trap, "unexpected trap 6 (#UD)"),
        (Kind::StackOverflow, "stack overflow"),
        (Kind::Nucleus, "fault in the nucleus"),
    ] {
        let crash = crash(kind);
        assert_eq!(crash.kind, kind);
        assert!(crash.message.contains(words), "{}: {}", kind.name(), crash.message);
        assert_eq!(crash.cpu, 0);
    }
}

#[test]
fn a_crash_names_function_file_and_line() {
    let crash = crash(Kind::PageFault);
    let text = crash.to_string();
    assert!(text.contains("crash+0x") && text.contains("(crash_test.rs:"), "{text}");
    assert!(
        text.contains("body+0x") && text.contains("(main.rs:"),
        "the backtrace reaches the boot sequence: {text}"
    );
}

#[test]
fn a_page_fault_names_address_access_and_rip() {
    let mut guest = launch(Guest::builder());
    let addr = guest.malloc(4096);
    guest.free(addr, 4096);
    let crash = guest.expect_panic("page fault").read(addr);
    assert_eq!(crash.kind, Kind::PageFault);
    assert_eq!(crash.cr2, addr);
    assert_eq!(crash.thread, Some(0));
    for words in
        ["page fault", "read", "not present", &format!("{addr:#x}"), &format!("{:#x}", crash.rip)]
    {
        assert!(crash.message.contains(words), "{words} is missing: {}", crash.message);
    }
}

#[test]
fn a_fault_on_a_nofault_entry_says_what_freebsd_says() {
    let mut guest = launch(Guest::builder());
    let map = vmkern::MapId::KERNEL;
    let addr = guest.address(Op::KmemAllocNofault { map, size: 8192 });
    let touched = addr.add(4096 + 8);
    let page = touched.page().get();
    let words = format!("vm_fault: fault on nofault entry, addr: {page:x}");
    guest.expect_panic(&words).read(touched);
}

#[test]
fn a_dead_guest_answers_with_its_death_and_still_shows_its_counters() {
    let mut guest = launch(Guest::builder());
    let before = Balance::of(&guest);
    for _ in 0..2 {
        guest.expect_panic("page fault").read(vmkern::GuestVirt::new(0x1000));
    }
    assert_eq!(Balance::of(&guest), before);
}

#[test]
fn a_request_that_makes_no_sense_is_an_error_and_the_kernel_goes_on() {
    let mut guest = launch(Guest::builder());
    let outcome = guest.run(Op::KmemAlloc { map: vmkern::MapId(77), size: 4096 });
    assert!(matches!(outcome, Outcome::Error(_)), "{outcome:?}");
    guest.ok(Op::Nop);
}
