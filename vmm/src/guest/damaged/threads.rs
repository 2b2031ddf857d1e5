//! Threads, CPUs, run queues, locks and stacks.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::field::{Code, Flag};
use vmkern_abi::layout::{HeldLocks, Pcpu, Preempt, SleepQueue, Thread, ThreadState, md};
use vmkern_abi::pte::Level;

use super::lab::{Damage, Lab, expect_finding};
use crate::check::Report;

/// t0, which waits for a request.
fn worker(lab: &Lab) -> KPtr<Thread> {
    let mut at = lab.roots().1.sched.all.head.get();
    while lab.get(at).tid.get() != 0 {
        at = lab.get(at).all_next.get();
    }
    at
}

fn cpu(lab: &Lab) -> KPtr<Pcpu> {
    lab.roots().1.cpuhead.get()
}

#[test]
fn every_word_of_a_thread_is_held_against_the_lists_that_it_is_on() {
    let lab = Lab::new();
    // 1. A thread that sleeps.
    let damages: &[(&str, Damage<Thread>)] = &[
        ("thread-state", |t| t.state.set(Code::from_raw(0))),
        ("thread-state", |t| t.state.set(Code::from_raw(77))),
        ("thread-state", |t| t.state.put(ThreadState::Running)),
        ("runq-missing", |t| t.state.put(ThreadState::Runnable)),
        ("thread-state", |t| t.wchan.set(GuestVirt::new(0))),
        ("sleepq-sleeper", |t| t.wchan.update_locked(|at| at.add(64))),
        ("thread-state", |t| t.wmesg[0].set(0)),
        ("thread-state", |t| t.priority.set(3)),
        ("thread-state", |t| t.base_priority.set(3)),
        ("thread-state", |t| t.critnest.set(1)),
        ("thread-state", |t| t.owepreempt.raise()),
        ("thread-state", |t| t.timed_out.raise()),
        ("thread-state", |t| t.intr_nesting.set(1)),
        ("thread-state", |t| t.lastcpu.set(9)),
        ("thread-state", |t| t.name[0].set(0)),
        ("thread-number", |t| t.tid.set(5)),
        ("thread-number", |t| t.tid.set(65)),
        ("thread-list", |t| t.all_prev.set(KPtr::NULL)),
        ("sleepq-link", |t| t.sq_prev.set(KPtr::new(GuestVirt::new(64)))),
        ("sleepq-owner", |t| t.sleepqueue.set(KPtr::new(GuestVirt::new(64)))),
        ("callout-queued", |t| t.callout.sequence.set(1)),
        ("held-locks", |t| t.held_locks.set(HeldLocks::empty())),
        ("held-locks", |t| t.held_locks.set(HeldLocks::from_bits_retain(1 << 20))),
        ("sx-held", |t| t.sx_held.set(1)),
        ("kernel-stack", |t| t.kstack.update_locked(|at| at.add(4096))),
        ("kernel-stack", |t| t.kstack.set(GuestVirt::new(0))),
        ("kernel-stack", |t| t.kstack_pages.set(3)),
        ("saved-context", |t| t.md[md::RSP].update_locked(|rsp| rsp + (1 << 20))),
        ("saved-context", |t| t.md[md::SLOT].set(0)),
        ("saved-context", |t| t.md[md::LOW].update_locked(|low| low - 4096)),
        ("saved-context", |t| t.md[md::DEPTH].set(0)),
    ];
    lab.each(worker(&lab), "thread", damages);
    // 2. The pagedaemon has never run: only its bounds can be checked.
    let pagedaemon = lab.roots().1.pageproc.get();
    assert_eq!(lab.get(pagedaemon).md[md::RSP].get(), 0, "the pagedaemon has run");
    let damages: &[(&str, Damage<Thread>)] = &[
        ("saved-context", |t| t.md[md::RSP].set(64)),
        ("saved-context", |t| t.md[md::LOW].update_locked(|low| low - 4096)),
        ("saved-context", |t| t.md[md::SLOTS_END].set(0)),
    ];
    lab.each(pagedaemon, "thread", damages);
    assert!(lab.check().is_clean());
}

#[test]
fn lists_of_threads_end_and_count_what_they_hold() {
    let lab = Lab::new();
    lab.root_word("thread-count", "vmmeter", |r| &r.meter.thread_count, |n| n + 1);
    lab.root_word("thread-list", "scheduler", |r| &r.sched.all.head, |_| KPtr::NULL);
    lab.root_word("pageproc", "kernel roots", |r| &r.pageproc, |_| KPtr::new(GuestVirt::new(64)));
    lab.root_word("cold", "scheduler", |r| &r.sched.cold, |_| true.into());
    let (roots_at, _) = lab.roots();
    let t0 = worker(&lab);
    let report = lab.damaged(roots_at, |roots| roots.sched.tids[0].set(KPtr::NULL));
    expect_finding(&report, "thread-number", "thread", t0.addr());
    let report = lab.damaged(t0, |t| t.tid_next.set(t0));
    expect_finding(&report, "list-cycle", "thread", t0.addr());
    let report = lab.damaged(t0, |t| t.all_next.set(t0));
    expect_finding(&report, "list-cycle", "thread", t0.addr());
    let report = lab.damaged(roots_at, |roots| roots.sched.zombies.set(t0));
    expect_finding(&report, "zombie", "thread", t0.addr());
    let tail = lab.root_field(|roots| &roots.sched.all);
    let report = lab.damaged(roots_at, |roots| roots.sched.all.tail.set(KPtr::NULL));
    expect_finding(&report, "thread-list", "scheduler", tail);
}

#[test]
fn cpus_run_the_threads_that_say_so() {
    let lab = Lab::new();
    let t0 = worker(&lab);
    lab.root_word("cpu-list", "vmmeter", |r| &r.meter.ncpu, |n| n + 1);
    let damages: &[(&str, Damage<Pcpu>)] = &[
        ("cpu", |cpu| cpu.cpuid.set(3)),
        ("cpu", |cpu| cpu.curthread.set(KPtr::NULL)),
        ("cpu", |cpu| cpu.idlethread.set(KPtr::NULL)),
        ("cpu", |cpu| cpu.need_resched.set(Code::from_raw(Preempt::SliceOver.code() + 1))),
        ("cpu", |cpu| cpu.slice.set(1 << 40)),
    ];
    lab.each(cpu(&lab), "CPU", damages);
    let report = lab.damaged(cpu(&lab), |cpu| cpu.curthread.set(t0));
    expect_finding(&report, "cpu", "CPU", cpu(&lab).addr());
    expect_finding(&report, "thread-state", "thread", t0.addr());
    let report = lab.damaged(cpu(&lab), |cpu| cpu.idlethread.set(t0));
    expect_finding(&report, "cpu", "CPU", cpu(&lab).addr());
}

#[test]
fn run_queues_hold_runnable_threads_of_their_priority() {
    let lab = Lab::new();
    // 1. A thread on a list to which it does not belong.
    let (t0, cpu) = (worker(&lab), cpu(&lab));
    let _pause = lab.guest.pause().expect("it can be held");
    // The queue of its priority, and a different one.
    let own = usize::from(lab.get(t0).priority.get() / 4);
    let queue = |number: usize| {
        let offset = std::mem::offset_of!(Pcpu, runq) + 8 + number * 16;
        cpu.addr().add(offset as u64)
    };
    let enqueue = |number: usize| {
        move |cpu: &Pcpu| {
            cpu.runq.queues[number].head.set(t0);
            cpu.runq.queues[number].tail.set(t0);
            cpu.runq.status.set(1 << number);
        }
    };
    let report = lab.damaged(cpu, enqueue(own));
    expect_finding(&report, "runq-state", "thread", t0.addr());
    let report = lab.damaged(cpu, enqueue(own + 1));
    expect_finding(&report, "runq-priority", "thread", t0.addr());
    // 2. Lists with wrong ends.
    let report = lab.damaged(cpu, |cpu| cpu.runq.status.set(1));
    expect_finding(&report, "runq-status", "run queue", queue(0));
    let report = lab.damaged(cpu, |cpu| cpu.runq.queues[3].tail.set(t0));
    expect_finding(&report, "runq-link", "run queue", queue(3));
    let wild = KPtr::new(GuestVirt::new(64));
    let report = lab.damaged(cpu, |cpu| cpu.runq.queues[3].head.set(wild));
    expect_finding(&report, "runq-link", "run queue", queue(3));
    // 3. An idle thread is on no queue, even while it is runnable.
    let idle = lab.get(cpu).idlethread.get();
    let report = lab.damaged(idle, |idle| {
        idle.state.put(ThreadState::Runnable);
        idle.rq_next.set(t0);
    });
    expect_finding(&report, "runq-link", "thread", idle.addr());
    // 4. A cycle, forwards and backwards.
    lab.change(t0, |t| t.rq_next.set(t0));
    let report = lab.damaged(cpu, enqueue(own));
    expect_finding(&report, "runq-link", "thread", t0.addr());
    lab.change(t0, |t| t.rq_prev.set(t0));
    let report = lab.damaged(cpu, enqueue(own));
    expect_finding(&report, "runq-link", "thread", t0.addr());
}

#[test]
fn mutexes_are_owned_by_threads_that_run_and_note_it() {
    let lab = Lab::new();
    let name = "vm_page_queue_free_mtx";
    // The owner is the pagedaemon, which sleeps; a thread that does not exist; the running thread,
    // which does not note the lock.
    for owner in [66, 1000, 65] {
        let (roots_at, _) = lab.roots();
        let at = lab.root_field(|roots| &roots.vm_page_queue_free_mtx.owner);
        let report = lab.damaged(roots_at, |roots| roots.vm_page_queue_free_mtx.owner.set(owner));
        expect_finding(&report, "mutex-owner", name, at);
        assert_eq!((&*report.updating[0].what, report.updating[0].owner), (name, owner - 1));
    }
    lab.root_word("mutex-owner", name, |r| &r.vm_page_queue_free_mtx.owner, |_| 1 << 16 | 65);
    let idle = lab.get(cpu(&lab)).idlethread.get();
    lab.each::<Thread>(
        idle,
        "thread",
        &[("held-locks", |t| t.held_locks.set(HeldLocks::FREE_QUEUE))],
    );
}

#[test]
fn a_stack_is_mapped_and_its_guard_page_is_not() {
    let lab = Lab::new();
    let t0 = worker(&lab);
    let low = lab.get(t0).kstack.get();
    let _pause = lab.guest.pause().expect("it can be held");
    let report = lab.damaged_phys::<[u8; 8]>(lab.pte_at(low, Level::Pt), |_| {});
    assert!(report.is_clean(), "{report}");
    let ram = &lab.guest.hypervisor.ram;
    let (entry, guard) =
        (lab.pte_at(low, Level::Pt), lab.pte_at(GuestVirt::new(low.get() - 4096), Level::Pt));
    let mut pte = [0; 8];
    ram.read(entry, &mut pte).expect("it is RAM");
    ram.write(guard, &pte).expect("it is RAM");
    expect_finding(&lab.check(), "kernel-stack", "thread", t0.addr());
    ram.write(guard, &[0; 8]).expect("it is RAM");
    ram.write(entry, &[0; 8]).expect("it is RAM");
    expect_finding(&lab.check(), "kernel-stack", "thread", t0.addr());
}

#[test]
fn sleep_queues_hang_in_the_chain_of_their_channel() {
    let lab = Lab::new();
    let t0 = worker(&lab);
    let channel = lab.get(t0).wchan.get();
    let (_, roots) = lab.roots();
    let queue = roots.sched.sleepqueues.iter().filter_map(|head| head.get().non_null());
    let queue = queue.map(|queue| (queue, lab.get(queue))).find(|(_, q)| q.wchan.get() == channel);
    let (queue, _) = queue.expect("t0 sleeps there");
    let damages: &[(&str, Damage<SleepQueue>)] = &[
        ("sleepq-chain", |queue| queue.wchan.update_locked(|at| at.add(8))),
        ("sleepq-chain", |queue| queue.hash_prev.set(KPtr::new(GuestVirt::new(64)))),
        ("sleepq-link", |queue| queue.blocked.tail.set(KPtr::NULL)),
        ("sleepq-link", |queue| queue.blocked.head.set(KPtr::new(GuestVirt::new(64)))),
        ("sleepq-spare", |queue| queue.blocked.head.set(KPtr::NULL)),
    ];
    lab.each(queue, "sleep queue", damages);
    let report = lab.damaged(queue, |q| q.hash_next.set(queue));
    expect_finding(&report, "list-cycle", "sleep queue", queue.addr());
    let report = lab.damaged(queue, |q| q.blocked.head.set(KPtr::NULL));
    expect_finding(&report, "sleepq-missing", "thread", t0.addr());
}

#[test]
fn a_thread_that_was_never_switched_to_leaves_its_cpu_with_the_schedulers_lock() {
    let lab = Lab::new();
    for switches in [0, 1 << 40] {
        let report = lab.damaged(worker(&lab), |t| t.switches.set(switches));
        assert!(report.is_clean(), "{report}");
    }
    // A thread that has never left a CPU holds no lock.
    let pagedaemon = lab.roots().1.pageproc.get();
    lab.each::<Thread>(
        pagedaemon,
        "thread",
        &[("held-locks", |t| t.held_locks.set(HeldLocks::SCHED))],
    );
}

#[test]
fn a_handler_on_an_idle_thread_may_have_left_things_half_made() {
    let lab = Lab::new();
    let idle = lab.get(cpu(&lab)).idlethread.get();
    let entry = lab.entry(1, 4);
    let _pause = lab.guest.pause().expect("it can be held");
    let has =
        |report: &Report, rule: &str| report.findings.iter().any(|finding| finding.rule == rule);
    let report = lab.damaged(entry, |e| e.wired_count.set(0));
    assert!(has(&report, "entry-wired"), "{report}");
    lab.change(idle, |t| t.intr_nesting.set(1));
    let report = lab.damaged(entry, |e| e.wired_count.set(0));
    assert!(!has(&report, "entry-wired"), "{report}");
    lab.change(idle, |t| t.intr_nesting.set(0));
    lab.change(cpu(&lab), |cpu| cpu.serving.raise());
    let report = lab.damaged(entry, |e| e.wired_count.set(0));
    assert!(!has(&report, "entry-wired"), "{report}");
    // It still wires a range only once.
    let report = lab.damaged(entry, |e| e.wired_count.set(2));
    assert!(has(&report, "entry-wired"), "{report}");
    lab.change(cpu(&lab), |cpu| cpu.serving.set(Flag::from_raw(2)));
    assert!(has(&lab.check(), "flag-word"));
    lab.change(cpu(&lab), |cpu| cpu.serving.lower());
}

#[test]
fn map_pages_counts_the_home_of_a_map_that_a_thread_makes() {
    let lab = Lab::new();
    let idle = lab.get(cpu(&lab)).idlethread.get();
    let (roots_at, _) = lab.roots();
    let _pause = lab.guest.pause().expect("it can be held");
    lab.change(idle, |t| t.intr_nesting.set(1));
    let found = |change: i64| {
        let report = lab.damaged(roots_at, |roots| {
            roots.map_pages.update_locked(|pages| pages.wrapping_add_signed(change))
        });
        report.findings.iter().any(|finding| finding.rule == "map-pages")
    };
    assert_eq!([-1, 0, 1, 2].map(found), [true, false, false, true]);
    lab.change(idle, |t| t.intr_nesting.set(0));
}
