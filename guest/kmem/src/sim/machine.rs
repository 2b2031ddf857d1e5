//! The simulated CPU and its memory.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::fail::FailPoints;
#[cfg(test)]
use vmkern_abi::field::Field;
use vmkern_abi::layout::{Pcpu, Thread};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::PteFlags;

use super::baton::Baton;
use super::fail::Sites;
use super::interrupts::Interrupts;
use super::memory::Memory;
use super::threads::Mailbox;
use super::tlb::Tlb;
use crate::kern::Kern;
#[cfg(asan)]
use crate::machine::Mark;
use crate::machine::{Cpu, Mmu, PhysMem, ThreadStart};
use crate::vm::{PhysRange, Vm, Zeroed};
use crate::window::{self, PageTable};

/// A CPU without instructions: memory, a TLB, threads, a clock, and counters of operations on them.
///
/// Only the thread with the baton uses it.
#[derive(Debug)]
pub struct SimMachine {
    memory: Memory,
    tlb: Mutex<Tlb>,
    flushes: AtomicU64,
    /// The work of another CPU during the next invalidation.
    #[cfg(test)]
    elsewhere: super::elsewhere::Elsewhere,
    /// The work of another CPU while the next page is cleared.
    #[cfg(test)]
    clearing: super::elsewhere::Elsewhere,
    /// The work of an interrupt at the next point of a loop over pages.
    #[cfg(test)]
    at_point: super::elsewhere::Elsewhere,
    zeroings: AtomicU64,
    pub(super) baton: Arc<Baton>,
    pub(super) interrupts: Interrupts,
    pub(super) mailbox: Mailbox,
    /// The address of the CPU's structure.
    pcpu: AtomicU64,
    pub(super) sites: Sites,
    /// Clock ticks since boot, in virtual time.
    clock: AtomicU64,
    /// The system on this machine, once it is up.
    vm: Arc<OnceLock<Weak<Vm<SimMachine>>>>,
}

/// Number of the thread that runs elsewhere during an invalidation.
#[cfg(test)]
const OTHER_TID: u32 = 0xfff0;

/// Adds to a counter that no other thread changes at the same time.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl SimMachine {
    pub(super) fn new(ram: &[PhysRange], zeroed: Zeroed, sites: Sites) -> Self {
        Self {
            memory: Memory::new(ram, zeroed),
            tlb: Mutex::default(),
            flushes: AtomicU64::new(0),
            #[cfg(test)]
            elsewhere: super::elsewhere::Elsewhere::default(),
            #[cfg(test)]
            clearing: super::elsewhere::Elsewhere::default(),
            #[cfg(test)]
            at_point: super::elsewhere::Elsewhere::default(),
            zeroings: AtomicU64::new(0),
            baton: Arc::default(),
            interrupts: Interrupts::default(),
            mailbox: Mailbox::default(),
            pcpu: AtomicU64::new(0),
            sites,
            clock: AtomicU64::new(0),
            vm: Arc::default(),
        }
    }

    /// Sets the system that runs on the machine.
    pub(super) fn set_vm(&self, vm: &Arc<Vm<Self>>) {
        assert!(self.vm.set(Arc::downgrade(vm)).is_ok(), "the machine has a system already");
    }

    /// The system on this machine, if it is up.
    pub(super) fn vm(&self) -> Option<Arc<Vm<Self>>> {
        self.vm.get()?.upgrade()
    }

    pub(super) fn tlb(&self) -> MutexGuard<'_, Tlb> {
        self.tlb.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages of physical memory that were ever looked at, by number.
    pub fn touched_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.memory.touched_pages()
    }

    /// During the next invalidation, which takes time with several CPUs, another CPU does `work`.
    /// It runs on the thread that waits, so that thread must not own a lock that `work` takes.
    #[cfg(test)]
    pub fn during_next_flush(&self, work: super::interrupts::Handler) {
        self.elsewhere.set(work);
    }

    /// While the next page is cleared, other CPUs do `work`. It runs on the thread that clears, and
    /// may let other threads run if that thread owns no mutex.
    #[cfg(test)]
    pub fn during_next_clear(&self, work: super::interrupts::Handler) {
        self.clearing.set(work);
    }

    /// At the next point of a loop over pages, an interrupt does `work`, while the mutexes of the
    /// loop are owned.
    #[cfg(test)]
    pub fn at_next_point(&self, work: super::interrupts::Handler) {
        self.at_point.set(work);
    }

    /// Invalidations so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Pages cleared so far.
    #[must_use]
    pub fn zeroings(&self) -> u64 {
        self.zeroings.load(Ordering::Relaxed)
    }

    /// Sets the clock to tick `now`, unless it is already later, and handles its interrupt.
    pub(super) fn set_clock(&self, kern: &Kern<Self>, now: u64) {
        self.clock.fetch_max(now, Ordering::Relaxed);
        kern.intr_enter();
        kern.hardclock(self.ticks());
        kern.intr_exit();
    }
}

#[expect(unsafe_code, reason = "the trait is a promise about memory")]
// SAFETY: `Memory::frame` returns, for the same address, the same place in a chunk that lives as
// long as the machine, and stops the test at any address that is not memory. Only `window` and
// `access` make references into it, as words of atomics.
unsafe impl PhysMem for SimMachine {
    fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        self.memory.frame(pa)
    }

    fn zero_page(&self, pa: GuestPhys) {
        assert!(pa.is_page_aligned(), "zero_page at {pa:#x}");
        self.interrupt_point();
        count(&self.zeroings);
        #[cfg(test)]
        if let (Some(work), Some(vm)) = (self.clearing.take(), self.vm()) {
            work(&vm);
        }
        let table: &PageTable = window::at(self, pa);
        table.iter().for_each(|word| word.set(vmkern_abi::pte::Pte::EMPTY));
    }

    #[cfg(asan)]
    fn mark(&self, start: GuestPhys, bytes: u64, mark: Mark) {
        self.memory.mark(start, bytes, mark);
    }
}

impl Mmu for SimMachine {
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt) {
        assert!(
            start.is_page_aligned() && end.is_page_aligned() && start < end,
            "invalidate {start:#x} to {end:#x}"
        );
        self.interrupt_point();
        count(&self.flushes);
        #[cfg(test)]
        if let (Some(work), Some(vm)) = (self.elsewhere.take(), self.vm()) {
            // The thread that runs there has another number.
            let waiter = self.current_thread().non_null().map(|thread| &vm.get(thread).tid);
            let number = waiter.map(Field::get);
            waiter.inspect(|tid| tid.set(OTHER_TID));
            work(&vm);
            waiter.zip(number).inspect(|(tid, number)| tid.set(*number));
        }
        self.tlb().invalidate(start.get() / PAGE_SIZE, end.get() / PAGE_SIZE);
    }

    fn paging(&self) -> Paging {
        Paging::ANY
    }

    fn pte_flags_base(&self) -> PteFlags {
        PteFlags::U
    }
}

impl Cpu for SimMachine {
    type System = Vm<Self>;

    #[cfg(test)]
    fn intr_point(&self) {
        if let (Some(work), Some(vm)) = (self.at_point.take(), self.vm()) {
            vm.intr_enter();
            work(&vm);
            vm.intr_exit();
        }
    }

    #[cfg(not(feature = "no-fail-sites"))]
    #[inline(always)]
    fn fail_armed(&self) -> u64 {
        self.sites.armed()
    }

    fn fail_points(&self) -> Option<&FailPoints> {
        Some(self.sites.points())
    }

    /// Others run for as long: the clock interrupts once in a microsecond.
    fn delay(&self, usec: u64) {
        (0..usec).for_each(|_| self.delay_point());
    }

    fn is_unwinding(&self) -> bool {
        std::thread::panicking()
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn micros(&self) -> u64 {
        let micros = |hz| u128::from(self.ticks()) * 1_000_000 / u128::from(hz);
        let vm = self.vm().filter(|vm| vm.cnt().hz.get() != 0);
        vm.map_or(0, |vm| u64::try_from(micros(vm.cnt().hz.get())).unwrap_or(u64::MAX))
    }

    fn current_thread(&self) -> KPtr<Thread> {
        self.baton.holder()
    }

    fn cpu_init(&self, pcpu: KPtr<Pcpu>) {
        self.pcpu.store(pcpu.addr().get(), Ordering::Relaxed);
    }

    fn pcpu(&self) -> KPtr<Pcpu> {
        KPtr::new(GuestVirt::new(self.pcpu.load(Ordering::Relaxed)))
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        self.baton.adopt(thread);
    }

    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        _stack: Range<GuestVirt>,
        start: ThreadStart<Vm<Self>>,
        arg: u64,
    ) {
        let vm = Arc::clone(&self.vm);
        let body = move || {
            let vm = vm.get().and_then(Weak::upgrade).expect("threads run while the system is up");
            vm.fork_exit(start, arg)
        };
        self.baton.prepare(thread, Box::new(body));
    }

    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>) {
        self.interrupts.assert_deferred_once();
        self.baton.switch(from, to);
    }

    fn cpu_throw(&self, from: KPtr<Thread>, to: KPtr<Thread>) -> ! {
        self.interrupts.assert_deferred_once();
        self.baton.throw(from, to)
    }

    fn cpu_idle(&self, kern: &Kern<Self>) {
        match kern.next_timeout() {
            Some(deadline) => self.set_clock(kern, deadline),
            None => panic!("all threads sleep forever: {}", super::threads::waiting(kern)),
        }
    }

    fn intr_disable(&self) {
        self.interrupts.disable();
    }

    fn intr_restore(&self) {
        self.interrupts.restore();
        self.interrupt_point();
    }
}
