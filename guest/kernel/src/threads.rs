//! Kernel threads on the real CPU: the machine's side of `kmem`'s scheduler, and the effects of
//! interrupts on threads.

use core::ops::Range;

use kmem::kern::Kern;
use kmem::machine::{AllocClass, ThreadStart};
use kmem::vm::Wait;
use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::boot::TimeMode;
use vmkern_abi::layout::md::{ARG, DEPTH, HIGH, LOW, RSP, SLOT, SLOTS, SLOTS_END, START};
use vmkern_abi::layout::{Pcpu, Spread, Thread};

use crate::arch::clock::{self, Clock};
use crate::arch::interrupt::Deferred;
use crate::arch::percpu::{NEVER, PerCpu, Polling, StackBounds, Stacks};
use crate::arch::stack::Stack;
use crate::arch::switch::{self, Context};
use crate::arch::{ap, cpus, instr, interrupt, tlb};
use crate::memory::{KernelMachine, KernelVm, vm};
use crate::once::Once;
use crate::service;

static CLOCK: Once<Clock> = Once::new();

/// Sets the kernel's clock, once.
pub fn set_clock(clock: Clock) -> &'static Clock {
    CLOCK.set(clock)
}

/// The kernel's clock, once it runs.
pub fn clock() -> Option<&'static Clock> {
    CLOCK.get()
}

/// Ensures that the timer of the CPU of `pcpu` fires when it is needed (`Cpu::clock_needed`): at
/// the end of a time slice if threads wait there, and at the latest at tick `due`, when the first
/// time-out is due. Virtual time does not pass while a thread runs, so only threads that wait for
/// the CPU matter. Another CPU is asked to set its own timer. Interrupts are deferred.
pub fn need_timer(pcpu: &Pcpu, due: Option<u64>) {
    let Some(clock) = clock() else { return };
    let due =
        due.filter(|_| clock.mode() == TimeMode::Real).map_or(NEVER, |tick| clock.tsc_of(tick));
    let cpu = PerCpu::current();
    let is_here = pcpu.cpuid.get() == cpu.number();
    let slice = if pcpu.runq.status.get() == 0 {
        NEVER
    } else if is_here && cpu.slice_end() != NEVER {
        cpu.slice_end()
    } else {
        instr::rdtsc() + clock.slice_cycles()
    };
    let at = due.min(slice);
    if !is_here {
        if at != NEVER {
            cpus::ask_for_timer(pcpu.cpuid.get(), at);
        }
        return;
    }
    cpu.set_slice_end(slice);
    if at < cpu.timer_at() {
        clock::fire_at(clock, at);
    }
}

/// The work of an interrupt, with further ones deferred.
pub fn handle_interrupt(which: Deferred) {
    let Some(vm) = vm() else { return };
    vm.intr_enter();
    match which {
        Deferred::Timer => timer(vm),
        // The halted CPU is awake, and the bell has no other purpose.
        Deferred::Doorbell => {}
        Deferred::Pages => vm.vm_pages_returned(),
        Deferred::Device => crate::balloon::wake(vm),
        Deferred::Operation => service::operate_in_interrupt(vm),
        // The CPU is awake, and gives way below. Or its timer is needed.
        Deferred::Resched => vm.ask_for_clock(),
        // Not for the scheduler: the CPU has paused, or flushed, before it gets here.
        Deferred::Pause | Deferred::Shootdown => {}
    }
    vm.intr_exit();
}

/// The timer's interrupt: in real time, the CPU that booted wakes the threads whose time-outs are
/// due, and the running thread's slice may be over. The timer is set again if it is still needed.
fn timer(vm: &KernelVm) {
    let Some(clock) = clock() else { return };
    let cpu = PerCpu::current();
    clock::timer_is_over();
    if cpu.number() == 0 && clock.mode() == TimeMode::Real {
        vm.hardclock(clock.ticks());
    }
    if cpu.slice_end() <= instr::rdtsc() {
        cpu.set_slice_end(NEVER);
        vm.end_slice();
    }
    vm.ask_for_clock();
}

/// In real time, wakes the threads whose time-outs are due: on the CPU that booted while it is
/// idle, when its timer may be stopped.
pub fn keep_time(vm: &KernelVm, clock: &Clock) {
    if clock.mode() == TimeMode::Real && clock.ticks() != vm.cnt().ticks.get() {
        vm.hardclock(clock.ticks());
    }
}

/// Whether [`preempt`] would do anything.
#[inline]
pub fn switch_owed() -> bool {
    vm().is_some_and(|vm| vm.switch_owed())
}

/// Switches to a thread that should run instead, if there is one. Nothing is deferred.
pub fn preempt() {
    if let Some(vm) = vm()
        && vm.switch_owed()
    {
        vm.preempt();
    }
}

/// Starts CPUs 1 to `count - 1`, one after the other: each runs its idle thread before the next
/// begins. Panics when there is no memory for one, or it does not start in time.
pub fn start_cpus(vm: &KernelVm, count: u32) {
    cpus::expect(count);
    if clock().is_some_and(|clock| clock.mode() == TimeMode::Real) {
        vm.sched_spread(Spread::Yes);
    }
    for number in 1..count {
        // 1. The idle thread's name.
        let digits = [
            b'0' + u8::try_from(number / 10).unwrap_or(0),
            b'0' + u8::try_from(number % 10).unwrap_or(0),
        ];
        let mut name = *b"idle\0\0";
        let digits = if number < 10 { &digits[1..] } else { &digits[..] };
        name[4..4 + digits.len()].copy_from_slice(digits);
        let name = str::from_utf8(&name[..4 + digits.len()]).unwrap_or("idle");
        // 2. Memory: the kernel's structures with the idle thread's stack, and another stack.
        let (Ok((pcpu, idle)), Ok((low, pages))) =
            (vm.cpu_add(number, name), vm.vm_thread_new(AllocClass::System, Wait::No))
        else {
            panic!("boot: no memory for CPU {number}");
        };
        let t = vm.get(idle);
        let kstack =
            t.kstack.get()..t.kstack.get().add(u64::from(t.kstack_pages.get()) * PAGE_SIZE);
        // 3. The last page of the other stack is the CPU's own structure, the rest its stack for
        // crashes.
        let page = low.add((pages - 1) * PAGE_SIZE);
        let at = |start: GuestVirt, end: GuestVirt| {
            Stack::new(start.get() as *const u8, usize::try_from(end.since(start)).unwrap_or(0))
        };
        let slots = GuestVirt::new(kstack.end.get() - switch::TRAP_PAGE);
        let stacks = Stacks {
            body: at(kstack.start, slots),
            trap: at(slots, kstack.end),
            emergency: at(low, page),
        };
        // SAFETY: both stacks were made for this CPU, which never ends.
        let cpu = unsafe { PerCpu::install(page, number, stacks, idle, pcpu) };
        adopt(cpu, idle);
        // 4. The CPU begins. It is in the lists of CPUs and threads already. Nothing, including the
        // host, may read these before they are true.
        if let Err(why) = ap::start(cpu, || vm.cpu_has_started(pcpu)) {
            panic!("boot: CPU {number}: {why:?}");
        }
    }
}

/// Cycles for which an idle CPU polls for work before it halts: about the cost of an interrupt from
/// another CPU.
const IDLE_SPIN: u64 = 100_000;

/// The main loop of a CPU that did not boot, in its idle thread.
pub fn run_other_cpu() -> ! {
    let vm = vm().unwrap_or_else(|| panic!("a CPU without a memory system"));
    vm.cpu_started();
    let cpu = PerCpu::current();
    loop {
        let start = instr::rdtsc();
        let go_on = || {
            tlb::poll();
            core::hint::spin_loop();
            instr::rdtsc() - start < IDLE_SPIN
        };
        cpu.idle().rest(|| vm.switch_owed(), go_on, interrupt::halt);
        if vm.switch_owed() {
            vm.sched_yield();
        }
    }
}

/// The structure of a thread. Unlike `Vm::get` this works while the memory system is still being
/// set up.
fn structure(thread: KPtr<Thread>) -> &'static Thread {
    // SAFETY: threads lie in the direct map, which maps all RAM for ever, and are made of atomic
    // words; the scheduler passes no null pointer.
    unsafe { &*(thread.addr().get() as *const Thread) }
}

fn save(thread: &Thread, context: &Context) {
    thread.md[RSP].set(context.rsp);
    thread.md[SLOT].set(context.slot);
    thread.md[LOW].set(context.bounds.low);
    thread.md[HIGH].set(context.bounds.high);
    thread.md[SLOTS].set(context.bounds.slots);
    thread.md[SLOTS_END].set(context.bounds.slots_end);
    thread.md[DEPTH].set(context.mask_depth.into());
}

fn load(thread: &Thread) -> Context {
    let word = |index: usize| thread.md[index].get();
    Context {
        rsp: word(RSP),
        slot: word(SLOT),
        bounds: StackBounds {
            low: word(LOW),
            high: word(HIGH),
            slots: word(SLOTS),
            slots_end: word(SLOTS_END),
        },
        mask_depth: u32::try_from(word(DEPTH)).unwrap_or(1),
    }
}

/// Makes `thread` the thread that `cpu` runs on its current stack (`Cpu::cpu_adopt`), and records
/// that stack: a reader that searches the thread's stack needs it even before the first switch. Its
/// stack pointer is 0 until then.
pub fn adopt(cpu: &PerCpu, thread: KPtr<Thread>) {
    cpu.set_thread(thread);
    save(
        structure(thread),
        &Context { rsp: 0, slot: cpu.trap_slot(), bounds: cpu.stack_bounds(), mask_depth: 1 },
    );
}

/// Prepares `thread`'s first switch (`Cpu::cpu_fork`): records its function and argument. Its stack
/// is not touched yet, and its stack pointer is 0.
pub fn fork(
    thread: KPtr<Thread>,
    stack: &Range<GuestVirt>,
    start: ThreadStart<KernelVm>,
    arg: u64,
) {
    let t = structure(thread);
    t.md[RSP].set(0);
    t.md[START].set(start as usize as u64);
    t.md[ARG].set(arg);
    t.md[LOW].set(stack.start.get());
    t.md[SLOTS_END].set(stack.end.get());
}

/// The context with which `thread` continues, or begins.
fn resume(thread: KPtr<Thread>) -> Context {
    let t = structure(thread);
    if t.md[RSP].get() == 0 {
        let (low, high) = (t.md[LOW].get(), t.md[SLOTS_END].get());
        // SAFETY: `kmem` has handed over a mapped stack of the thread's own for its life.
        let context =
            unsafe { Context::new(low, high, begin, [thread.addr().get(), t.md[ARG].get()]) };
        save(t, &context);
    }
    load(t)
}

/// First function of a thread.
extern "C" fn begin(thread: u64, arg: u64) -> ! {
    let vm = vm().unwrap_or_else(|| panic!("a thread without a memory system"));
    let t = structure(KPtr::new(GuestVirt::new(thread)));
    switch::arrive(&load(t));
    // SAFETY: the word was a function of this very type in `fork`; both are one machine word.
    let start = unsafe { core::mem::transmute::<u64, ThreadStart<KernelVm>>(t.md[START].get()) };
    vm.fork_exit(start, arg)
}

/// Switches threads (`Cpu::cpu_switch`).
pub fn switch(from: KPtr<Thread>, to: KPtr<Thread>) {
    let f = structure(from);
    let target = resume(to);
    let cpu = PerCpu::current();
    cpu.set_thread(to);
    // An idle thread that has announced a halt may get here without an interrupt, when it releases
    // a lock. The threads that run in between may make the work that it waits for: it looks again
    // before it halts.
    cpu.idle().set_polling(Polling::No);
    cpu.idle().disarm();
    let save_rsp = (&raw const f.md[RSP]).cast_mut().cast::<u64>();
    save(f, &Context::of_running());
    // SAFETY: `to` was saved by this function or made by `fork`, and the scheduler runs it once;
    // interrupts are deferred.
    unsafe { switch::switch(save_rsp, &target) };
    switch::arrive(&load(f));
}

/// Switches to `to` from a thread that never runs again (`Cpu::cpu_throw`).
pub fn throw(to: KPtr<Thread>) -> ! {
    let mut nowhere = 0;
    PerCpu::current().set_thread(to);
    // SAFETY: as in `switch`; the stack pointer that is stored here is never used.
    unsafe { switch::switch(&raw mut nowhere, &resume(to)) };
    panic!("a discarded thread runs")
}

/// Idles until an interrupt has arrived (`Cpu::cpu_idle`): the dispatcher itself sleeps, during the
/// boot.
pub fn idle(kern: &Kern<KernelMachine>) {
    let Some(clock) = clock() else { panic!("all threads sleep, and there is no clock") };
    PerCpu::current().idle().arm();
    let Some(tick) = kern.next_timeout() else { panic!("all threads sleep forever") };
    pass_time_until(kern, clock, tick);
}

/// Lets time pass until tick `tick`, or, in real time, until an interrupt has arrived since the CPU
/// was armed ([`IdleCpu::arm`](kmem::kern::idle::IdleCpu::arm)). Wakes the threads whose time-outs
/// are due.
pub fn pass_time_until(kern: &Kern<KernelMachine>, clock: &Clock, tick: u64) {
    match clock.mode() {
        TimeMode::Virtual => {
            clock.jump_to(tick);
            // The clock stops at its end, which is before `tick` then. A time-out after the end is
            // due at the end: all threads sleep, so nothing else could happen any more.
            kern.hardclock(tick.max(clock.ticks()));
        }
        TimeMode::Real => {
            match clock.micros_until(tick) {
                0 => {}
                micros => clock::halt_for(micros),
            }
            kern.hardclock(clock.ticks());
        }
    }
}
