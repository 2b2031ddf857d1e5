//! One CPU with interrupts that may come at any moment, and nothing else: no page tables, no pages.
//!
//! Kernel threads are loom's, of which one has the CPU; the others are parked. A further one is the source of interrupts: it
//! raises a flag, and loom tries every moment for that. The CPU looks at the flag wherever an interrupt could change what
//! happens: just before interrupts are deferred, and when they are let in again. Between two such places the kernel
//! looks at nothing that a handler may change.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use loom::thread;
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{Pcpu, Sx, Thread, ThreadState};
use vmkern_abi::pte::{NPTEPG, PteFlags};

use crate::kern::sched::{PRI_MAX_IDLE, PUSER};
use crate::kern::thread::THREAD0_TID;
use crate::machine::{Machine, ThreadStart};
use crate::num::to_usize;
use crate::vm::Vm;

/// The kernel's global variables.
const ROOTS: GuestPhys = GuestPhys::new(PAGE_SIZE);
/// Threads.
const THREADS: GuestPhys = GuestPhys::new(2 * PAGE_SIZE);
/// Sleep queues.
const QUEUES: GuestPhys = GuestPhys::new(3 * PAGE_SIZE);
/// A lock.
const LOCKS: GuestPhys = GuestPhys::new(4 * PAGE_SIZE);
/// The CPU's structure.
const PCPU: GuestPhys = GuestPhys::new(5 * PAGE_SIZE);
/// Pages of memory.
const PAGES: usize = 6;

/// A page of memory.
#[repr(align(4096))]
struct Page([AtomicU64; NPTEPG]);

/// Unwinds a thread that has exited.
struct Gone;

/// What an interrupt does.
type Handler = fn(&Vm<Cpu>);

/// The CPU.
pub struct Cpu {
    memory: Vec<Page>,
    /// Who has the CPU.
    current: AtomicU64,
    parked: Mutex<BTreeMap<u64, thread::Thread>>,
    /// How often interrupts are deferred.
    depth: AtomicU64,
    ticks: AtomicU64,
    /// Whether an interrupt has come that was not handled. The one word that loom watches.
    raised: loom::sync::atomic::AtomicBool,
    handler: Handler,
    vm: OnceLock<Weak<Vm<Self>>>,
}

impl Cpu {
    fn give(&self, to: KPtr<Thread>) {
        let to = to.addr().get();
        self.current.store(to, Ordering::Relaxed);
        if let Some(parked) = self.parked.lock().unwrap_or_else(PoisonError::into_inner).get(&to) {
            parked.unpark();
        }
    }

    fn wait_for(&self, me: KPtr<Thread>) {
        while self.current_thread() != me {
            thread::park();
        }
    }

    /// A place where an interrupt may come. May switch.
    fn interrupt_point(&self) {
        let vm = self.vm.get().and_then(Weak::upgrade).expect("the system is up");
        if self.depth.load(Ordering::Relaxed) != 0 || vm.in_interrupt() || std::thread::panicking() {
            return;
        }
        if self.raised.swap(false, Ordering::SeqCst) {
            vm.intr_enter();
            (self.handler)(&vm);
            vm.intr_exit();
            vm.preempt();
        }
    }
}

#[expect(unsafe_code, reason = "the trait is a promise about memory")]
// SAFETY: `frame` gives the same place in a page of atomics that lives as long as the machine for the same address, and
// `window` alone makes references into it.
unsafe impl Machine for Cpu {
    fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        let page = NonNull::from(&self.memory[to_usize(pa.pfn())].0).cast::<u8>();
        // SAFETY: the offset is smaller than the page.
        unsafe { page.add(to_usize(pa.page_offset())) }
    }

    fn zero_page(&self, pa: GuestPhys) {
        unreachable!("nobody has pages here: {pa}")
    }

    fn invalidate_range(&self, start: GuestVirt, _end: GuestVirt) {
        unreachable!("nothing is mapped here: {start}")
    }

    fn pte_flags_base(&self) -> PteFlags {
        PteFlags::empty()
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    fn cpu_init(&self, pcpu: KPtr<Pcpu>) {
        unreachable!("there is one CPU, at {}", pcpu.addr())
    }

    fn pcpu(&self) -> KPtr<Pcpu> {
        KPtr::new(phys_to_dmap(PCPU))
    }

    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        unreachable!("there is one CPU, not {}", pcpu.cpuid.get())
    }

    fn cpu_spinwait(&self, spins: u64) {
        unreachable!("there is one CPU, which waits for itself: {spins}")
    }

    fn current_thread(&self) -> KPtr<Thread> {
        KPtr::new(GuestVirt::new(self.current.load(Ordering::Relaxed)))
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        self.current.store(thread.addr().get(), Ordering::Relaxed);
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).insert(thread.addr().get(), thread::current());
    }

    fn cpu_fork(&self, thread: KPtr<Thread>, _stack: Range<GuestVirt>, _start: ThreadStart<Self>, _arg: u64) {
        unreachable!("threads are made by Kernel::spawn: {}", thread.addr())
    }

    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>) {
        assert_eq!(self.depth.load(Ordering::Relaxed), 1, "depth of interrupt deferral at a switch");
        self.give(to);
        self.wait_for(from);
    }

    fn cpu_throw(&self, _from: KPtr<Thread>, to: KPtr<Thread>) -> ! {
        self.give(to);
        resume_unwind(Box::new(Gone))
    }

    fn cpu_idle(&self, _vm: &Vm<Self>) {
        unreachable!("the idle thread never sleeps")
    }

    fn intr_disable(&self) {
        self.interrupt_point();
        self.depth.fetch_add(1, Ordering::Relaxed);
    }

    fn intr_restore(&self) {
        self.depth.fetch_sub(1, Ordering::Relaxed);
        self.interrupt_point();
    }
}

/// A kernel that has threads and nothing else.
pub struct Kernel {
    vm: Arc<Vm<Cpu>>,
    spawned: Vec<thread::JoinHandle<()>>,
    threads: u32,
    interrupts: Option<thread::JoinHandle<()>>,
}

impl Kernel {
    /// A kernel on the calling thread, which becomes the idle thread. Interrupts do `handler`.
    pub fn new(handler: Handler) -> Self {
        let cpu = Cpu {
            memory: (0..PAGES).map(|_| Page([const { AtomicU64::new(0) }; NPTEPG])).collect(),
            current: AtomicU64::new(0),
            parked: Mutex::default(),
            depth: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            raised: loom::sync::atomic::AtomicBool::new(false),
            handler,
            vm: OnceLock::new(),
        };
        let vm = Arc::new(Vm::over(cpu, ROOTS));
        assert!(vm.machine().vm.set(Arc::downgrade(&vm)).is_ok());
        vm.cnt().hz.set(100);
        vm.cnt().ncpu.set(1);
        let mut kernel = Self { vm, spawned: Vec::new(), threads: 0, interrupts: None };
        kernel.vm.state().cpuhead.set(kernel.vm.machine().pcpu());
        let idle = kernel.thread(THREAD0_TID, PRI_MAX_IDLE);
        let cpu = kernel.vm.boot_pcpu();
        cpu.curthread.set(idle);
        cpu.idlethread.set(idle);
        kernel.vm.get(idle).state.set(ThreadState::Running as u32);
        kernel.vm.machine().cpu_adopt(idle);
        kernel
    }

    /// A lock for maps' purposes.
    pub fn sx(&self) -> KPtr<Sx> {
        KPtr::new(phys_to_dmap(LOCKS))
    }

    /// The structure of a new thread with a sleep queue of its own.
    fn thread(&mut self, tid: u32, priority: u8) -> KPtr<Thread> {
        let number = u64::from(self.threads);
        self.threads += 1;
        let thread: KPtr<Thread> = KPtr::new(phys_to_dmap(THREADS.add(number * size_of::<Thread>() as u64)));
        let t = self.vm.get(thread);
        t.tid.set(tid);
        t.priority.set(priority);
        t.base_priority.set(priority);
        t.sleepqueue.set(KPtr::new(phys_to_dmap(QUEUES.add(number * 64))));
        self.vm.thread_link(thread);
        thread
    }

    /// Makes a thread that does `body` when it first gets the CPU.
    pub fn spawn(&mut self, tid: u32, body: impl FnOnce(&Vm<Cpu>) + 'static) {
        let thread = self.thread(tid, PUSER);
        let vm = Arc::clone(&self.vm);
        let life = move || {
            vm.machine().wait_for(thread);
            let whole = || {
                vm.arrive();
                vm.sched_unlock();
                body(&vm);
                vm.kthread_exit()
            };
            let Err(payload) = catch_unwind(AssertUnwindSafe(whole));
            if !payload.is::<Gone>() {
                resume_unwind(payload);
            }
        };
        let spawned = thread::spawn(life);
        let cpu = self.vm.machine();
        cpu.parked.lock().unwrap_or_else(PoisonError::into_inner).insert(thread.addr().get(), spawned.thread().clone());
        self.spawned.push(spawned);
        self.vm.sched_lock();
        self.vm.setrunnable(thread);
        self.vm.sched_unlock();
    }

    /// Has up to `count` interrupts come from now on.
    pub fn interrupt(&mut self, count: u32) {
        let vm = Arc::clone(&self.vm);
        self.interrupts = Some(thread::spawn(move || {
            for _ in 0..count {
                // A swap, as the CPU's: loom may put a plain store before a swap that has happened.
                vm.machine().raised.swap(true, Ordering::SeqCst);
            }
        }));
    }

    /// Lets threads run until all have exited and all interrupts have come. Stops the model when a thread sleeps for ever.
    pub fn finish(mut self) {
        self.run();
        if let Some(interrupts) = self.interrupts.take() {
            interrupts.join().expect("interrupts end well");
        }
        self.vm.machine().interrupt_point();
        self.run();
        // Whoever still waits for the clock has it tick.
        while self.vm.next_timeout().is_some() {
            self.vm.intr_enter();
            clock(&self.vm);
            self.vm.intr_exit();
            self.run();
        }
        let left = self.vm.threads().filter(|&thread| thread != self.vm.current_thread());
        let stuck: Vec<u32> = left.map(|thread| self.vm.get(thread).tid.get()).collect();
        assert!(stuck.is_empty(), "threads {stuck:?} sleep for ever");
        self.spawned.drain(..).for_each(|spawned| spawned.join().expect("threads end well"));
    }

    fn run(&self) {
        while self.vm.runnable() {
            self.vm.sched_yield();
        }
    }
}

/// A tick of the clock, and the end of the running thread's time slice.
pub fn clock(vm: &Vm<Cpu>) {
    let now = vm.machine().ticks.fetch_add(1, Ordering::Relaxed) + 1;
    vm.hardclock(now);
    vm.end_slice();
}

/// A count that threads share.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicU32>);

impl Count {
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }
}
