//! The guest kernel of vmkern.
//!
//! This file reads as the boot sequence: `arch::x86_64::entry` jumps to [`body`].

#![no_std]
#![no_main]

mod access;
#[path = "arch/x86_64/mod.rs"]
mod arch;
mod balloon;
mod crash_test;
mod direct_map;
mod fault;
mod fault_test;
mod host;
mod masked_cell;
mod memory;
mod once;
mod selftest;
mod service;
mod threads;
mod virtio;

use core::panic::PanicInfo;

use host::crash::{Cause, die};
use host::pvh::BootData;
use host::region;
use vmkern_abi::addr::GuestPhys;
use vmkern_abi::boot::{BootArgs, Privilege};

/// The kernel body begins here, at the privilege that the entry code chose.
///
/// `start_info` is the physical address of `hvm_start_info`, `cpl0_cycles` the cycles that a few
/// CPL0 instructions took, `entry_tsc` the TSC at entry.
extern "C" fn body(start_info: GuestPhys, cpl0_cycles: u64, entry_tsc: u64) -> ! {
    // 1. The loader's data.
    let boot = BootData::read(start_info).unwrap_or_else(|why| panic!("boot: {why}"));
    let args = BootArgs::parse(boot.command_line).unwrap_or_else(|word| panic!("boot: {word}"));
    // 2. The region that the host shares, if there is one, and the clock.
    let region = args.control.map(|at| {
        let region = region::attach(at)
            .unwrap_or_else(|why| panic!("boot: control region at {at}: {why:?}"));
        region.entry_tsc.set(entry_tsc);
        region.cpl0_cycles.set(cpl0_cycles);
        region
    });
    check_privilege(args.privilege);
    arch::apic::init();
    let clock =
        threads::set_clock(arch::clock::Clock::start(&args, region.map(|region| &region.clock)));
    if let Some(kind) = args.crash {
        crash_test::crash(kind);
    }
    // 3. Memory and threads.
    let vm = memory::boot(&boot, &args);
    // From here on a deferred interrupt, such as the log's, may end in another thread.
    vm.configure_final();
    let cpl = arch::percpu::PerCpu::current().cpl();
    log!(
        "vmkern: body at CPL{cpl}, {} pages of memory, command line: {}",
        vm.cnt().v_page_count.get(),
        boot.command_line
    );
    // 4. The other CPUs, and then the work.
    if let Some(count @ 2..) = args.vcpus {
        threads::start_cpus(vm, count);
    }
    balloon::start(vm, &args.devices);
    if let Some(fault) = args.fault {
        fault_test::fault(vm, fault);
    }
    match region {
        _ if args.selftest => selftest::run(vm, clock),
        _ if args.balloon_test => selftest::balloon::run(vm),
        Some(region) => service::serve(vm, clock, region),
        None => {
            panic!("boot: nothing to do: neither `selftest` nor `control=` on the command line")
        }
    }
}

/// A loader that enters directly passes the privilege of the command line, and the PVH entry reads
/// only its first word; the whole line must agree with that.
fn check_privilege(asked: Privilege) {
    let is_user = arch::percpu::PerCpu::current().body_is_user();
    match (asked, is_user) {
        (Privilege::Auto, _) | (Privilege::Supervisor, false) | (Privilege::User, true) => {}
        _ => panic!("boot: privilege={} must be the first word of the command line", asked.name()),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(&Cause::Panic(format_args!("{}", info.message())))
}
