//! TLB shootdown: making all CPUs flush translations (`smp_tlb_shootdown`), as a protocol between
//! the CPUs' words. The machine defines what a flush is, how a CPU is interrupted, and how time
//! passes ([`Cpus`]).
//!
//! **Shootdown.** A CPU that has removed mappings writes the range into its own [`Shootdown`], sets
//! its bit in the `requests` of each CPU that may cache a translation, and waits until all have
//! answered. A request covers a whole range, so a call costs each CPU one flush. A CPU that waits
//! for another, for whatever reason, serves the requests of others ([`Shootdown::poll`]), so two
//! CPUs that wait for each other both proceed. A CPU that removes mappings itself serves them with
//! its own flush: two CPUs that do so at about the same time flush once each, not twice. An answer
//! comes after the flush, and the flush after the request was taken.
//!
//! **Meeting.** A flush serves only requests that were made before it began. So when two CPUs free
//! at nearly the same time, the earlier one would at once flush again for the later one. A CPU
//! therefore waits before its flush for its *partners*, the CPUs that asked it during its last
//! shootdown, but for no longer than a fraction of the cost of a flush. CPUs that free repeatedly
//! leave a shootdown together, each with the other's answer, and so meet at the next one. A CPU
//! that does not come is no longer a partner.
//!
//! An interrupt costs several times as much as a flush. So it is sent only to a CPU that has not
//! served the request by itself after [`PATIENCE`]: the wait is at most about twice as long as with
//! an immediate interrupt. A CPU with interrupts deferred serves the request when it allows them
//! again, or when it waits for another CPU.
//!
//! **Idle CPUs.** A CPU that is about to halt announces it ([`Shootdown::go_idle`]). Until it
//! flushes ([`Shootdown::come_back`]) it runs only code of the kernel image and reads only the
//! direct map, whose mappings never change. In that time no requests are sent to it; it is only
//! recorded that there was something to flush.
//!
//! All of this runs with interrupts deferred, except [`Shootdown::go_idle`] and
//! [`Shootdown::come_back`], during which nothing else runs on the calling CPU.

use core::mem::offset_of;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::atomic::{AtomicU32, AtomicU64, Ordering};
use vmkern_abi::field::Field;
use vmkern_abi::layout::TlbStats;

/// Cycles within which a CPU should serve a request by itself before it is interrupted: a hundred
/// microseconds and more, about the cost of an interrupt for both sides where CPL0 is emulated, and
/// longer than the time from one `kmem_free` to the next, including the flush.
pub const PATIENCE: u64 = 300_000;

/// The fraction of a flush's cost for which a CPU waits for others that may want one too.
const LINGER: u64 = 4;

/// Values of [`Shootdown::state`].
const ACTIVE: u32 = 0;
const IDLE: u32 = 1;
const IDLE_STALE: u32 = 2;

/// The CPUs, as seen by the calling CPU.
pub trait Cpus {
    /// The translations that one flush drops.
    type Stale;

    /// The number of the calling CPU, below 64.
    fn number(&self) -> u32;

    /// The words of CPU `number`, if it runs.
    fn get(&self, number: u32) -> Option<&Shootdown>;

    /// All CPUs that run, except the calling one, with their numbers.
    fn others(&self) -> impl Iterator<Item = (u32, &Shootdown)>;

    /// Nothing to drop.
    fn nothing(&self) -> Self::Stale;

    /// Adds the pages of `[start, end)`, page aligned.
    fn add(&self, stale: &mut Self::Stale, start: GuestVirt, end: GuestVirt);

    /// Drops `stale` on this CPU.
    fn flush(&self, stale: &Self::Stale);

    /// Drops all translations on this CPU.
    fn flush_all(&self);

    /// This CPU's cycle counter.
    fn cycles(&self) -> u64;

    /// Spends a short moment; there are only a few of these.
    fn relax(&self);

    /// Spends a moment of a wait for another CPU; `spins` is the number of such moments before it.
    fn spin(&self, spins: u64);

    /// Interrupts CPU `number`, which is not the calling one; its handler must call
    /// [`Shootdown::serve_others`].
    fn interrupt(&self, number: u32);

    /// Adds to one of this CPU's counts.
    fn count(&self, which: fn(&TlbStats) -> &Field<u64>, number: u64);
}

/// A CPU's part in shootdowns.
#[derive(Debug)]
#[repr(C)]
pub struct Shootdown {
    /// CPUs that wait for this one, a bit each.
    requests: AtomicU64,
    /// The range that this CPU wants flushed, `[start, end)`. Written only while no request is
    /// pending.
    start: AtomicU64,
    end: AtomicU64,
    /// CPUs that have not yet answered this one.
    unanswered: AtomicU32,
    /// Whether the CPU can cache translations at all.
    state: AtomicU32,
    /// CPUs that asked this one at about the time of its last flush, a bit each. Only the CPU
    /// itself uses this and `flush_cycles`.
    partners: AtomicU64,
    /// Cost of a flush on this CPU in cycles: a moving average.
    flush_cycles: AtomicU64,
}

impl Shootdown {
    /// Offset of the 32-bit word that is not 0 while the CPU is idle.
    pub const STATE: usize = offset_of!(Self, state);

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

    /// Drops the translations of the pages of `[start, end)`, page aligned, on all CPUs. On return
    /// no CPU uses an old translation, or will use one. `self` is the calling CPU's, and interrupts
    /// are deferred.
    #[inline]
    pub fn invalidate<C: Cpus>(&self, cpus: &C, start: GuestVirt, end: GuestVirt) {
        let mut stale = cpus.nothing();
        cpus.add(&mut stale, start, end);
        let asked = self.ask_others(cpus, start, end);
        self.await_partners(cpus, asked);
        let begun = cpus.cycles();
        let served = self.serve(cpus, stale);
        cpus.count(|stats| &stats.merged, u64::from(served.count_ones()));
        let flushed = cpus.cycles();
        self.note_cost(flushed - begun);
        let late = self.await_answers(cpus, flushed);
        self.partners.store(served | late, Ordering::Relaxed);
    }

    /// Asks all CPUs that can cache translations for a flush of `[start, end)`, and returns their
    /// set, a bit each.
    #[inline]
    pub(crate) fn ask_others<C: Cpus>(&self, cpus: &C, start: GuestVirt, end: GuestVirt) -> u64 {
        self.start.store(start.get(), Ordering::Relaxed);
        self.end.store(end.get(), Ordering::Relaxed);
        let (mut asked, mut skipped) = (0u64, 0);
        for (number, other) in cpus.others() {
            if other.note_if_idle() {
                skipped += 1;
                continue;
            }
            asked |= 1 << number;
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            other.requests.fetch_or(1 << cpus.number(), Ordering::SeqCst);
        }
        cpus.count(|stats| &stats.shootdowns, u64::from(asked != 0));
        cpus.count(|stats| &stats.asked, asked.count_ones().into());
        cpus.count(|stats| &stats.skipped, skipped);
        asked
    }

    /// Waits until the partners in `asked` have asked in turn, for at most a fraction of the cost
    /// of the second flush that this wait saves.
    #[inline]
    fn await_partners<C: Cpus>(&self, cpus: &C, asked: u64) {
        let partners = self.partners.load(Ordering::Relaxed) & asked;
        let (begun, limit) = (cpus.cycles(), self.flush_cycles.load(Ordering::Relaxed) / LINGER);
        while partners & !self.requests.load(Ordering::Relaxed) != 0
            && cpus.cycles() - begun < limit
        {
            cpus.relax();
        }
    }

    /// Counts a flush of `cycles`.
    #[inline]
    fn note_cost(&self, cycles: u64) {
        let mean = self.flush_cycles.load(Ordering::Relaxed);
        self.flush_cycles.store((7 * mean + cycles.min(PATIENCE)) / 8, Ordering::Relaxed);
    }

    /// Waits until all CPUs that this one has asked have answered, serves others in that time, and
    /// returns the set of those served, a bit each. The asked CPUs have [`PATIENCE`] cycles from
    /// `begun`, on the cycle counter.
    #[inline]
    fn await_answers<C: Cpus>(&self, cpus: &C, begun: u64) -> u64 {
        let (mut served, mut spins, mut is_patient) = (0, 0, true);
        while !self.is_answered() {
            served |= self.requests.load(Ordering::Relaxed);
            self.poll(cpus);
            cpus.spin(spins);
            spins += 1;
            if is_patient && cpus.cycles() - begun > PATIENCE {
                is_patient = false;
                interrupt_who_has_not_served(cpus);
            }
        }
        served
    }

    /// Whether all CPUs that this one has asked have answered.
    #[inline]
    pub(crate) fn is_answered(&self) -> bool {
        self.unanswered.load(Ordering::Acquire) == 0
    }

    /// Whether another CPU waits for this one.
    #[inline]
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }

    /// Serves other CPUs' requests, if there are any. For loops that wait for something.
    #[inline]
    pub fn poll<C: Cpus>(&self, cpus: &C) {
        if self.is_asked() {
            self.serve_others(cpus);
        }
    }

    /// Serves the requests of the CPUs that wait for this one.
    #[inline]
    pub fn serve_others<C: Cpus>(&self, cpus: &C) {
        let _ = self.serve(cpus, cpus.nothing());
    }

    /// Flushes `stale` and the ranges of the CPUs that wait for this one. Answers those CPUs, and
    /// returns their set, a bit each.
    #[inline]
    fn serve<C: Cpus>(&self, cpus: &C, mut stale: C::Stale) -> u64 {
        let requests = self.take_requests(cpus, &mut stale);
        cpus.flush(&stale);
        answer(cpus, requests);
        requests
    }

    /// Takes the requests of the CPUs that wait for this one: adds their ranges to `stale`, and
    /// returns the set of these CPUs, a bit each. They keep waiting for [`answer`].
    #[inline]
    pub(crate) fn take_requests<C: Cpus>(&self, cpus: &C, stale: &mut C::Stale) -> u64 {
        let requests = self.requests.swap(0, Ordering::SeqCst);
        for other in members(cpus, requests) {
            let bound = |word: &AtomicU64| GuestVirt::new(word.load(Ordering::Relaxed));
            cpus.add(stale, bound(&other.start), bound(&other.end));
        }
        requests
    }

    /// Announces that the CPU is about to halt.
    pub fn go_idle(&self) {
        self.state.store(IDLE, Ordering::SeqCst);
    }

    /// Ends the idle state: drops all translations if any mapping was removed during it. Runs on
    /// the CPU itself, directly after a halt.
    #[inline]
    pub fn come_back<C: Cpus>(&self, cpus: &C) {
        if self.state.load(Ordering::Relaxed) != ACTIVE
            && self.state.swap(ACTIVE, Ordering::SeqCst) == IDLE_STALE
        {
            cpus.flush_all();
            cpus.count(|stats| &stats.caught_up, 1);
        }
    }

    /// If the CPU is idle, records that there is something to flush. Returns whether it is idle.
    #[inline]
    fn note_if_idle(&self) -> bool {
        let note = |state| (state != ACTIVE).then_some(IDLE_STALE);
        self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, note).is_ok()
    }

    /// Has loom watch the words that other CPUs use.
    #[cfg(all(test, loom))]
    pub(crate) fn watch(&self) -> [vmkern_abi::atomic::watched::Watched; 5] {
        [
            self.requests.watch(),
            self.start.watch(),
            self.end.watch(),
            self.unanswered.watch(),
            self.state.watch(),
        ]
    }
}

impl Default for Shootdown {
    fn default() -> Self {
        Self::new()
    }
}

/// Answers the CPUs in the set `requests`, which this one has served.
#[inline]
pub(crate) fn answer<C: Cpus>(cpus: &C, requests: u64) {
    for other in members(cpus, requests) {
        cpus.count(|stats| &stats.answered, 1);
        other.unanswered.fetch_sub(1, Ordering::Release);
    }
}

/// Interrupts the CPUs that have a pending request from the calling one.
fn interrupt_who_has_not_served<C: Cpus>(cpus: &C) {
    let mut sent = 0;
    let asked =
        |other: &Shootdown| other.requests.load(Ordering::Relaxed) >> cpus.number() & 1 != 0;
    for (number, _) in cpus.others().filter(|(_, other)| asked(other)) {
        cpus.interrupt(number);
        sent += 1;
    }
    cpus.count(|stats| &stats.interrupts, sent);
}

/// The CPUs of a set, a bit each.
#[inline]
fn members<C: Cpus>(cpus: &C, set: u64) -> impl Iterator<Item = &Shootdown> {
    let rest = |set: &u64| Some(set & (set - 1)).filter(|&set| set != 0);
    core::iter::successors(Some(set).filter(|&set| set != 0), rest)
        .filter_map(|set| cpus.get(set.trailing_zeros()))
}
