//! What the system needs from a machine: its memory ([`PhysMem`]), its page tables ([`Mmu`]) and
//! its CPUs ([`Cpu`]). Each layer requires only what it uses: `Kern`, `Phys` and `Object` need no
//! MMU.
//!
//! **Threads.** The scheduler decides which thread runs, and the machine switches stacks. For that
//! it may keep its own state in [`Thread::md`], which nothing else uses. The depth of interrupt
//! deferral belongs to a thread and is switched with it.
//!
//! **Interrupts.** While [`Cpu::intr_disable`] has been called more often than
//! [`Cpu::intr_restore`], no handler runs: interrupts that arrive stay pending, and their handlers
//! run inside the last `intr_restore`. A handler calls [`Kern::intr_enter`], does its work, and
//! calls [`Kern::intr_exit`]. When it is about to return to interrupted code with nothing deferred,
//! it also calls [`Kern::preempt`], which may call [`Cpu::cpu_switch`] in the middle of the
//! interrupted thread.

use core::ops::Range;
use core::ptr::NonNull;
use core::{fmt, iter};

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::fail::FailPoints;
use vmkern_abi::layout::{Pcpu, Thread};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::PteFlags;

use crate::kern::Kern;

/// The class of a request for a page, which says how far the free pages may shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocClass {
    /// Down to `v_free_reserved` (`VM_ALLOC_NORMAL`).
    Normal,
    /// To the last page (`VM_ALLOC_INTERRUPT`).
    Interrupt,
    /// Down to `v_interrupt_free_min` (`VM_ALLOC_SYSTEM`).
    System,
}

/// The function that a thread runs from its first instruction on, in the system `S`. When it
/// returns, the thread exits.
pub type ThreadStart<S> = fn(&S, u64);

/// The state of memory, as its allocator reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It is allocated.
    Used,
    /// It is free: until it is allocated again, every read or write of it is a bug.
    Free,
}

/// Physical memory behind a direct map.
///
/// # Safety
/// [`PhysMem::frame`] must return, for every page of the memory described to
/// [`crate::vm::Vm::boot`] and every table page reachable from its root page table, a pointer that
/// is valid for reads and writes up to the end of that page as long as the machine lives, always
/// the same one for the same address. Only the memory system may refer to that memory by Rust
/// references, except references to atomic words.
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

    /// Reports the new state of `bytes` bytes at `start`, both multiples of 8, within contiguous
    /// memory (`kasan_mark`). Allocators of pages and of structures call it, so a machine that can
    /// watch its memory finds uses of free memory. Nothing depends on it.
    #[inline]
    fn mark(&self, start: GuestPhys, bytes: u64, mark: Mark) {
        let _ = (start, bytes, mark);
    }
}

/// The page tables of a machine, and the translations that its CPUs cache.
pub trait Mmu {
    /// Flushes all cached translations for `[start, end)`, page aligned, including global ones and
    /// those of the paging structures above. On return no CPU uses an old translation.
    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt);

    /// Bits that every entry of the kernel's page tables has besides its own: [`PteFlags::U`] if
    /// the kernel body runs at CPL3, none at CPL0.
    fn pte_flags_base(&self) -> PteFlags;

    /// The rules of the CPUs for page-table entries.
    fn paging(&self) -> Paging;
}

/// The CPUs of a machine: time, threads and interrupts.
pub trait Cpu: Sized {
    /// The system that runs on the machine; threads and event handlers are called with it. The
    /// kernel's is a [`crate::vm::Vm`]; that of a loom model may be a lower layer.
    type System;

    /// The CPU's cycle counter, not exact, for statistics (`get_cyclecount`). 0 on a machine that
    /// has none.
    #[inline(always)]
    fn cycles(&self) -> u64 {
        0
    }

    /// Whether a panic is unwinding the calling thread; its locks must stay as they are then
    /// ([`crate::kern::guard`]). Always false on a machine where a panic ends the system.
    #[inline(always)]
    fn is_unwinding(&self) -> bool {
        false
    }

    /// Sites of [`vmkern_abi::fail`] that are armed, by
    /// [`FailSite::bit`](vmkern_abi::fail::FailSite::bit). Each site asks, so this is one load. A
    /// machine without sites has no code for them.
    #[inline(always)]
    fn fail_armed(&self) -> u64 {
        0
    }

    /// The sites, if the machine has any.
    fn fail_points(&self) -> Option<&FailPoints> {
        None
    }

    /// The return addresses of the callers, innermost first, if the machine knows them
    /// (`stack(9)`).
    fn call_stack(&self) -> impl Iterator<Item = GuestVirt> {
        iter::empty()
    }

    /// Spins for `usec` microseconds of real time (`DELAY`).
    fn delay(&self, _usec: u64) {}

    /// Writes a line to the kernel's log (`printf`). Locks: any.
    fn log(&self, _line: fmt::Arguments<'_>) {}

    /// Stops the system with a message.
    fn panic(&self, message: fmt::Arguments<'_>) -> !;

    /// Clock ticks since boot, read from the clock; the kernel's own count follows in
    /// [`Kern::hardclock`].
    fn ticks(&self) -> u64;

    /// Microseconds since boot, read from the same clock.
    fn micros(&self) -> u64;

    /// Sets the structure of this CPU. Called once on each CPU, before anything else of the memory
    /// system runs there.
    fn cpu_init(&self, pcpu: KPtr<Pcpu>);

    /// The structure of the CPU that runs the caller. With nothing deferred, the caller may be on
    /// another CPU a moment later.
    fn pcpu(&self) -> KPtr<Pcpu>;

    /// The calling thread (`curthread`), on whichever CPU it runs; null until [`Cpu::cpu_adopt`].
    fn current_thread(&self) -> KPtr<Thread>;

    /// Makes the calling code, on its current stack, the thread `thread`. Called once on each CPU.
    fn cpu_adopt(&self, thread: KPtr<Thread>);

    /// Makes the CPU of `pcpu`, which is not the calling one, call [`Kern::preempt`] soon, or end
    /// its [`Cpu::cpu_idle`] (`ipi_cpu`). Called with interrupts deferred. A machine with one CPU
    /// need not implement it.
    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        self.panic(format_args!("an interrupt for CPU {}: there is only one", pcpu.cpuid.get()))
    }

    /// Spends a moment of a wait for another CPU (`cpu_spinwait`). `spins` is the number of such
    /// moments before it. A machine with one CPU need not implement it.
    fn cpu_spinwait(&self, _spins: u64) {
        self.panic(format_args!("a wait for another CPU: there is only one"))
    }

    /// Prepares the first switch to `thread` (`cpu_fork`, `cpu_set_fork_handler`). The thread
    /// begins on `stack` (mapped memory, whole pages, the thread's own until [`Cpu::cpu_throw`] has
    /// left it), with interrupts deferred once, as if it were in [`Cpu::cpu_switch`], and calls
    /// [`Vm::fork_exit`](crate::vm::Vm::fork_exit) with `start` and `arg`. The stack is not touched
    /// before that first switch.
    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        stack: Range<GuestVirt>,
        start: ThreadStart<Self::System>,
        arg: u64,
    );

    /// Switches the CPU from `from`, which runs on it, to `to`, which was prepared by
    /// [`Cpu::cpu_fork`] or is inside a call of this function that has not returned (`cpu_switch`).
    /// Returns when some thread switches back to `from`. Interrupts are deferred, once, for both.
    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>);

    /// [`Cpu::cpu_switch`] from a thread that never runs again (`cpu_throw`). Once `to` runs, the
    /// machine no longer uses `from` or its stack.
    fn cpu_throw(&self, from: KPtr<Thread>, to: KPtr<Thread>) -> !;

    /// Idles the CPU until an interrupt has arrived and been handled (`cpu_idle`). Called with
    /// nothing deferred, when no thread can run and the idle thread itself sleeps. A machine with
    /// virtual time advances to [`Kern::next_timeout`], and stops the system when there is none.
    fn cpu_idle(&self, kern: &Kern<Self>);

    /// Reports that the CPU of `pcpu` needs interrupts of its clock. A thread runs there while
    /// another waits for that CPU, or, if it is the CPU that booted, while a time-out is pending,
    /// the first at tick `due`; or another CPU has armed the time-out that is due first, and the
    /// CPU that booted, if it is idle, may not know of it yet. A machine whose clocks do not tick
    /// all the time makes that CPU's clock interrupt it at the end of a time slice if threads are
    /// on its run queue, and at tick `due` if time passes by itself. The interrupt calls
    /// [`Kern::hardclock`] on the CPU that booted, [`Kern::end_slice`], and
    /// [`Kern::ask_for_clock`]. Called with the scheduler's lock held, and often: a clock that runs
    /// need not be started again.
    fn clock_needed(&self, _pcpu: &Pcpu, _due: Option<u64>) {}

    /// Handles those pending interrupts that need no lock of the memory system: the clock's,
    /// another CPU's, the host's pause. Others stay pending. Called with interrupts deferred; the
    /// caller may own any mutex except the scheduler's. Does not switch.
    fn intr_point(&self) {}

    /// Defers interrupts, and with them preemption. Nests.
    fn intr_disable(&self);

    /// Undoes one [`Cpu::intr_disable`]. The last one handles the pending interrupts, and may
    /// switch to another thread for a time.
    fn intr_restore(&self);
}

/// A whole machine.
pub trait Machine: PhysMem + Mmu + Cpu {}

impl<M: PhysMem + Mmu + Cpu> Machine for M {}
