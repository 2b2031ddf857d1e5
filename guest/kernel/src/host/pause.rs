//! Pauses for the host, by the protocol of [`vmkern_abi::control`].

use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use vmkern_abi::control::{PAUSE_PORT, Pausing, Stand};

use super::region;
use crate::arch::percpu::PerCpu;
use crate::arch::{cpus, instr, tlb};

/// CPUs that own no lock and wait to stop, a bit each.
static STANDING: AtomicU64 = AtomicU64::new(0);

/// Tells the host that this CPU owns no mutex and no spin lock, once all other CPUs are also ready
/// or halted: until then it answers those that wait for it. Returns when the host lets it continue.
/// Interrupts are deferred, once.
pub fn stand_still() {
    let me = PerCpu::current().number();
    STANDING.fetch_or(1 << me, Ordering::SeqCst);
    let is_still = |cpu: &PerCpu| {
        STANDING.load(Ordering::SeqCst) & 1 << cpu.number() != 0 || cpu.idle().is_armed()
    };
    let mut spins = 0;
    while region::get().is_some_and(|region| !region.pausing.is(Pausing::No))
        && !cpus::others().all(is_still)
    {
        tlb::spin(spins);
        spins += 1;
    }
    tell(Stand::Quiescent);
    STANDING.fetch_and(!(1 << me), Ordering::SeqCst);
}

/// Whether the host has waited long enough for CPUs that own no mutex, so a CPU that owns some must
/// stop as well.
pub fn is_urgent() -> bool {
    region::get().is_some_and(|region| region.pausing.is(Pausing::Urgent))
}

/// Tells the host that this CPU stops while it owns a mutex. Others may wait for that mutex, so
/// this CPU waits for no other. Returns when the host lets it continue. Interrupts are deferred.
pub fn stand_owning() {
    tell(Stand::Owning);
}

fn tell(how: Stand) {
    // All earlier writes are in memory, and no later ones.
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the device behind the port touches no memory. The host may read all of it, and
    // changes nothing.
    unsafe { instr::outb(PAUSE_PORT, how as u8) };
    compiler_fence(Ordering::SeqCst);
}
