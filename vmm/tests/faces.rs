//! What a program that depends on the library can rely on: types that cross threads, errors that
//! read in a failed test as they do on a terminal, and addresses in hexadecimal.

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;

use vmkern::bench::BenchError;
use vmkern::check::{Finding, Report};
use vmkern::doctor::DoctorReport;
use vmkern::dump::{Dump, OpenError, OpenFault};
use vmkern::guest::{
    ConfigError, ContractError, CpuFault, Environment, InterruptHandle, KernelError, KernelImage,
    KvmError, NoKvm, Pause, RequestError, SaveError,
};
use vmkern::inspect::{InspectError, Inspection, Registers, Symbols, What, WhatError};
use vmkern::prelude::*;
use vmkern::script::{GuestTarget, Script, Session, Stop, TargetError, Unlaunched};

const fn crosses_threads<T: Send + Sync>() {}

/// An error that can go anywhere: into a box, out of a thread, through `?`.
const fn is_error<T: std::error::Error + Send + Sync + 'static>() {}

const _: () = {
    crosses_threads::<Guest>();
    crosses_threads::<GuestBuilder>();
    crosses_threads::<ThreadId>();
    crosses_threads::<InterruptHandle>();
    crosses_threads::<Pause<'_>>();
    crosses_threads::<Environment>();
    crosses_threads::<KernelImage>();
    crosses_threads::<Op>();
    crosses_threads::<Response>();
    crosses_threads::<Crash>();

    crosses_threads::<Inspection>();
    crosses_threads::<Symbols>();
    crosses_threads::<What>();
    crosses_threads::<Dump>();
    crosses_threads::<Report>();
    crosses_threads::<Finding>();
    crosses_threads::<DoctorReport>();

    crosses_threads::<Script>();
    crosses_threads::<Stop>();
    crosses_threads::<Session>();
    crosses_threads::<GuestTarget>();

    is_error::<LaunchError>();
    is_error::<GuestError>();
    is_error::<ConfigError>();
    is_error::<RequestError>();
    is_error::<ContractError>();
    is_error::<CpuFault>();
    is_error::<KernelError>();
    is_error::<KvmError>();
    is_error::<NoKvm>();
    is_error::<SaveError>();
    is_error::<InspectError>();
    is_error::<WhatError>();
    is_error::<OpenError>();
    is_error::<OpenFault>();
    is_error::<BenchError>();
    is_error::<TargetError>();
    is_error::<Unlaunched<()>>();
};

/// What the command prints of an error.
fn printed(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    let output = command.args(arguments).output().expect("the command runs");
    let text = String::from_utf8(output.stderr).expect("it is UTF-8");
    text.trim_end().strip_prefix("error: ").expect("it is an error").to_owned()
}

/// What a test prints that ends with `result` and `?`, behind `Error: `.
fn failed<T: Debug>(result: Result<T, impl Debug>) -> String {
    format!("{:?}", result.expect_err("it fails"))
}

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/scripts/smallest.kmem")
        .display()
        .to_string()
}

#[test]
fn a_failed_test_prints_what_the_command_prints() {
    let script = script();
    for (option, value, asked) in [
        ("--memory", "5", Guest::builder().memory(5)),
        ("--memory", "16777217", Guest::builder().memory((16 << 20) + 1)),
        ("--vcpus", "65", Guest::builder().vcpus(65)),
    ] {
        assert_eq!(printed(&["run", option, value, &script]), failed(asked.launch()));
    }
    let missing = "no-such-folder/kernel.elf";
    assert_eq!(
        printed(&["run", "--kernel", missing, &script]),
        failed(KernelImage::from_file(missing))
    );
    let missing = "no-such-folder/guest.dump";
    assert_eq!(printed(&["check", missing]), failed(Dump::open(missing)));
}

#[test]
fn a_failed_test_prints_how_the_guest_died_in_the_commands_words() {
    let mut guest = Guest::builder().launch().unwrap_or_else(|error| panic!("{error}"));
    let read = Op::Read { addr: GuestVirt::new(8) };
    let error = guest.call(ThreadId::MAIN, read).expect_err("nothing is mapped there");
    let GuestError::Crashed(crash) = error.clone() else { panic!("{error}") };
    assert_eq!(format!("{error:?}"), crash.to_string());
    let error = LaunchError::Guest(error);
    assert_eq!(format!("{error:?}"), format!("the guest did not become ready: {crash}"));
}

#[test]
fn addresses_are_in_hexadecimal_wherever_they_are_shown() {
    let mut guest = Guest::builder().launch().unwrap_or_else(|error| panic!("{error}"));
    let alloc = Op::KmemAlloc { map: MapId::KERNEL, size: 4096 };
    let outcome =
        guest.call(ThreadId::MAIN, alloc).unwrap_or_else(|error| panic!("{error}")).outcome;
    let Outcome::Value(addr) = outcome else { panic!("no memory: {outcome:?}") };
    assert_eq!(format!("{outcome:?}"), format!("Value({addr:#x})"));
    assert_eq!(format!("{:?}", GuestPhys::new(0x1000)), "GuestPhys(0x1000)");
    assert_eq!(format!("{:?}", GuestVirt::new(addr)), format!("GuestVirt({addr:#x})"));
    let map = MapId(addr);
    assert_eq!(
        format!("{:?}", Op::KmemAlloc { map, size: 4096 }),
        format!("KmemAlloc {{ map: MapId({addr:#x}), size: 4096 }}")
    );
    let registers = Registers { cr3: 0x1234_5000, ..Registers::default() };
    assert!(format!("{registers:?}").contains("cr3 12345000"), "{registers:?}");
    let entries = guest.map_entries(MapId::KERNEL).expect("the map is sound");
    assert!(entries.iter().any(|entry| format!("{entry:?}").contains(&format!("{addr:#x}"))));
}
