//! The simulated machine: the memory system over a process's own memory.
//!
//! Physical memory is sparse, the page tables lie in it exactly as in the guest, and every access
//! goes through them and through a software TLB that never drops an entry by itself: a missing
//! invalidation shows as an access through a stale translation, which ends the test. A kernel panic
//! is a Rust panic with the same message. Kernel threads are threads of the process, of which
//! exactly one runs; time is virtual.

mod access;
mod baton;
#[cfg(test)]
mod elsewhere;
mod fail;
mod interrupts;
mod machine;
mod memory;
#[cfg(asan)]
mod shadow;
mod tables;
mod threads;
mod tlb;

#[cfg(any(test, feature = "histories"))]
pub(crate) mod check;
#[cfg(any(test, feature = "histories"))]
pub mod histories;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{Op, Outcome};
use vmkern_abi::fail::{FailSite, FailSpec};

pub use self::access::SimAccess;
use self::fail::Sites;
pub use self::machine::SimMachine;
pub use self::threads::Waiting;
use crate::vm::{BootMemory, PhysRange, Vm, Zeroed};

/// End of RAM below the hole for devices.
const HOLE_START: u64 = 3 << 30;
/// Start of RAM above the hole.
const HOLE_END: u64 = 4 << 30;

/// A simulated machine with a booted memory system.
#[derive(Debug)]
pub struct Sim {
    vm: Arc<Vm<SimMachine>>,
    /// It is driven from one thread at a time.
    _not_sync: PhantomData<Cell<()>>,
}

impl Sim {
    /// Boots a machine with `bytes` of zeroed RAM, a multiple of 4 KiB and at least 4 MiB.
    #[must_use]
    pub fn boot(bytes: u64, tunables: Tunables) -> Self {
        Self::boot_with(bytes, tunables, Zeroed::Yes)
    }

    /// Boots a machine as [`Sim::boot`] does; with [`Zeroed::No`] all memory holds garbage.
    #[must_use]
    pub fn boot_with(bytes: u64, tunables: Tunables, zeroed: Zeroed) -> Self {
        Self::boot_failing(bytes, tunables, zeroed, &[])
    }

    /// Boots a machine as [`Sim::boot_with`] does, with these sites armed before the first
    /// instruction of the memory system.
    #[must_use]
    pub fn boot_failing(
        bytes: u64,
        tunables: Tunables,
        zeroed: Zeroed,
        armed: &[(FailSite, FailSpec)],
    ) -> Self {
        let sites = Sites::default();
        armed.iter().for_each(|(site, spec)| sites.arm(*site, spec));
        let machine = SimMachine::new(&ram(bytes), zeroed, sites);
        let pml4 = tables::build(&machine);
        let ranges = managed(bytes);
        let boot = BootMemory {
            ranges: &ranges,
            pml4,
            virtual_avail: tables::virtual_avail(),
            zeroed,
            tunables,
        };
        let vm = Arc::new(Vm::boot(machine, &boot));
        vm.machine().set_vm(&vm);
        vm.configure_final();
        // As in a guest. The driver creates threads itself, while there is memory for them.
        let nothing_to_do =
            |vm: &Vm<SimMachine>, _| vm.panic(format_args!("thread taskq was woken"));
        assert!(vm.taskqueue_start(nothing_to_do).is_ok(), "no memory for thread taskq");
        let sim = Self { vm, _not_sync: PhantomData };
        sim.run();
        sim
    }

    /// The memory system.
    #[must_use]
    pub fn vm(&self) -> &Vm<SimMachine> {
        &self.vm
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &SimMachine {
        self.vm.machine()
    }

    /// Performs one operation, on the driver's own thread. If it sleeps, other threads run and time
    /// passes until it continues; the test fails when nothing could ever wake it.
    #[must_use]
    pub fn execute(&self, op: &Op) -> Outcome {
        match *op {
            Op::Settle => {
                self.run();
                Outcome::Ok
            }
            Op::Join { thread } => self.finish(thread.into()),
            _ => threads::perform(&self.vm, op),
        }
    }

    /// The 8 bytes at `va`, as the kernel sees them.
    #[must_use]
    pub fn read(&self, va: GuestVirt) -> u64 {
        match self.execute(&Op::Read { addr: va }) {
            Outcome::Value(value) => value,
            other => panic!("a read gave {other:?}"),
        }
    }

    /// Writes the 8 bytes at `va`.
    pub fn write(&self, va: GuestVirt, value: u64) {
        let _ = self.execute(&Op::Write { addr: va, value });
    }
}

/// The RAM behind the image, which the memory system manages.
fn managed(bytes: u64) -> Vec<PhysRange> {
    let mut ranges = ram(bytes);
    ranges[0].start = tables::IMAGE_END;
    ranges
}

/// RAM as a PC lays it out.
fn ram(bytes: u64) -> Vec<PhysRange> {
    assert!(bytes.is_multiple_of(4096) && bytes >= 4 << 20, "{bytes} bytes of simulated memory");
    let range = |start, end| PhysRange { start: GuestPhys::new(start), end: GuestPhys::new(end) };
    let mut ranges = vec![range(0, bytes.min(HOLE_START))];
    if bytes > HOLE_START {
        ranges.push(range(HOLE_END, HOLE_END + bytes - HOLE_START));
    }
    ranges
}
