//! What the memory system needs of a CPU and of physical memory.
//!
//! **Threads.** The scheduler decides who runs, and the machine switches stacks. It may keep what
//! it needs for that in [`Thread::md`], which nobody else touches. The depth of interrupt deferral
//! belongs to a thread and changes hands with the CPU.
//!
//! **Interrupts.** While [`Machine::intr_disable`] has been called more often than
//! [`Machine::intr_restore`], no handler runs: what arrives is remembered, and runs inside the last
//! `intr_restore`. A handler is a call of [`Vm::intr_enter`], the work, [`Vm::intr_exit`] and, when
//! it is about to return to the interrupted code with nothing deferred, [`Vm::preempt`], which may
//! call [`Machine::cpu_switch`] in the middle of the interrupted thread.

use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::layout::{Pcpu, Thread};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::PteFlags;

use crate::vm::Vm;
use crate::vm::page::AllocClass;

/// What a page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// Anything, by a request of this class.
    Page(AllocClass),
    /// A page table.
    PageTable,
    /// Entries and index nodes of a map.
    MapPool,
    /// Items of a zone.
    Slab,
}

/// What a thread does from its first instruction on. When it returns, the thread exits.
pub type ThreadStart<M> = fn(&Vm<M>, u64);

/// What an allocator says about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Somebody owns it.
    Used,
    /// It is free: until it is used again, whoever reads or writes it is wrong.
    Free,
}

/// A CPU with physical memory behind a direct map.
///
/// # Safety
/// [`Machine::frame`] must return, for every page of the memory described to
/// [`crate::vm::Vm::boot`] and every table page reachable from its root page table, a pointer that
/// is valid for reads and writes up to the end of that page as long as the machine lives, always
/// the same one for the same address. Nobody but the memory system may refer to that memory by Rust
/// references of other types than words of atomics.
#[expect(
    unsafe_code,
    reason = "the direct map is the one promise that the type system cannot check"
)]
pub unsafe trait Machine: Sized {
    /// The byte at `pa` in the direct map. The pointer may be used up to the end of the page that
    /// holds `pa`.
    fn frame(&self, pa: GuestPhys) -> NonNull<u8>;

    /// Fills the page at `pa` (page aligned) with zeros (FreeBSD's `pagezero`).
    fn zero_page(&self, pa: GuestPhys);

    /// Notes what has become of `bytes` bytes at `start`, both multiples of 8, within memory that
    /// lies together (`kasan_mark`). Allocators of pages and of structures call it, so that a
    /// machine which can watch its memory finds uses of what is free. Nothing depends on it.
    #[inline]
    fn mark(&self, start: GuestPhys, bytes: u64, mark: Mark) {
        let _ = (start, bytes, mark);
    }

    /// Forgets all cached translations for `[start, end)`, page aligned, global ones and those of
    /// the paging structures above included. On return no CPU uses an old one.
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt);

    /// Bits that every entry of the kernel's page tables carries besides its own: [`PteFlags::U`]
    /// where the kernel body runs at CPL3, nothing at CPL0.
    fn pte_flags_base(&self) -> PteFlags;

    /// What the CPUs demand of page-table entries.
    fn paging(&self) -> Paging;

    /// Whether a page that is there is refused all the same, so that a test sees what comes of it.
    /// A machine that is not simulated refuses nothing, and has no code for it.
    #[inline(always)]
    fn refuses(&self, _what: Supply) -> bool {
        false
    }

    /// The CPU's cycle counter, near enough: for statistics (`get_cyclecount`). 0 on a machine that
    /// has no such thing.
    #[inline(always)]
    fn cycles(&self) -> u64 {
        0
    }

    /// Stops the system with a message.
    fn panic(&self, message: fmt::Arguments<'_>) -> !;

    /// Clock ticks since boot, as the clock says; the kernel's own count follows in
    /// [`Vm::hardclock`].
    fn ticks(&self) -> u64;

    /// Tells this CPU where its structure lies. Called once on each CPU, before anything else of
    /// the memory system runs there.
    fn cpu_init(&self, pcpu: KPtr<Pcpu>);

    /// The structure of the CPU that runs this. With nothing deferred the caller may be on another
    /// one a moment later.
    fn pcpu(&self) -> KPtr<Pcpu>;

    /// The thread that runs this (`curthread`), wherever it does; null until
    /// [`Machine::cpu_adopt`].
    fn current_thread(&self) -> KPtr<Thread>;

    /// Makes the code that runs now, on the stack it has, `thread`. Called once on each CPU.
    fn cpu_adopt(&self, thread: KPtr<Thread>);

    /// Has the CPU of `pcpu`, another one, call [`Vm::preempt`] soon, or end its
    /// [`Machine::cpu_idle`] (`ipi_cpu`). Called with interrupts deferred.
    fn cpu_interrupt(&self, pcpu: &Pcpu);

    /// Spends a moment of a wait for another CPU (`cpu_spinwait`). `spins` is how many there were
    /// before it.
    fn cpu_spinwait(&self, spins: u64);

    /// Prepares the first switch to `thread` (`cpu_fork`, `cpu_set_fork_handler`). It begins on
    /// `stack` (mapped memory, whole pages, the thread's own until [`Machine::cpu_throw`] has left
    /// it), with interrupts deferred once, as if it were in [`Machine::cpu_switch`], and calls
    /// [`Vm::fork_exit`] with `start` and `arg`. The stack is not touched before that first switch.
    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        stack: Range<GuestVirt>,
        start: ThreadStart<Self>,
        arg: u64,
    );

    /// Gives the CPU from `from`, which has it, to `to`, which was prepared by
    /// [`Machine::cpu_fork`] or is inside of a call of this function that has not returned
    /// (`cpu_switch`). Returns when some thread gives the CPU back to `from`. Interrupts are
    /// deferred, once, for both.
    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>);

    /// [`Machine::cpu_switch`] from a thread that never runs again (`cpu_throw`). When `to` runs,
    /// the machine has forgotten `from`, and nothing touches its stack.
    fn cpu_throw(&self, from: KPtr<Thread>, to: KPtr<Thread>) -> !;

    /// Lets the CPU rest until an interrupt has come and been handled (`cpu_idle`). Called with
    /// nothing deferred, when no thread can run and the idle thread itself sleeps. A machine whose
    /// time is virtual goes on to [`Vm::next_timeout`], and stops the system when there is none.
    fn cpu_idle(&self, vm: &Vm<Self>);

    /// A thread has the CPU of `pcpu` while another one waits for that CPU, or, if it is the one
    /// that booted, for a time-out, the first of which is at tick `due`; or another CPU has armed
    /// the time-out that is due first, which the one that booted may not know yet when it is idle.
    /// A machine whose clocks do not tick all the time has that CPU's interrupt it at the end of a
    /// time slice if threads are on its run queue, and at tick `due` if time goes on by itself: to
    /// call [`Vm::hardclock`] on the one that booted, [`Vm::end_slice`], and [`Vm::ask_for_clock`].
    /// Called with the scheduler's lock held, and often: a clock that runs need not be started
    /// again.
    fn clock_needed(&self, _pcpu: &Pcpu, _due: Option<u64>) {}

    /// Handles those interrupts that came while they were deferred and need no lock of the memory
    /// system: the clock's, another CPU's, the host's pause. Others go on waiting. Called with
    /// interrupts deferred, and any mutex owned but the scheduler's. Does not switch.
    fn intr_point(&self) {}

    /// Defers interrupts, and with them preemption. Nests.
    fn intr_disable(&self);

    /// Takes back one [`Machine::intr_disable`]. The last one lets the interrupts in that came
    /// meanwhile, and may give the CPU to another thread for a time.
    fn intr_restore(&self);
}
