//! The simulated machine: the memory system over a process's own memory.
//!
//! Physical memory is sparse, the page tables lie in it exactly as in the guest, and every access goes through them
//! and through a software TLB that never forgets by itself: a missing invalidation shows as an access through a stale
//! translation, which ends the test. A kernel panic is a Rust panic with the same message.

mod access;
mod machine;
mod memory;
mod tables;
mod tlb;

#[cfg(test)]
mod check;
#[cfg(test)]
mod tests;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{Op, Outcome};

pub use self::access::SimAccess;
pub use self::machine::SimMachine;
use crate::ops::{self, Executed};
use crate::vm::{BootMemory, PhysRange, Vm, Zeroed};

/// End of RAM below the hole for devices.
const HOLE_START: u64 = 3 << 30;
/// Start of RAM above the hole.
const HOLE_END: u64 = 4 << 30;

/// A booted memory system over simulated memory.
#[derive(Debug)]
pub struct Sim {
    vm: Vm<SimMachine>,
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
        let machine = SimMachine::new(&ram(bytes), zeroed);
        let pml4 = tables::build(&machine);
        let mut ranges = ram(bytes);
        ranges[0].start = tables::IMAGE_END;
        let boot = BootMemory { ranges: &ranges, pml4, virtual_avail: tables::virtual_avail(), zeroed, tunables };
        Self { vm: Vm::boot(machine, &boot) }
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

    /// Performs one operation as the guest would. Time passes at once.
    #[must_use]
    pub fn execute(&self, op: &Op) -> Outcome {
        match ops::execute(&self.vm, &SimAccess::new(&self.vm), op) {
            Executed::Done(outcome) => outcome,
            Executed::Sleep { .. } | Executed::Settle | Executed::Join { .. } => Outcome::Ok,
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
