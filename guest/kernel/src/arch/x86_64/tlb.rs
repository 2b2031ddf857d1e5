//! Translation lookaside buffers: dropping what is stale on all CPUs. What one CPU does to its own is in [`super::flush`].
//!
//! **Shootdown.** Who has taken mappings away writes the range into its own CPU's [`Shootdown`], sets its CPU's bit in the
//! `requests` of each CPU that may remember a translation, and waits until all have answered. A request covers a whole
//! range, so that a call costs each CPU one flush. Whoever waits for another CPU, for whatever reason, serves the requests of
//! others ([`poll`]): two CPUs that wait for each other both go on. Who takes mappings away itself serves them with its own
//! flush: two CPUs that do so at about the same time flush once each, not twice.
//!
//! **Meeting.** A flush serves what was asked before it began, so that of two CPUs that free at nearly the same time the
//! earlier one would flush again, for the later one, at once. A CPU therefore waits for its *partners*, those that asked it
//! during its last shootdown, before it flushes; but not for longer than a part of what a flush costs it. CPUs that free
//! again and again leave a shootdown together, each with the other's answer, and so meet at the next one. One that does
//! not come is no partner any more.
//!
//! An interrupt costs several times what a flush does. So it is sent only to a CPU that has not come to serve the
//! request by itself after [`PATIENCE`]: the wait is at most about twice what an interrupt at once would cost. Who has
//! interrupts deferred serves it when he allows them again, or when he waits for another CPU himself.
//!
//! **Idle CPUs.** A CPU that is about to halt says so ([`Shootdown::go_idle`]): it runs nothing but code of the image and
//! looks at nothing but the direct map, which never change, until it flushes ([`Shootdown::come_back`]). It is asked
//! for nothing meanwhile; that there was something to flush is only noted.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::field::Field;
use vmkern_abi::layout::TlbStats;

use super::flush::{Stale, flush_all};
use super::percpu::PerCpu;
use super::{apic, cpus, instr, interrupt, vectors};
use crate::memory;

/// Cycles that a CPU has to serve a request by itself before it is interrupted: a hundred microseconds and more, about what
/// an interrupt costs both sides where CPL0 is emulated, and longer than the way from one `kmem_free` to the next, flush
/// included.
const PATIENCE: u64 = 300_000;

/// The part of a flush's cost for which a CPU waits for others that may want one, too.
const LINGER: u64 = 4;

/// Values of [`Shootdown::state`].
const ACTIVE: u32 = 0;
const IDLE: u32 = 1;
const IDLE_STALE: u32 = 2;

/// Offset of [`Shootdown::state`], for [`PerCpu::wake`].
pub const STATE: usize = core::mem::offset_of!(Shootdown, state);

/// A CPU's part in shootdowns.
#[derive(Debug)]
#[repr(C)]
pub struct Shootdown {
    /// CPUs that wait for this one, a bit each.
    requests: AtomicU64,
    /// What this CPU wants flushed, `[start, end)`. Written while nobody is asked.
    start: AtomicU64,
    end: AtomicU64,
    /// CPUs that have not answered this one yet.
    unanswered: AtomicU32,
    /// Whether the CPU can remember translations at all.
    state: AtomicU32,
    /// CPUs that asked this one about when it last flushed, a bit each. Only the CPU itself uses it, and `flush_cycles`.
    partners: AtomicU64,
    /// Cycles that a flush costs this CPU: a mean that forgets.
    flush_cycles: AtomicU64,
}

impl Shootdown {
    /// A CPU that runs.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            unanswered: AtomicU32::new(0),
            state: AtomicU32::new(ACTIVE),
            partners: AtomicU64::new(0),
            flush_cycles: AtomicU64::new(0),
        }
    }

    /// Waits until those of the partners that are in `asked` have asked in turn, for a fraction of what the second flush would
    /// cost that this one saves then.
    fn await_partners(&self, asked: u64) {
        let partners = self.partners.load(Ordering::Relaxed) & asked;
        let (begun, limit) = (instr::rdtsc(), self.flush_cycles.load(Ordering::Relaxed) / LINGER);
        while partners & !self.requests.load(Ordering::Relaxed) != 0 && instr::rdtsc() - begun < limit {
            core::hint::spin_loop();
        }
    }

    /// Counts a flush of so many cycles.
    fn note_cost(&self, cycles: u64) {
        let mean = self.flush_cycles.load(Ordering::Relaxed);
        self.flush_cycles.store((7 * mean + cycles.min(PATIENCE)) / 8, Ordering::Relaxed);
    }

    /// The CPU is about to halt.
    pub fn go_idle(&self) {
        self.state.store(IDLE, Ordering::SeqCst);
    }

    /// The CPU goes on: drops everything if any mapping was taken away meanwhile. Runs on the CPU itself, first thing after a
    /// halt.
    #[inline]
    pub fn come_back(&self) {
        if self.state.load(Ordering::Relaxed) != ACTIVE && self.state.swap(ACTIVE, Ordering::SeqCst) == IDLE_STALE {
            flush_all();
            count(|stats| &stats.caught_up, 1);
        }
    }

    /// Notes that there is something to flush, if the CPU is idle. Whether it is.
    fn note_if_idle(&self) -> bool {
        let note = |state| (state != ACTIVE).then_some(IDLE_STALE);
        self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, note).is_ok()
    }
}

/// Drops the translations of the pages of `[start, end)` on all CPUs. On return none uses an old one, or will.
pub fn invalidate_range(start: GuestVirt, end: GuestVirt) {
    let mut stale = Stale::new();
    stale.add(start, end);
    if cpus::is_alone() {
        count(|stats| &stats.flushes, 1);
        return stale.flush();
    }
    interrupt::defer();
    count(|stats| &stats.flushes, 1);
    let me = PerCpu::current();
    let own = me.shootdown();
    own.start.store(start.get(), Ordering::Relaxed);
    own.end.store(end.get(), Ordering::Relaxed);
    let asked = ask_others(me);
    own.await_partners(asked);
    let begun = instr::rdtsc();
    let served = serve(stale);
    count(|stats| &stats.merged, u64::from(served.count_ones()));
    let flushed = instr::rdtsc();
    own.note_cost(flushed - begun);
    let late = await_answers(me, flushed);
    own.partners.store(served | late, Ordering::Relaxed);
    interrupt::allow();
}

/// Asks all CPUs that can remember translations for what `me` wants flushed: gives which, a bit each. Interrupts are deferred.
fn ask_others(me: &PerCpu) -> u64 {
    let (mut asked, mut skipped) = (0u64, 0);
    for cpu in cpus::others() {
        if cpu.shootdown().note_if_idle() {
            skipped += 1;
            continue;
        }
        asked |= 1 << cpu.number();
        me.shootdown().unanswered.fetch_add(1, Ordering::Relaxed);
        cpu.shootdown().requests.fetch_or(1 << me.number(), Ordering::SeqCst);
    }
    count(|stats| &stats.shootdowns, u64::from(asked != 0));
    count(|stats| &stats.asked, asked.count_ones().into());
    count(|stats| &stats.skipped, skipped);
    asked
}

/// Waits until all CPUs that `me` has asked have answered, and serves others meanwhile: gives which, a bit each. From `begun`
/// on, on the TSC, they have [`PATIENCE`].
fn await_answers(me: &PerCpu, begun: u64) -> u64 {
    let own = me.shootdown();
    let (mut served, mut spins, mut is_patient) = (0, 0, true);
    while own.unanswered.load(Ordering::Acquire) != 0 {
        served |= own.requests.load(Ordering::Relaxed);
        spin(spins);
        spins += 1;
        if is_patient && instr::rdtsc() - begun > PATIENCE {
            is_patient = false;
            interrupt_who_has_not_served(me.number());
        }
    }
    served
}

/// Interrupts the CPUs that have a request of CPU `number`.
fn interrupt_who_has_not_served(number: u32) {
    let mut sent = 0;
    for cpu in cpus::others().filter(|cpu| cpu.shootdown().requests.load(Ordering::Relaxed) >> number & 1 != 0) {
        apic::interrupt_cpu(cpu.number(), vectors::SHOOTDOWN_VECTOR);
        sent += 1;
    }
    count(|stats| &stats.interrupts, sent);
}

/// Serves other CPUs' requests, if there are any. For loops that wait for something.
#[inline]
pub fn poll() {
    if PerCpu::current().shootdown().requests.load(Ordering::Relaxed) != 0 {
        interrupt::defer();
        serve_others();
        interrupt::allow();
    }
}

/// Does what other CPUs wait for. Interrupts are deferred.
pub fn serve_others() {
    let _ = serve(Stale::new());
}

/// Flushes `stale` and what the CPUs want flushed that wait for this one. Answers them, and gives which they are, a bit each.
/// Interrupts are deferred.
fn serve(mut stale: Stale) -> u64 {
    let requests = PerCpu::current().shootdown().requests.swap(0, Ordering::SeqCst);
    for cpu in members(requests) {
        let bound = |word: &AtomicU64| GuestVirt::new(word.load(Ordering::Relaxed));
        stale.add(bound(&cpu.shootdown().start), bound(&cpu.shootdown().end));
    }
    stale.flush();
    for cpu in members(requests) {
        count(|stats| &stats.answered, 1);
        cpu.shootdown().unanswered.fetch_sub(1, Ordering::Release);
    }
    requests
}

/// The CPUs of a set, a bit each.
fn members(set: u64) -> impl Iterator<Item = &'static PerCpu> {
    let rest = |set: &u64| Some(set & (set - 1)).filter(|&set| set != 0);
    core::iter::successors(Some(set).filter(|&set| set != 0), rest).filter_map(|set| cpus::get(set.trailing_zeros()))
}

/// Spins of a wait before the host is asked to run somebody else: some tens of microseconds.
const SPINS_BEFORE_YIELD: u64 = 2048;

/// Spends a moment of a wait for another CPU; `spins` is how many there were before. With more CPUs than the host has cores
/// the other one may not be running at all: now and then the host is asked to let it.
///
/// What others wait for is served here, too: who owns the lock that this CPU waits for may itself wait for this CPU.
pub fn spin(spins: u64) {
    poll();
    if (spins + 1).is_multiple_of(SPINS_BEFORE_YIELD) {
        // SAFETY: the device behind the port touches no memory.
        unsafe { instr::outb(vmkern_abi::control::YIELD_PORT, 0) };
    } else {
        core::hint::spin_loop();
    }
}

/// Adds to one of this CPU's counts, once there is memory for them. On a CPU of several, interrupts are deferred.
fn count(which: fn(&TlbStats) -> &Field<u64>, number: u64) {
    if let (Some(vm), Some(pcpu)) = (memory::vm(), PerCpu::pcpu().non_null()) {
        which(&vm.get(pcpu).tlb).update(|n| n + number);
    }
}
