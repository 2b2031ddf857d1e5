//! `selftest=balloon`: the kernel fills and verifies memory while a balloon grows and shrinks.
//!
//! Somebody else moves the target: a script that speaks to QEMU, or a test. The kernel ends when
//! the balloon has held [`GROWN`] pages, was told so, and is empty again.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{ExitCode, MallocFlags, MapId, Op, Outcome};

use super::kmem::{free, malloc};
use crate::access::KernelAccess;
use crate::arch::instr;
use crate::balloon;
use crate::host::exit::leave;
use crate::log;
use crate::memory::KernelVm;

/// Pages that the balloon must have held: 48 MiB.
const GROWN: u64 = 12_288;
/// Bytes that stay allocated and are verified at the end: the balloon must not touch them.
const KEPT: u64 = 4 << 20;
/// Bytes that are allocated and freed again and again.
const ROUND: u64 = 64 * PAGE_SIZE;
/// Cycles between two rounds without another balloon.
const PAUSE_CYCLES: u64 = 1_000_000;

/// What went wrong.
struct Wrong(&'static str);

fn run_op(vm: &KernelVm, op: &Op) -> Outcome {
    match kmem::ops::execute(vm, &KernelAccess, op) {
        kmem::ops::Executed::Done(outcome) => outcome,
        _ => Outcome::Ok,
    }
}

fn ok(vm: &KernelVm, what: &'static str, op: &Op) -> Result<(), Wrong> {
    if run_op(vm, op) == Outcome::Ok { Ok(()) } else { Err(Wrong(what)) }
}

/// Fills and verifies a range that a shortage may refuse.
fn round(vm: &KernelVm, seed: u64) -> Result<(), Wrong> {
    let Outcome::Value(addr) = run_op(vm, &malloc(ROUND)) else { return Ok(()) };
    let addr = GuestVirt::new(addr);
    ok(vm, "fresh memory is zero", &Op::VerifyZero { addr, size: ROUND })?;
    ok(vm, "fill", &Op::Fill { addr, size: ROUND, seed })?;
    ok(vm, "what was written is read", &Op::Verify { addr, size: ROUND, seed })?;
    ok(vm, "kmem_free", &free(addr, ROUND))
}

/// Works until the balloon has grown and is empty again.
fn work(vm: &KernelVm) -> Result<u64, Wrong> {
    let kept = Op::KmemMalloc { map: MapId::KMEM, size: KEPT, flags: MallocFlags::NOWAIT };
    let Outcome::Value(addr) = run_op(vm, &kept) else { return Err(Wrong("an allocation")) };
    let addr = GuestVirt::new(addr);
    ok(vm, "fill", &Op::Fill { addr, size: KEPT, seed: 1 })?;
    let (mut rounds, mut has_grown) = (0, false);
    loop {
        round(vm, rounds)?;
        rounds += 1;
        match balloon::told() {
            Some(pages) if pages >= GROWN && !has_grown => {
                log!("balloon: {pages} pages after {rounds} rounds");
                has_grown = true;
            }
            Some(0) if has_grown => break,
            _ => {}
        }
        let start = instr::rdtsc();
        while instr::rdtsc() - start < PAUSE_CYCLES {
            core::hint::spin_loop();
        }
        vm.sched_yield();
    }
    ok(vm, "what was kept is there", &Op::Verify { addr, size: KEPT, seed: 1 })?;
    Ok(rounds)
}

/// Runs the test and leaves.
pub fn run(vm: &KernelVm) -> ! {
    log!("vmkern balloon test");
    match work(vm) {
        Ok(rounds) => {
            log!("ok      the balloon was filled and emptied in {rounds} rounds");
            leave(ExitCode::Success)
        }
        Err(Wrong(what)) => {
            log!("FAILED  {what}");
            leave(ExitCode::Failure)
        }
    }
}
