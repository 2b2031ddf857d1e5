//! Translation lookaside buffers: dropping stale translations on all CPUs.
//! [`kmem::kern::shootdown`] is the protocol of requests and waits between CPUs; [`super::flush`]
//! flushes one CPU's own buffer. This module connects the two on this machine.

use kmem::kern::shootdown::{Cpus, Shootdown};
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::field::Field;
use vmkern_abi::layout::TlbStats;

use super::flush::{self, Stale};
use super::percpu::PerCpu;
use super::{apic, cpus, instr, interrupt, vectors};
use crate::memory;

/// The CPUs, seen by a CPU that will not be migrated: interrupts are deferred, or its idle thread
/// runs.
#[derive(Clone, Copy)]
struct Here(&'static PerCpu);

impl Here {
    #[inline]
    fn current() -> Self {
        Self(PerCpu::current())
    }

    #[inline]
    const fn own(self) -> &'static Shootdown {
        self.0.shootdown()
    }
}

impl Cpus for Here {
    type Stale = Stale;

    #[inline]
    fn number(&self) -> u32 {
        self.0.number()
    }

    #[inline]
    fn get(&self, number: u32) -> Option<&Shootdown> {
        cpus::get(number).map(PerCpu::shootdown)
    }

    #[inline]
    fn others(&self) -> impl Iterator<Item = (u32, &Shootdown)> {
        cpus::others().map(|cpu| (cpu.number(), cpu.shootdown()))
    }

    #[inline]
    fn nothing(&self) -> Stale {
        Stale::new()
    }

    #[inline]
    fn add(&self, stale: &mut Stale, start: GuestVirt, end: GuestVirt) {
        stale.add(start, end);
    }

    #[inline]
    fn flush(&self, stale: &Stale) {
        stale.flush();
    }

    #[inline]
    fn flush_all(&self) {
        flush::flush_all();
    }

    #[inline]
    fn cycles(&self) -> u64 {
        instr::rdtsc()
    }

    #[inline]
    fn relax(&self) {
        core::hint::spin_loop();
    }

    #[inline]
    fn spin(&self, spins: u64) {
        pass(spins);
    }

    fn interrupt(&self, number: u32) {
        apic::interrupt_cpu(number, vectors::SHOOTDOWN_VECTOR);
    }

    #[inline]
    fn count(&self, which: fn(&TlbStats) -> &Field<u64>, number: u64) {
        count(which, number);
    }
}

/// Drops the translations of the pages of `[start, end)` on all CPUs. On return no CPU uses an old
/// translation, or will use one.
pub fn invalidate_range(start: GuestVirt, end: GuestVirt) {
    if cpus::is_alone() {
        count(|stats| &stats.flushes, 1);
        let mut stale = Stale::new();
        stale.add(start, end);
        return stale.flush();
    }
    interrupt::defer();
    count(|stats| &stats.flushes, 1);
    let here = Here::current();
    here.own().invalidate(&here, start, end);
    interrupt::allow();
}

/// Serves other CPUs' requests, if there are any. For loops that wait for something.
#[inline]
pub fn poll() {
    if Here::current().own().is_asked() {
        interrupt::defer();
        serve_others();
        interrupt::allow();
    }
}

/// Serves the requests of the CPUs that wait for this one. Interrupts are deferred.
pub fn serve_others() {
    let here = Here::current();
    here.own().serve_others(&here);
}

/// Announces that the CPU is about to halt. Its idle thread calls this.
pub fn go_idle() {
    Here::current().own().go_idle();
}

/// Ends the state of [`go_idle`], directly after a halt, or before one. Its idle thread or an
/// interrupt calls this.
#[inline]
pub fn come_back() {
    let here = Here::current();
    here.own().come_back(&here);
}

/// Spins of a wait before the host is asked to run another thread: some tens of microseconds.
const SPINS_BEFORE_YIELD: u64 = 2048;

/// Spends a moment of a wait for another CPU; `spins` is the number of such moments before it. With
/// more CPUs than the host has cores the other CPU may not be running at all, so from time to time
/// this asks the host to run it.
///
/// This also serves other CPUs' requests, because the owner of the lock that this CPU waits for may
/// itself wait for this CPU.
pub fn spin(spins: u64) {
    poll();
    pass(spins);
}

/// [`spin`] for a caller that serves requests itself.
#[inline]
fn pass(spins: u64) {
    if (spins + 1).is_multiple_of(SPINS_BEFORE_YIELD) {
        // SAFETY: the device behind the port touches no memory.
        unsafe { instr::outb(vmkern_abi::control::YIELD_PORT, 0) };
    } else {
        core::hint::spin_loop();
    }
}

/// Adds to one of this CPU's counts, once there is memory for them. If there are several CPUs,
/// interrupts are deferred.
#[inline]
fn count(which: fn(&TlbStats) -> &Field<u64>, number: u64) {
    if let (Some(vm), Some(pcpu)) = (memory::vm(), PerCpu::pcpu().non_null()) {
        which(&vm.get(pcpu).tlb).update_locked(|n| n + number);
    }
}
