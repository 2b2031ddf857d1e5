//! Translation lookaside buffers: dropping what is stale, on this CPU and on all others.
//!
//! Kernel mappings are global (PG_G), so a reload of CR3 does not drop them: a full flush toggles CR4.PGE.
//!
//! **Shootdown.** Who has taken mappings away writes the range into its own CPU's [`Shootdown`], sets its CPU's bit in the
//! `requests` of each CPU that may remember a translation, and waits until all have answered. A request covers a whole
//! range, so that a call costs each CPU one flush. Whoever waits for another CPU, for whatever reason, serves the requests of
//! others ([`poll`]): two CPUs that wait for each other both go on. Who takes mappings away itself serves them with its own
//! flush: two CPUs that do so at about the same time flush once each, not twice.
//!
//! An interrupt costs several times what a flush does. So it is sent only to a CPU that has not come to serve the
//! request by itself after [`PATIENCE`]: the wait is at most about twice what an interrupt at once would cost. Who has
//! interrupts deferred serves it when he allows them again, or when he waits for another CPU himself.
//!
//! **Idle CPUs.** A CPU that is about to halt says so ([`Shootdown::go_idle`]): it runs nothing but code of the image and
//! looks at nothing but the direct map, which never change, until it flushes ([`Shootdown::come_back`]). It is asked
//! for nothing meanwhile; that there was something to flush is only noted.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::field::Field;
use vmkern_abi::layout::TlbStats;

use super::percpu::PerCpu;
use super::{apic, cpus, instr, interrupt, nucleus, vectors};
use crate::memory;

/// CR4 as `entry.rs` set it: PAE, PGE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x6a0;
const PGE: u64 = 1 << 7;

/// Pages from which on a full flush is cheaper than single invalidations, with the body at CPL0.
const FULL_FLUSH_PAGES: u64 = 32;

/// Cycles that a CPU has to serve a request by itself before it is interrupted: a hundred microseconds and more, about what
/// an interrupt costs both sides where CPL0 is emulated, and longer than the way from one `kmem_free` to the next, flush
/// included.
const PATIENCE: u64 = 300_000;

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
        }
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
    if cpus::is_alone() {
        count(|stats| &stats.flushes, 1);
        return flush(start, end);
    }
    interrupt::defer();
    count(|stats| &stats.flushes, 1);
    let (mut asked, mut skipped) = (0, 0);
    let me = PerCpu::current();
    let own = me.shootdown();
    own.start.store(start.get(), Ordering::Relaxed);
    own.end.store(end.get(), Ordering::Relaxed);
    for cpu in cpus::others() {
        if cpu.shootdown().note_if_idle() {
            skipped += 1;
            continue;
        }
        asked += 1;
        own.unanswered.fetch_add(1, Ordering::Relaxed);
        cpu.shootdown().requests.fetch_or(1 << me.number(), Ordering::SeqCst);
    }
    count(|stats| &stats.shootdowns, u64::from(asked > 0));
    count(|stats| &stats.asked, asked);
    count(|stats| &stats.skipped, skipped);
    match own.requests.swap(0, Ordering::SeqCst) {
        0 => flush(start, end),
        requests => {
            flush_all();
            answer(requests);
        }
    }
    let (begun, mut spins, mut is_patient) = (instr::rdtsc(), 0, true);
    while own.unanswered.load(Ordering::Acquire) != 0 {
        spin(spins);
        spins += 1;
        if is_patient && instr::rdtsc() - begun > PATIENCE {
            is_patient = false;
            interrupt_who_has_not_served(me.number());
        }
    }
    interrupt::allow();
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
        serve();
        interrupt::allow();
    }
}

/// Does what other CPUs wait for. Interrupts are deferred.
pub fn serve() {
    let requests = PerCpu::current().shootdown().requests.swap(0, Ordering::SeqCst);
    match cpus::get(requests.trailing_zeros()).map(PerCpu::shootdown) {
        None => {}
        Some(only) if requests.is_power_of_two() => {
            let bound = |word: &AtomicU64| GuestVirt::new(word.load(Ordering::Relaxed));
            flush(bound(&only.start), bound(&only.end));
        }
        Some(_) => flush_all(),
    }
    answer(requests);
}

/// Tells the CPUs of `requests`, a bit each, that this one has flushed what they want flushed.
fn answer(mut requests: u64) {
    while requests != 0 {
        let number = requests.trailing_zeros();
        requests &= requests - 1;
        if let Some(cpu) = cpus::get(number) {
            count(|stats| &stats.answered, 1);
            cpu.shootdown().unanswered.fetch_sub(1, Ordering::Release);
        }
    }
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

/// Drops the translations of the pages of `[start, end)` on this CPU.
fn flush(start: GuestVirt, end: GuestVirt) {
    let pages = end.since(start) / PAGE_SIZE;
    match (PerCpu::current().body_is_user(), pages) {
        (_, 0) => {}
        // SAFETY: dropping translations is always allowed; the arguments are those of the call.
        (true, 1) => unsafe { nucleus::call(nucleus::Call::Invlpg, start.get(), 0) },
        (false, pages) if pages < FULL_FLUSH_PAGES => {
            for page in 0..pages {
                // SAFETY: the body runs at CPL0.
                unsafe { instr::invlpg(start.get() + page * PAGE_SIZE) };
            }
        }
        _ => flush_all(),
    }
}

/// Drops all translations on this CPU.
fn flush_all() {
    if PerCpu::current().body_is_user() {
        // SAFETY: dropping translations is always allowed; the arguments are those of the call.
        unsafe { nucleus::call(nucleus::Call::FlushAll, CR4 & !PGE, CR4) };
    } else {
        // SAFETY: the body runs at CPL0, and CR4 is as `entry.rs` left it.
        unsafe { instr::toggle_pge(CR4) };
    }
}
