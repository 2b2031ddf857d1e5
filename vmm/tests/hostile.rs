//! Guests that misbehave, and how the host reports them. Needs KVM: without it, the tests fail with
//! the message of `vmkern doctor`.

mod tiny;

use std::time::Duration;

use tiny::{Code, Note, pvh_elf};
use vmkern::abi::control::{ControlRegion, ExitCode};
use vmkern::abi::describe::Described;
use vmkern::abi::log::LogRing;
use vmkern::guest::{ContractError, CpuFault, KernelFault, KernelImage, RequestError};
use vmkern::inspect::NoCrashRecord;
use vmkern::script::{
    EnvironmentReport, RunReport, Setup, Source, Step, Stop, parse, run_script_then,
};
use vmkern::{Context, Guest, GuestBuilder, GuestError, LaunchError, Op, ThreadId};

const SHORT: Duration = Duration::from_millis(200);

fn tiny(code: Code) -> GuestBuilder {
    Guest::builder().memory(8 << 20).kernel(code.image())
}

fn dies(code: Code) -> GuestError {
    match tiny(code).launch() {
        Err(LaunchError::Guest(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_leaves_at_once_is_reported_with_its_exit_code_and_output() {
    let report = tiny(Code::new().out(0x3f8, b'h').out(0x3f8, b'i').exit(ExitCode::Success as u8))
        .run_selftest();
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    assert!(report.success());
    assert_eq!(report.output, b"hi");
}

#[test]
fn a_guest_that_never_becomes_ready_is_stopped_at_its_deadline() {
    for code in [Code::new().spin(), Code::new().halt()] {
        match tiny(code).timeout(SHORT).launch() {
            Err(LaunchError::Guest(GuestError::Timeout { limit, at })) => {
                assert_eq!(limit, SHORT);
                assert!(
                    (u64::from(tiny::CODE)..=u64::from(tiny::CODE) + 2).contains(&at.address.get()),
                    "{at}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_request_that_is_never_answered_ends_at_the_deadline_and_so_does_the_guest() {
    let mut guest = tiny(Code::new().ready().spin())
        .timeout(SHORT)
        .launch()
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(guest.call(ThreadId::MAIN, Op::Nop), Err(GuestError::Timeout { .. })));
    assert!(
        matches!(guest.call(ThreadId::MAIN, Op::Nop), Err(GuestError::Timeout { .. })),
        "a dead guest keeps its reason"
    );
}

#[test]
fn a_guest_that_spins_at_the_doorbell_is_stopped_too() {
    let code = Code::new().ready().bytes(&[0xee, 0xeb, 0xfd]);
    let mut guest = tiny(code).timeout(SHORT).launch().unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(guest.call(ThreadId::MAIN, Op::Nop), Err(GuestError::Timeout { .. })));
}

#[test]
fn a_triple_fault_gives_registers() {
    // mov eax, 0x1234_5678
    match dies(Code::new().bytes(&[0xb8, 0x78, 0x56, 0x34, 0x12]).triple_fault()) {
        GuestError::Cpu { failure, .. } => {
            assert_eq!(failure.fault, CpuFault::TripleFault);
            assert!(failure.to_string().contains("rip"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_shown() {
    // movd xmm0, eax: an emulating KVM does not support it; a processor refuses it, because
    // CR4.OSFXSR is clear.
    let movd = [0x66, 0x0f, 0x6e, 0xc0];
    match dies(Code::new().bytes(&movd).spin()) {
        GuestError::Cpu { failure, at } => match failure.fault {
            CpuFault::Internal { instruction, .. } => {
                assert_eq!(instruction[..4], movd);
                assert_eq!(at.address.get(), u64::from(tiny::CODE));
            }
            fault => assert_eq!(fault, CpuFault::TripleFault),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_leaves_although_nobody_asked_breaks_the_contract() {
    assert!(matches!(
        dies(Code::new().exit(ExitCode::Success as u8)),
        GuestError::Contract(ContractError::Exit(code)) if code == ExitCode::Success as u8
    ));
}

#[test]
fn a_crash_without_a_record_breaks_the_contract() {
    assert!(matches!(
        dies(Code::new().exit(ExitCode::Crash as u8)),
        GuestError::Contract(ContractError::NoCrashRecord(NoCrashRecord(0)))
    ));
}

#[test]
fn a_kernel_of_another_abi_version_is_refused() {
    let phase = u32::try_from(core::mem::offset_of!(ControlRegion, phase)).expect("small");
    let version =
        u32::try_from(core::mem::offset_of!(ControlRegion, guest_abi_version)).expect("small");
    assert!(matches!(
        dies(Code::new().control_word(phase, 1).spin()),
        GuestError::Contract(ContractError::NoAbi)
    ));
    match dies(Code::new().control_word(version, 99).control_word(phase, 1).spin()) {
        GuestError::Contract(ContractError::Abi(mismatch)) => {
            assert_eq!(mismatch.guest_version, 99)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kernel_of_another_abi_version_is_refused_before_it_says_that_it_is_ready() {
    let version =
        u32::try_from(core::mem::offset_of!(ControlRegion, guest_abi_version)).expect("small");
    // With a bell that wakes the host, and without one that the host would hear.
    for code in [
        Code::new().control_word(version, 99).spin(),
        Code::new().store(tiny::CONTROL + version, 99).halt(),
        Code::new().control_word(version, 99).triple_fault(),
    ] {
        let begin = std::time::Instant::now();
        match dies(code) {
            GuestError::Contract(ContractError::Abi(mismatch)) => {
                assert_eq!(mismatch.guest_version, 99);
            }
            other => panic!("{other:?}"),
        }
        assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_damaged_ring_counter_is_a_contract_error_and_not_a_hang() {
    // The first word of a ring is its producer's counter.
    let tail = u32::try_from(core::mem::offset_of!(ControlRegion, responses)).expect("small");
    let mut guest = tiny(Code::new().ready().control_word(tail, 0x8000_0000).spin())
        .launch()
        .expect("it says that it is ready");
    match guest.call(ThreadId::MAIN, Op::Nop) {
        Err(GuestError::Contract(ContractError::Ring { ring: "response", .. })) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_that_is_none_is_a_contract_error() {
    let tail = u32::try_from(core::mem::offset_of!(ControlRegion, responses)).expect("small");
    let mut guest = tiny(Code::new().ready().control_word(tail, 1).spin())
        .launch()
        .expect("it says that it is ready");
    match guest.call(ThreadId::MAIN, Op::Nop) {
        Err(GuestError::Contract(ContractError::Response(_))) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_interrupt_ends_a_wait_and_the_guest_goes_on() {
    let mut guest = tiny(Code::new().ready().spin()).launch().expect("it says that it is ready");
    let handle = guest.interrupt_handle();
    let thread = std::thread::spawn(move || handle.interrupt());
    assert!(matches!(guest.call(ThreadId::MAIN, Op::Nop), Err(GuestError::Interrupted)));
    thread.join().expect("it only interrupts");
    assert!(guest.death().is_none());
    assert_eq!(guest.in_flight(), 1);
}

#[test]
fn requests_that_no_guest_could_serve_are_refused_before_they_are_sent() {
    let mut guest = tiny(Code::new().ready().spin()).launch().expect("it says that it is ready");
    assert_eq!(ThreadId::new(64), None);
    let past_the_last = guest.submit_in(Context::Thread(64), Op::Nop);
    assert!(matches!(past_the_last, Err(GuestError::BadRequest(RequestError::Thread(64)))));
    assert!(matches!(guest.next_response(), Err(GuestError::NothingInFlight)));
    assert!(guest.death().is_none());
}

fn image_fault(bytes: Vec<u8>) -> KernelFault {
    match Guest::builder().memory(8 << 20).kernel(KernelImage::from_bytes(bytes)).launch() {
        Err(LaunchError::Image(error)) => {
            assert!(error.to_string().starts_with("the kernel image in memory: "), "{error}");
            error.fault
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kernel_image_that_is_not_one_is_refused_with_the_rule() {
    assert!(matches!(image_fault(Vec::new()), KernelFault::NotElf(_)));
    assert!(matches!(image_fault(b"#!/bin/sh\n".repeat(100)), KernelFault::NotElf(_)));
    assert_eq!(image_fault(pvh_elf(&[0xf4], Note::None)), KernelFault::NoPvhNote);
    let whole = pvh_elf(&[0xf4; 64], Note::Pvh);
    let cut = image_fault(whole[..whole.len() - 32].to_vec());
    assert!(matches!(cut, KernelFault::NotElf(_) | KernelFault::Segment { .. }), "{cut}");
    let patched = |at: usize, value: u64| {
        let mut elf = whole.clone();
        elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
        elf
    };
    // p_paddr and p_memsz of the first program header.
    assert!(matches!(
        image_fault(patched(64 + 24, 0x1000)),
        KernelFault::TooLow { start: 0x1000, .. }
    ));
    assert!(matches!(image_fault(patched(64 + 24, u64::MAX - 8)), KernelFault::DoesNotFit { .. }));
    assert!(matches!(image_fault(patched(64 + 40, 1 << 40)), KernelFault::DoesNotFit { .. }));
    let missing = KernelImage::from_file("/nonexistent/kernel").expect_err("there is no such file");
    assert!(missing.to_string().contains("/nonexistent/kernel"));
}

/// A kernel that reports `count` dropped lines of its log.
fn drops_lines(code: Code, count: u32) -> Code {
    let mut fields = <LogRing as Described>::DESCRIPTION.fields.iter();
    let dropped = fields.find(|field| field.name == "dropped").expect("it counts them");
    let at = core::mem::offset_of!(ControlRegion, log) + dropped.offset;
    code.control_word(u32::try_from(at).expect("the region is small"), count)
}

/// The report of a run of a script without requests to the guest, with the log kept.
fn report_of(code: Code) -> RunReport {
    let script = parse(&Source::new("test.kmem", "let a = 1")).expect("the script is good");
    let builder = tiny(code);
    let setup =
        Setup { builder, seed: 0, console: Some(Box::new(std::io::sink())), pressure: None };
    let stop = Stop::after(SHORT);
    match run_script_then(&script, setup, &stop, &mut |_: &Step| {}, |_, _| ()) {
        Ok((session, ())) => session.report(Vec::new()),
        Err(unlaunched) => unlaunched.report(EnvironmentReport::asked(1, 8 << 20, 0)),
    }
}

#[test]
fn a_report_has_the_number_of_log_lines_that_the_kernel_dropped() {
    let ends = [
        (drops_lines(Code::new(), 3).ready().halt(), 0, 3),
        (drops_lines(Code::new(), 7).spin(), 5, 7),
        (Code::new().ready().halt(), 0, 0),
    ];
    for (code, status, dropped) in ends {
        let report = report_of(code);
        assert_eq!((report.status, report.dropped_log_lines), (status, dropped), "{report:?}");
        let json = serde_json::to_value(&report).expect("a report is JSON");
        assert_eq!(json["dropped_log_lines"], dropped);
    }
}
