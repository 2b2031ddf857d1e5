//! What the system needs of a machine: its memory ([`PhysMem`]), its page tables ([`Mmu`]) and its
//! CPUs ([`Cpu`]). Each layer asks for no more than it uses: `Kern`, `Phys` and `Object` do without
//! an MMU.
//!
//! **Threads.** The scheduler decides who runs, and the machine switches stacks. It may keep what
//! it needs for that in [`Thread::md`], which nobody else touches. The depth of interrupt deferral
//! belongs to a thread and changes hands with the CPU.
//!
//! **Interrupts.** While [`Cpu::intr_disable`] has been called more often than
//! [`Cpu::intr_restore`], no handler runs: what arrives is remembered, and runs inside the last
//! `intr_restore`. A handler is a call of [`Kern::intr_enter`], the work, [`Kern::intr_exit`] and,
//! when it is about to return to the interrupted code with nothing deferred, [`Kern::preempt`],
//! which may call [`Cpu::cpu_switch`] in the middle of the interrupted thread.

use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::layout::{Pcpu, Thread};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::PteFlags;

use crate::kern::Kern;

/// Who asks for a page, and so how deep the request may dig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocClass {
    /// Down to `v_free_reserved` (`VM_ALLOC_NORMAL`).
    Normal,
    /// To the last page (`VM_ALLOC_INTERRUPT`).
    Interrupt,
    /// Down to `v_interrupt_free_min` (`VM_ALLOC_SYSTEM`).
    System,
}

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

/// What a thread does from its first instruction on, in the system `S`. When it returns, the thread
/// exits.
pub type ThreadStart<S> = fn(&S, u64);

/// What an allocator says about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Somebody owns it.
    Used,
    /// It is free: until it is used again, whoever reads or writes it is wrong.
    Free,
}

/// Physical memory behind a direct map.
///
/// # Safety
/// [`PhysMem::frame`] must return, for every page of the memory described to
/// [`crate::vm::Vm::boot`] and every table page reachable from its root page table, a pointer that
/// is valid for reads and writes up to the end of that page as long as the machine lives, always
/// the same one for the same address. Nobody but the memory system may refer to that memory by Rust
/// references of other types than words of atomics.
#[expect(
    unsafe_code,
    reason = "the direct map is the one promise that the type system cannot check"
)]
pub unsafe trait PhysMem {
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

    /// Whether a page that is there is refused all the same, so that a test sees what comes of it.
    /// A machine that is not simulated refuses nothing, and has no code for it.
    #[inline(always)]
    fn refuses(&self, _what: Supply) -> bool {
        false
    }
}

/// The page tables of a machine, and what its CPUs remember of them.
pub trait Mmu {
    /// Forgets all cached translations for `[start, end)`, page aligned, global ones and those of
    /// the paging structures above included. On return no CPU uses an old one.
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt);

    /// Bits that every entry of the kernel's page tables carries besides its own: [`PteFlags::U`]
    /// where the kernel body runs at CPL3, nothing at CPL0.
    fn pte_flags_base(&self) -> PteFlags;

    /// What the CPUs demand of page-table entries.
    fn paging(&self) -> Paging;
}

/// The CPUs of a machine: time, threads and interrupts.
pub trait Cpu: Sized {
    /// What runs on the machine: threads and event handlers are called with it. The kernel's is a
    /// [`crate::vm::Vm`]; a model's may be a lower layer.
    type System;

    /// The CPU's cycle counter, near enough: for statistics (`get_cyclecount`). 0 on a machine that
    /// has no such thing.
    #[inline(always)]
    fn cycles(&self) -> u64 {
        0
    }

    /// Whether a panic unwinds the calling thread, whose locks are to stay as they are then
    /// ([`crate::kern::guard`]). Where a panic ends the system nothing ever is.
    #[inline(always)]
    fn is_unwinding(&self) -> bool {
        false
    }

    /// Stops the system with a message.
    fn panic(&self, message: fmt::Arguments<'_>) -> !;

    /// Clock ticks since boot, as the clock says; the kernel's own count follows in
    /// [`Kern::hardclock`].
    fn ticks(&self) -> u64;

    /// Tells this CPU where its structure lies. Called once on each CPU, before anything else of
    /// the memory system runs there.
    fn cpu_init(&self, pcpu: KPtr<Pcpu>);

    /// The structure of the CPU that runs this. With nothing deferred the caller may be on another
    /// one a moment later.
    fn pcpu(&self) -> KPtr<Pcpu>;

    /// The thread that runs this (`curthread`), wherever it does; null until
    /// [`Cpu::cpu_adopt`].
    fn current_thread(&self) -> KPtr<Thread>;

    /// Makes the code that runs now, on the stack it has, `thread`. Called once on each CPU.
    fn cpu_adopt(&self, thread: KPtr<Thread>);

    /// Has the CPU of `pcpu`, another one, call [`Kern::preempt`] soon, or end its
    /// [`Cpu::cpu_idle`] (`ipi_cpu`). Called with interrupts deferred. A machine with one CPU
    /// leaves this out.
    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        self.panic(format_args!("an interrupt for CPU {}: there is only one", pcpu.cpuid.get()))
    }

    /// Spends a moment of a wait for another CPU (`cpu_spinwait`). `spins` is how many there were
    /// before it. A machine with one CPU leaves this out.
    fn cpu_spinwait(&self, _spins: u64) {
        self.panic(format_args!("a wait for another CPU: there is only one"))
    }

    /// Prepares the first switch to `thread` (`cpu_fork`, `cpu_set_fork_handler`). It begins on
    /// `stack` (mapped memory, whole pages, the thread's own until [`Cpu::cpu_throw`] has left
    /// it), with interrupts deferred once, as if it were in [`Cpu::cpu_switch`], and calls
    /// [`Vm::fork_exit`](crate::vm::Vm::fork_exit) with `start` and `arg`. The stack is not touched
    /// before that first switch.
    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        stack: Range<GuestVirt>,
        start: ThreadStart<Self::System>,
        arg: u64,
    );

    /// Gives the CPU from `from`, which has it, to `to`, which was prepared by
    /// [`Cpu::cpu_fork`] or is inside of a call of this function that has not returned
    /// (`cpu_switch`). Returns when some thread gives the CPU back to `from`. Interrupts are
    /// deferred, once, for both.
    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>);

    /// [`Cpu::cpu_switch`] from a thread that never runs again (`cpu_throw`). When `to` runs,
    /// the machine has forgotten `from`, and nothing touches its stack.
    fn cpu_throw(&self, from: KPtr<Thread>, to: KPtr<Thread>) -> !;

    /// Lets the CPU rest until an interrupt has come and been handled (`cpu_idle`). Called with
    /// nothing deferred, when no thread can run and the idle thread itself sleeps. A machine whose
    /// time is virtual goes on to [`Kern::next_timeout`], and stops the system when there is none.
    fn cpu_idle(&self, kern: &Kern<Self>);

    /// A thread has the CPU of `pcpu` while another one waits for that CPU, or, if it is the one
    /// that booted, for a time-out, the first of which is at tick `due`; or another CPU has armed
    /// the time-out that is due first, which the one that booted may not know yet when it is idle.
    /// A machine whose clocks do not tick all the time has that CPU's interrupt it at the end of a
    /// time slice if threads are on its run queue, and at tick `due` if time goes on by itself: to
    /// call [`Kern::hardclock`] on the one that booted, [`Kern::end_slice`], and
    /// [`Kern::ask_for_clock`]. Called with the scheduler's lock held, and often: a clock that runs
    /// need not be started again.
    fn clock_needed(&self, _pcpu: &Pcpu, _due: Option<u64>) {}

    /// Handles those interrupts that came while they were deferred and need no lock of the memory
    /// system: the clock's, another CPU's, the host's pause. Others go on waiting. Called with
    /// interrupts deferred, and any mutex owned but the scheduler's. Does not switch.
    fn intr_point(&self) {}

    /// Defers interrupts, and with them preemption. Nests.
    fn intr_disable(&self);

    /// Takes back one [`Cpu::intr_disable`]. The last one lets the interrupts in that came
    /// meanwhile, and may give the CPU to another thread for a time.
    fn intr_restore(&self);
}

/// A whole machine.
pub trait Machine: PhysMem + Mmu + Cpu {}

impl<M: PhysMem + Mmu + Cpu> Machine for M {}
