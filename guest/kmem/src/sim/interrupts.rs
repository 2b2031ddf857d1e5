//! Interrupts of the simulated machine: their deferral, and when they arrive.
//!
//! A real interrupt may arrive between any two instructions where it is not deferred. A simulated
//! one arrives at an interrupt point: when the last deferral ends, when a page is cleared or a
//! translation invalidated, and at each access to memory by address. A seed decides whether it
//! arrives, so an interleaving can be repeated.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::machine::SimMachine;
use crate::machine::Cpu;
use crate::vm::Vm;

/// The work of an interrupt handler.
pub type Handler = Box<dyn FnOnce(&Vm<SimMachine>) + Send>;

/// The state of interrupts.
#[derive(Default)]
pub struct Interrupts {
    /// How often they are deferred.
    depth: AtomicU64,
    /// The clock interrupts at one point of this many; never when 0.
    one_in: AtomicU64,
    /// State of the pseudo-random numbers.
    random: AtomicU64,
    /// Handlers of interrupts, each with the number of points that pass before it once it is the
    /// first.
    pending: Mutex<VecDeque<(u64, Handler)>>,
    /// Their number.
    pending_count: AtomicU64,
    /// Whether a thread gives way at every point if a thread of better priority can run.
    eager: AtomicBool,
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts")
            .field("depth", &self.depth)
            .field("one_in", &self.one_in)
            .finish_non_exhaustive()
    }
}

impl Interrupts {
    pub fn disable(&self) {
        self.depth.store(self.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub fn restore(&self) {
        let depth = self
            .depth
            .load(Ordering::Relaxed)
            .checked_sub(1)
            .expect("intr_restore without intr_disable");
        self.depth.store(depth, Ordering::Relaxed);
    }

    pub fn assert_deferred_once(&self) {
        assert_eq!(
            self.depth.load(Ordering::Relaxed),
            1,
            "depth of interrupt deferral at a switch"
        );
    }

    /// From now on the clock interrupts at one point of `one_in`, at least 2, chosen by `seed`;
    /// never with 0.
    pub fn set_clock(&self, seed: u64, one_in: u64) {
        assert!(one_in != 1, "an interrupt at every point leaves no time for anything else");
        self.random.store(seed, Ordering::Relaxed);
        self.one_in.store(one_in, Ordering::Relaxed);
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<(u64, Handler)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a thread gives way at every point if a thread of better priority can run.
    pub fn set_eager(&self) {
        self.eager.store(true, Ordering::Relaxed);
    }

    /// An interrupt will arrive, behind those announced before, after this many more points.
    pub fn raise(&self, points: u64, handler: Handler) {
        let mut pending = self.pending();
        pending.push_back((points, handler));
        self.pending_count.store(pending.len() as u64, Ordering::Relaxed);
    }

    /// Cancels the interrupts that have not arrived.
    pub fn cancel(&self) {
        self.pending().clear();
        self.pending_count.store(0, Ordering::Relaxed);
    }

    /// The handler of an interrupt that arrives at this point.
    fn take(&self) -> Option<Handler> {
        let mut pending = self.pending();
        let (points, _) = pending.front_mut()?;
        if *points > 0 {
            *points -= 1;
            return None;
        }
        let (_, handler) = pending.pop_front()?;
        self.pending_count.store(pending.len() as u64, Ordering::Relaxed);
        Some(handler)
    }

    /// Whether no interrupt can arrive at all: the usual case in tests, and fast.
    fn is_quiet(&self) -> bool {
        self.one_in.load(Ordering::Relaxed) == 0
            && self.pending_count.load(Ordering::Relaxed) == 0
            && !self.eager.load(Ordering::Relaxed)
    }

    /// Whether the clock interrupts now (SplitMix64).
    fn clock_strikes(&self) -> bool {
        let one_in = self.one_in.load(Ordering::Relaxed);
        if one_in == 0 {
            return false;
        }
        let state = self.random.load(Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.store(state, Ordering::Relaxed);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).is_multiple_of(one_in)
    }
}

impl SimMachine {
    /// A place where an interrupt may arrive. May switch to another thread.
    pub(super) fn interrupt_point(&self) {
        if !self.interrupts.is_quiet() {
            self.interrupt_arrives(Interrupts::clock_strikes);
        }
    }

    /// A place where the running thread is late: the clock interrupts, unless interrupts are
    /// deferred. May switch to another thread.
    pub(super) fn delay_point(&self) {
        self.interrupt_arrives(|_| true);
    }

    /// Interrupts arrive here, and that of the clock if it strikes.
    fn interrupt_arrives(&self, clock_strikes: impl FnOnce(&Interrupts) -> bool) {
        let interrupts = &self.interrupts;
        if interrupts.depth.load(Ordering::Relaxed) != 0 || std::thread::panicking() {
            return;
        }
        let Some(vm) = self.vm() else { return };
        if vm.in_interrupt() {
            return;
        }
        while let Some(handler) = interrupts.take() {
            vm.intr_enter();
            handler(&vm);
            vm.intr_exit();
        }
        let driver = vm.current_thread() == vm.boot_pcpu().idlethread.get();
        if !driver && clock_strikes(interrupts) {
            self.clock_interrupt(&vm);
        }
        if !driver {
            vm.preempt();
        }
    }

    /// The clock's interrupt, one tick later than it was, and the end of the running thread's time
    /// slice.
    fn clock_interrupt(&self, vm: &Vm<Self>) {
        self.set_clock(vm, self.ticks() + 1);
        vm.intr_enter();
        vm.end_slice();
        vm.intr_exit();
    }

    /// The clock ticks while the running thread computes. Other threads run when its time slice is
    /// over, or their time-outs are due.
    pub fn tick(&self, vm: &Vm<Self>) {
        self.set_clock(vm, self.ticks() + 1);
        vm.preempt();
    }
}
