//! One CPU or two with interrupts that may arrive at any moment, and nothing else: no page tables,
//! no pages.
//!
//! Kernel threads are threads of loom; each CPU runs one, and the others are parked. One more
//! thread is the source of interrupts: it raises a flag, and loom tries every moment for that. A
//! CPU reads its flag wherever an interrupt could make a difference: just before interrupts are
//! deferred, and when they are allowed again. Between two such places the kernel reads nothing that
//! a handler may change. Two CPUs interrupt each other's idle threads, and loom watches the words
//! of the mutexes, the words that tell a CPU to switch, and the idle states of the CPUs.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use loom::thread;
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::atomic::watched::Watched;
use vmkern_abi::kva::phys_to_dmap;
use vmkern_abi::layout::{Pcpu, Spread, Sx, Thread, ThreadState};

use super::bare::Bare;
use crate::kern::Kern;
use crate::kern::idle::{IdleCpu, Polling};
use crate::kern::mp::idle_tid;
use crate::kern::sched::{PRI_MAX_IDLE, PUSER};
use crate::kern::thread::THREAD0_TID;
use crate::machine::{self, ThreadStart};

/// The kernel's global variables.
const ROOTS: GuestPhys = GuestPhys::new(PAGE_SIZE);
/// Threads.
const THREADS: GuestPhys = GuestPhys::new(2 * PAGE_SIZE);
/// Sleep queues.
const QUEUES: GuestPhys = GuestPhys::new(3 * PAGE_SIZE);
/// A lock.
const LOCKS: GuestPhys = GuestPhys::new(4 * PAGE_SIZE);
/// The CPUs' structures, a page each.
const PCPU: GuestPhys = GuestPhys::new(5 * PAGE_SIZE);
/// Most CPUs.
const CPUS: usize = 2;
/// Pages of memory.
const PAGES: usize = 5 + CPUS;

/// An interrupt from the source, which runs the handler.
const SOURCE: u32 = 1 << 0;
/// An interrupt from the other CPU.
const RESCHED: u32 = 1 << 1;

/// Unwinds a thread that has exited.
struct Gone;

/// The work of an interrupt.
type Handler = fn(&Kern<Cpu>);

/// How the idle thread waits for work: its idle state, whether it has work, what interrupts it now,
/// and its halt.
pub type Rest =
    fn(idle: &IdleCpu, has_work: &dyn Fn() -> bool, interrupts: &dyn Fn(), halt: &dyn Fn());

/// The state of one CPU.
#[derive(Default)]
struct Own {
    /// How often interrupts are deferred.
    depth: AtomicU64,
    /// Interrupts that have arrived and are not handled yet. loom watches it.
    raised: loom::sync::atomic::AtomicU32,
    idle: IdleCpu,
    /// The thread that waits for the next interrupt: the idle thread, while the CPU is halted.
    halted: Mutex<Option<thread::Thread>>,
}

/// A loom thread that is a kernel thread.
struct Life {
    thread: KPtr<Thread>,
    handle: thread::Thread,
    /// The CPU on which it runs, or ran last.
    cpu: usize,
    /// Whether it runs.
    runs: bool,
}

/// The machine of these models.
pub type Cpu = Bare<Threads>;

/// The CPUs, and the kernel threads that run on them.
pub struct Threads {
    own: [Own; CPUS],
    /// The kernel threads, by their loom threads.
    lives: Mutex<HashMap<thread::ThreadId, Life>>,
    ticks: AtomicU64,
    handler: Handler,
    kern: OnceLock<Weak<Kern<Cpu>>>,
}

impl Threads {
    fn lives(&self) -> std::sync::MutexGuard<'_, HashMap<thread::ThreadId, Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The CPU that runs the calling thread.
    fn number(&self) -> usize {
        self.lives()[&thread::current().id()].cpu
    }

    fn own(&self) -> &Own {
        &self.own[self.number()]
    }

    fn kern(&self) -> Arc<Kern<Cpu>> {
        self.kern.get().and_then(Weak::upgrade).expect("the system is up")
    }

    /// Makes `handle` a kernel thread.
    fn bear(&self, thread: KPtr<Thread>, handle: thread::Thread, cpu: usize, runs: bool) {
        self.lives().insert(handle.id(), Life { thread, handle, cpu, runs });
    }

    /// Switches the calling thread's CPU to `to`.
    fn give(&self, to: KPtr<Thread>) {
        let cpu = self.number();
        let mut lives = self.lives();
        if let Some(from) = lives.get_mut(&thread::current().id()) {
            from.runs = false;
        }
        let to = lives.values_mut().find(|life| life.thread == to).expect("the thread has a life");
        (to.cpu, to.runs) = (cpu, true);
        let handle = to.handle.clone();
        drop(lives);
        handle.unpark();
    }

    /// Waits until the calling thread has a CPU.
    fn wait_for_cpu(&self) {
        while !self.lives().get(&thread::current().id()).is_some_and(|life| life.runs) {
            thread::park();
        }
    }

    /// Handles the interrupts that have arrived at this CPU. Returns whether there were any.
    fn take_interrupts(&self, kern: &Kern<Cpu>) -> bool {
        let own = self.own();
        let raised = own.raised.swap(0, Ordering::SeqCst);
        if raised == 0 {
            return false;
        }
        own.idle.disarm();
        kern.intr_enter();
        if raised & SOURCE != 0 {
            (self.handler)(kern);
        }
        kern.intr_exit();
        true
    }

    /// A place where an interrupt may arrive. May switch.
    fn interrupt_point(&self) {
        let kern = self.kern();
        if self.own().depth.load(Ordering::Relaxed) != 0
            || kern.in_interrupt()
            || std::thread::panicking()
        {
            return;
        }
        if self.take_interrupts(&kern) {
            kern.preempt();
        }
    }

    /// A place where a thread may be interrupted. With two CPUs, only the idle threads are
    /// interrupted, at places of their own: there are more than enough orders of events without
    /// this.
    fn interrupt_thread(&self) {
        if self.kern().cnt().ncpu.get() == 1 {
            self.interrupt_point();
        }
    }

    /// Halts the calling thread's CPU until an interrupt arrives, unless one has arrived since it
    /// was armed.
    fn halt(&self) {
        let (kern, own) = (self.kern(), self.own());
        while own.idle.is_armed() && !self.take_interrupts(&kern) {
            // No other thread runs between the last read of `raised` and the park.
            *own.halted.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
            thread::park();
        }
    }

    /// Interrupts CPU `cpu`.
    fn raise(&self, cpu: usize, interrupt: u32) {
        // A read-modify-write, as the CPU's: loom may put a plain store before a swap that has
        // happened.
        self.own[cpu].raised.fetch_or(interrupt, Ordering::SeqCst);
        let halted = self.own[cpu].halted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(halted) = halted {
            halted.unpark();
        }
    }
}

impl machine::Cpu for Cpu {
    type System = Kern<Self>;

    fn is_unwinding(&self) -> bool {
        std::thread::panicking()
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    fn micros(&self) -> u64 {
        self.ticks() * 1000
    }

    fn cpu_init(&self, pcpu: KPtr<Pcpu>) {
        unreachable!("CPUs are made by the model: {}", pcpu.addr())
    }

    fn pcpu(&self) -> KPtr<Pcpu> {
        pcpu(self.number())
    }

    fn cpu_interrupt(&self, pcpu: &Pcpu) {
        let cpu = pcpu.cpuid.get() as usize;
        if self.own[cpu].idle.must_be_interrupted() {
            self.raise(cpu, RESCHED);
        }
    }

    fn current_thread(&self) -> KPtr<Thread> {
        self.lives().get(&thread::current().id()).map_or(KPtr::NULL, |life| life.thread)
    }

    fn cpu_adopt(&self, thread: KPtr<Thread>) {
        self.bear(thread, thread::current(), 0, true);
    }

    fn cpu_spinwait(&self, _spins: u64) {
        thread::yield_now();
    }

    fn cpu_fork(
        &self,
        thread: KPtr<Thread>,
        _stack: Range<GuestVirt>,
        _start: ThreadStart<Self::System>,
        _arg: u64,
    ) {
        unreachable!("threads are made by the model: {}", thread.addr())
    }

    fn cpu_switch(&self, from: KPtr<Thread>, to: KPtr<Thread>) {
        assert_eq!(
            self.own().depth.load(Ordering::Relaxed),
            1,
            "depth of interrupt deferral at a switch"
        );
        assert_eq!(from, self.current_thread());
        // As the kernel's switch does.
        self.own().idle.set_polling(Polling::No);
        self.own().idle.disarm();
        self.give(to);
        self.wait_for_cpu();
    }

    fn cpu_throw(&self, _from: KPtr<Thread>, to: KPtr<Thread>) -> ! {
        assert_eq!(
            self.own().depth.load(Ordering::Relaxed),
            1,
            "depth of interrupt deferral at a switch"
        );
        self.give(to);
        resume_unwind(Box::new(Gone))
    }

    fn cpu_idle(&self, _kern: &Kern<Self>) {
        unreachable!("idle threads never sleep")
    }

    fn intr_disable(&self) {
        self.interrupt_thread();
        self.own().depth.fetch_add(1, Ordering::Relaxed);
    }

    fn intr_restore(&self) {
        self.own().depth.fetch_sub(1, Ordering::Relaxed);
        self.interrupt_thread();
    }
}

/// The structure of CPU `number`.
fn pcpu(number: usize) -> KPtr<Pcpu> {
    KPtr::new(phys_to_dmap(PCPU.add(number as u64 * PAGE_SIZE)))
}

/// A kernel that has threads and nothing else.
pub struct Kernel {
    kern: Arc<Kern<Cpu>>,
    spawned: Vec<thread::JoinHandle<()>>,
    threads: u32,
    interrupts: Option<thread::JoinHandle<()>>,
    /// The second CPU's idle thread, and how idle threads wait.
    second: Option<(thread::JoinHandle<()>, Rest)>,
    /// Whether the second CPU must end.
    stop: Count,
    _watched: Vec<Watched>,
}

impl Kernel {
    /// A kernel on the calling thread, which becomes the idle thread. Interrupts do `handler`.
    pub fn new(handler: Handler) -> Self {
        let threads = Threads {
            own: Default::default(),
            lives: Mutex::default(),
            ticks: AtomicU64::new(0),
            handler,
            kern: OnceLock::new(),
        };
        let kern = Arc::new(Kern::new(Bare::new(threads, PAGES), ROOTS));
        assert!(kern.machine().kern.set(Arc::downgrade(&kern)).is_ok());
        kern.cnt().hz.set(100);
        kern.cnt().ncpu.set(1);
        let mut kernel = Self {
            kern,
            spawned: Vec::new(),
            threads: 0,
            interrupts: None,
            second: None,
            stop: Count::default(),
            _watched: Vec::new(),
        };
        kernel.kern.state().cpuhead.set(pcpu(0));
        let idle = kernel.idle_thread(0, THREAD0_TID);
        machine::Cpu::cpu_adopt(kernel.kern.machine(), idle);
        kernel
    }

    /// A kernel on two CPUs, whose idle threads wait as `rest` says.
    pub fn on_two_cpus(handler: Handler, rest: Rest) -> Self {
        let mut kernel = Self::new(handler);
        let kern = Arc::clone(&kernel.kern);
        kern.get(pcpu(1)).cpuid.set(1);
        kern.get(pcpu(0)).allcpu_next.set(pcpu(1));
        kern.cnt().ncpu.set(2);
        kern.sched_spread(Spread::Yes);
        let idle = kernel.idle_thread(1, idle_tid(1));
        let (state, cpus) = (kern.state(), [0, 1].map(|number| kern.get(pcpu(number))));
        kernel._watched.extend([state.sched.lock.owner.watch(), state.driver_mtx.owner.watch()]);
        kernel._watched.extend(cpus.map(|cpu| cpu.need_resched.watch()));
        kernel._watched.extend(kern.machine().own.iter().flat_map(|own| own.idle.watch()));
        let (stop, life) = (kernel.stop.clone(), Arc::clone(&kern));
        let second = thread::spawn(move || {
            life.machine().wait_for_cpu();
            idle_loop(&life, rest, || stop.get() != 0);
        });
        kern.machine().bear(idle, second.thread().clone(), 1, true);
        second.thread().unpark();
        kernel.second = Some((second, rest));
        kernel
    }

    /// The idle thread of CPU `cpu`, which runs it.
    fn idle_thread(&mut self, cpu: usize, tid: u32) -> KPtr<Thread> {
        let idle = self.thread(tid, PRI_MAX_IDLE);
        let t = self.kern.get(idle);
        t.state.put(ThreadState::Running);
        t.lastcpu.set(u8::try_from(cpu).expect("a small number"));
        let cpu = self.kern.get(pcpu(cpu));
        cpu.curthread.set(idle);
        cpu.idlethread.set(idle);
        idle
    }

    /// A lock for the use of maps.
    pub fn sx(&self) -> KPtr<Sx> {
        KPtr::new(phys_to_dmap(LOCKS))
    }

    /// The structure of a new thread with a sleep queue of its own.
    fn thread(&mut self, tid: u32, priority: u8) -> KPtr<Thread> {
        let number = u64::from(self.threads);
        self.threads += 1;
        let thread: KPtr<Thread> =
            KPtr::new(phys_to_dmap(THREADS.add(number * size_of::<Thread>() as u64)));
        let t = self.kern.get(thread);
        t.tid.set(tid);
        t.priority.set(priority);
        t.base_priority.set(priority);
        t.sleepqueue.set(KPtr::new(phys_to_dmap(QUEUES.add(number * 64))));
        self.kern.thread_link(thread);
        thread
    }

    /// Creates a thread that runs `body` when it first gets a CPU.
    pub fn spawn(&mut self, tid: u32, body: impl FnOnce(&Kern<Cpu>) + 'static) {
        self.spawn_on(0, tid, body);
    }

    /// [`Kernel::spawn`] for a thread that goes to CPU `cpu` if that is idle.
    pub fn spawn_on(&mut self, cpu: usize, tid: u32, body: impl FnOnce(&Kern<Cpu>) + 'static) {
        let thread = self.thread(tid, PUSER);
        self.kern.get(thread).lastcpu.set(u8::try_from(cpu).expect("a small number"));
        let kern = Arc::clone(&self.kern);
        let life = move || {
            kern.machine().wait_for_cpu();
            let whole = || {
                kern.arrive();
                kern.sched_unlock();
                body(&kern);
                kern.kthread_exit()
            };
            let Err(payload) = catch_unwind(AssertUnwindSafe(whole));
            if !payload.is::<Gone>() {
                resume_unwind(payload);
            }
        };
        let spawned = thread::spawn(life);
        self.kern.machine().bear(thread, spawned.thread().clone(), cpu, false);
        self.spawned.push(spawned);
        self.kern.sched_lock();
        self.kern.setrunnable(thread);
        self.kern.sched_unlock();
    }

    /// Lets up to `count` interrupts arrive from now on.
    pub fn interrupt(&mut self, count: u32) {
        let kern = Arc::clone(&self.kern);
        self.interrupts = Some(thread::spawn(move || {
            for _ in 0..count {
                kern.machine().raise(0, SOURCE);
            }
        }));
    }

    /// Lets threads run until all have exited and all interrupts have arrived. Stops the model when
    /// a thread sleeps for ever.
    pub fn finish(mut self) {
        self.run();
        if let Some(interrupts) = self.interrupts.take() {
            interrupts.join().expect("interrupts end well");
        }
        self.kern.machine().interrupt_point();
        self.run();
        // If a thread still waits for the clock, the clock ticks.
        while self.kern.next_timeout().is_some() {
            self.kern.intr_enter();
            clock(&self.kern);
            self.kern.intr_exit();
            self.run();
        }
        let stuck = left(&self.kern);
        assert!(stuck.is_empty(), "threads {stuck:?} sleep for ever");
        self.spawned.drain(..).for_each(|spawned| spawned.join().expect("threads end well"));
        if let Some((second, _)) = self.second.take() {
            self.stop.set(1);
            self.kern.machine().raise(1, RESCHED);
            second.join().expect("the second CPU ends well");
        }
    }

    /// Lets threads run: on one CPU until none can, on two until all have exited.
    fn run(&self) {
        match self.second {
            Some((_, rest)) => idle_loop(&self.kern, rest, || left(&self.kern).is_empty()),
            None => {
                while self.kern.runnable() {
                    self.kern.sched_yield();
                }
            }
        }
    }
}

/// Threads that are not idle threads.
fn left(kern: &Kern<Cpu>) -> Vec<u32> {
    let all = kern.threads().map(|thread| kern.get(thread).tid.get());
    all.filter(|&tid| tid != THREAD0_TID && tid != idle_tid(1)).collect()
}

/// The main loop of an idle thread, until the end of the model.
fn idle_loop(kern: &Kern<Cpu>, rest: Rest, is_over: impl Fn() -> bool) {
    let machine = kern.machine();
    while !is_over() {
        rest(
            &machine.own().idle,
            &|| kern.switch_owed() || is_over(),
            &|| machine.interrupt_point(),
            &|| machine.halt(),
        );
        if kern.switch_owed() {
            kern.sched_yield();
        }
    }
}

/// A tick of the clock, and the end of the running thread's time slice.
pub fn clock(kern: &Kern<Cpu>) {
    let now = kern.machine().ticks.fetch_add(1, Ordering::Relaxed) + 1;
    kern.hardclock(now);
    kern.end_slice();
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
