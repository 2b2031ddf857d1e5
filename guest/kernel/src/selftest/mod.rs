//! The self-test: checks by the kernel alone of the properties on which everything else relies.
//!
//! It runs under any PVH loader, without rings, reports on the serial line, and ends by the exit
//! port. A check that fails reports why, and the others still run.

pub mod balloon;
mod faults;
mod kmem;
mod paging;
mod threads;
mod traps;

use core::fmt;

use vmkern_abi::control::ExitCode;

use crate::arch::clock::Clock;
use crate::arch::percpu::PerCpu;
use crate::host::exit::leave;
use crate::log;
use crate::memory::KernelVm;

/// The input of a check.
#[derive(Clone, Copy)]
struct Bench<'a> {
    vm: &'a KernelVm,
    clock: &'a Clock,
}

/// Why a check failed.
struct Failure {
    what: &'static str,
    got: u64,
    want: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: got {:#x}, want {:#x}", self.what, self.got, self.want)
    }
}

type Verdict = Result<(), Failure>;

/// Fails with `what` unless both numbers are the same.
fn same(what: &'static str, got: u64, want: u64) -> Verdict {
    if got == want { Ok(()) } else { Err(Failure { what, got, want }) }
}

/// A check and the claim that it proves.
type Check = (&'static str, fn(&Bench<'_>) -> Verdict);

/// The checks for any number of CPUs.
const ON_ALL_CPUS: &[Check] = &[
    ("a page of a pageable range comes zeroed, at the first touch", faults::demand_zero),
    ("a fault on a page that is there finds that page", faults::soft_fault),
    ("a missing translation of wired memory is entered again by a page fault", kmem::refault),
    ("a missing page of wired memory is replaced, and not wired", faults::wired_page_missing),
    ("a fault on a page that is worked on waits in vmpfw", faults::collided_fault_waits),
    ("threads that fault on one page get one page", faults::collided_faults_get_one_page),
    ("nothing is mapped writable and executable", paging::write_xor_execute),
    ("U is set everywhere for CPL3 and nowhere for CPL0", paging::user_bit_follows_privilege),
];

/// The checks that count on being alone: on what one CPU does next, and on exact counts of pages.
const ON_ONE_CPU: &[Check] = &[
    ("a timer interrupt ends a halt", traps::timer_ends_a_halt),
    ("masked interrupts wait for the guard to go", traps::masking_defers),
    (
        "masked interrupts take no trap frame, however many they are",
        traps::masked_interrupts_take_no_frame,
    ),
    ("interrupts keep every SSE register and the red zone", traps::interrupts_keep_registers),
    (
        "a trap between any two instructions of a handler's way out loses nothing",
        traps::each_way_out_can_be_interrupted,
    ),
    ("virtual or real, sleeping moves the clock", traps::sleeping_moves_the_clock),
    ("two threads that never yield share the CPU", threads::endless_threads_share_the_cpu),
    (
        "text is read-only, data is not executable, guard pages are not mapped",
        paging::image_protection,
    ),
    ("kmem_malloc returns zeroed memory that keeps what is written", kmem::malloc_fill_verify_free),
    (
        "kmem_alloc, kmem_alloc_nofault, pmap_qenter and pmap_qremove work together",
        kmem::nofault_and_qenter,
    ),
    ("the lowest hole is taken first", kmem::first_fit),
    ("a thousand rounds leave every counter as it was", kmem::counters_return),
];

/// Runs the checks for this number of CPUs and leaves.
pub fn run(vm: &KernelVm, clock: &Clock) -> ! {
    let ncpu = vm.cnt().ncpu.get();
    log!("vmkern self-test at CPL{}, {ncpu} CPUs", PerCpu::current().cpl());
    let bench = Bench { vm, clock };
    let alone = if ncpu == 1 { ON_ONE_CPU } else { &[] };
    let (mut passed, mut failed) = (0, 0);
    for (claim, check) in alone.iter().chain(ON_ALL_CPUS) {
        match check(&bench) {
            Ok(()) => {
                passed += 1;
                log!("ok      {claim}");
            }
            Err(failure) => {
                failed += 1;
                log!("FAILED  {claim}: {failure}");
            }
        }
    }
    log!("{passed} passed, {failed} failed");
    leave(if failed == 0 { ExitCode::Success } else { ExitCode::Failure })
}
