//! What all models' machines have in common: some pages of memory behind a direct map, and nothing
//! that a model does not ask for.

use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use loom::thread;
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::layout::{Pcpu, Thread};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::{NPTEPG, PteFlags};

use crate::machine::{Machine, ThreadStart};
use crate::num::to_usize;
use crate::vm::Vm;

/// A page of memory.
#[repr(align(4096))]
struct Page([AtomicU64; NPTEPG]);

/// The CPUs of a model: what it uses of a [`Machine`], whose functions these are. Whatever else is
/// called fails it.
pub trait Cpus: Sized {
    fn pcpu(&self) -> KPtr<Pcpu>;

    fn current_thread(&self) -> KPtr<Thread>;

    fn ticks(&self) -> u64 {
        0
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        unreachable!("threads are made by the model: {}", thread.addr())
    }

    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        unreachable!("no CPU is interrupted, not {}", pcpu.cpuid.get())
    }

    fn cpu_switch(&self, from: KPtr<Thread>, _to: KPtr<Thread>) {
        unreachable!("nobody sleeps: {}", from.addr())
    }

    fn cpu_throw(&self, from: KPtr<Thread>, _to: KPtr<Thread>) -> ! {
        unreachable!("nobody exits: {}", from.addr())
    }

    fn intr_disable(&self) {}

    fn intr_restore(&self) {}
}

/// CPUs with memory.
pub struct Bare<C> {
    memory: Vec<Page>,
    cpus: C,
}

impl<C: Cpus> Bare<C> {
    /// `cpus` with `pages` pages, the first of which nobody uses.
    pub fn new(cpus: C, pages: usize) -> Self {
        Self {
            memory: (0..pages).map(|_| Page([const { AtomicU64::new(0) }; NPTEPG])).collect(),
            cpus,
        }
    }
}

impl<C> Deref for Bare<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.cpus
    }
}

#[expect(unsafe_code, reason = "the trait is a promise about memory")]
// SAFETY: `frame` gives the same place in a page of atomics that lives as long as the machine for
// the same address, and `window` alone makes references into it.
unsafe impl<C: Cpus> Machine for Bare<C> {
    fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        let page = NonNull::from(&self.memory[to_usize(pa.pfn())].0).cast::<u8>();
        // SAFETY: the offset is smaller than the page.
        unsafe { page.add(to_usize(pa.page_offset())) }
    }

    fn zero_page(&self, pa: GuestPhys) {
        unreachable!("nobody clears pages here: {pa}")
    }

    fn invalidate_range(&self, start: GuestVirt, _end: GuestVirt) {
        unreachable!("nothing is mapped here: {start}")
    }

    fn paging(&self) -> Paging {
        Paging::ANY
    }

    fn pte_flags_base(&self) -> PteFlags {
        PteFlags::empty()
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        self.cpus.ticks()
    }

    fn cpu_init(&self, pcpu: KPtr<Pcpu>) {
        unreachable!("CPUs are made by the model: {}", pcpu.addr())
    }

    fn pcpu(&self) -> KPtr<Pcpu> {
        self.cpus.pcpu()
    }

    fn current_thread(&self) -> KPtr<Thread> {
        self.cpus.current_thread()
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        self.cpus.cpu_adopt(thread);
    }

    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        self.cpus.cpu_interrupt(pcpu);
    }

    fn cpu_spinwait(&self, _spins: u64) {
        thread::yield_now();
    }

    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        _stack: Range<GuestVirt>,
        _start: ThreadStart<Self>,
        _arg: u64,
    ) {
        unreachable!("threads are made by the model: {}", thread.addr())
    }

    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>) {
        self.cpus.cpu_switch(from, to);
    }

    fn cpu_throw(&self, from: KPtr<Thread>, to: KPtr<Thread>) -> ! {
        self.cpus.cpu_throw(from, to)
    }

    fn cpu_idle(&self, _vm: &Vm<Self>) {
        unreachable!("idle threads never sleep")
    }

    fn intr_disable(&self) {
        self.cpus.intr_disable();
    }

    fn intr_restore(&self) {
        self.cpus.intr_restore();
    }
}
