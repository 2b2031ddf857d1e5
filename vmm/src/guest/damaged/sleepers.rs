//! Sleeping threads: time-outs, flags that their wakers read, and deadlocks.

use std::thread::yield_now;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::boot::TimeMode;
use vmkern_abi::control::{MapId, MapKind, Op};
use vmkern_abi::field::Flag;
use vmkern_abi::layout::{Sx, Thread, ThreadState, VmMap, VmObject, VmPage, md};

use super::lab::{Damage, Lab, expect_finding};
use crate::check::Report;
use crate::guest::{Guest, ThreadId};
use crate::inspect::ThreadView;

/// A guest in real time: t1 and t2 wait for room in a map, t3 to t5 for a time-out.
struct Waiting {
    lab: Lab,
    map: KPtr<VmMap>,
}

impl Waiting {
    fn new() -> Self {
        // 1. A map of one page, which is full.
        let guest = Guest::builder()
            .memory(32 << 20)
            .time(TimeMode::Real)
            .launch()
            .expect("a guest can be launched");
        let mut lab = Lab::of(guest);
        let map = lab.address(Op::KmemSuballoc {
            parent: MapId::KERNEL,
            size: 4096,
            kind: MapKind::User,
        });
        let room = Op::KmemAllocWait { map: MapId(map.get()), size: 4096 };
        lab.address(room);
        // 2. Threads that wait for room there, and threads that sleep for hours.
        for thread in ThreadId::all().take(6).skip(1) {
            let hours = u64::from(thread.number()) * 3_600_000_000;
            let op = if thread.number() < 3 { room } else { Op::Sleep { micros: hours } };
            lab.guest.submit(thread, op).expect("the guest lives");
        }
        // 3. Wait until all of them sleep and the guest is idle.
        let asleep = |guest: &Guest| {
            let threads = guest.threads().expect("the list is sound");
            let sleeps = |t: &ThreadView| t.tid > 5 || t.state == ThreadState::Sleeping;
            threads.iter().filter(|t| t.tid < 6).count() == 6 && threads.iter().all(sleeps)
        };
        while !asleep(&lab.guest) {
            yield_now();
        }
        lab.wait_until_halted();
        Self { lab, map: KPtr::new(map) }
    }

    fn thread(&self, tid: u32) -> KPtr<Thread> {
        let mut at = self.lab.roots().1.sched.all.head.get();
        while self.lab.get(at).tid.get() != tid {
            at = self.lab.get(at).all_next.get();
        }
        at
    }
}

#[test]
fn time_outs_are_in_the_heap_in_their_order() {
    let waiting = Waiting::new();
    let lab = &waiting.lab;
    let _pause = lab.guest.pause().expect("it can be held");
    let report = lab.check();
    assert!(report.is_clean(), "{report}");
    let (first, last) = (waiting.thread(3), waiting.thread(5));
    assert_eq!(lab.roots().1.sched.callouts.get(), first, "it is due first");
    let damages: &[(&str, Damage<Thread>)] = &[
        ("callout-queued", |t| t.callout.sequence.set(0)),
        ("callout-sequence", |t| t.callout.sequence.set(1 << 40)),
        ("callout-due", |t| t.callout.deadline.set(0)),
        ("callout-order", |t| t.callout.deadline.set(1)),
        ("callout-link", |t| t.callout.prev.set(KPtr::NULL)),
        ("callout-link", |t| t.callout.child.set(KPtr::new(t.callout.prev.get().addr()))),
    ];
    let (link, others) = damages.split_last().expect("there are damages");
    lab.each(last, "thread", others);
    let report = lab.damaged(last, link.1);
    assert!(report.findings.iter().any(|finding| finding.rule == link.0), "{report}");
    let report = lab.damaged(first, |t| t.callout.sibling.set(last));
    expect_finding(&report, "callout-link", "thread", first.addr());
    let report =
        lab.damaged(last, |t| t.callout.sequence.set(lab.get(first).callout.sequence.get()));
    expect_finding(&report, "callout-sequence", "thread", last.addr());
    let report = lab.damaged(first, |t| t.callout.child.set(KPtr::new(GuestVirt::new(64))));
    let heap = lab.root_field(|roots| &roots.sched.callouts);
    expect_finding(&report, "callout-link", "scheduler", heap);
    expect_finding(&report, "callout-queued", "thread", last.addr());
}

#[test]
fn a_sleeper_whose_flag_is_not_set_is_found() {
    // 1. A thread that waits for room in a map.
    let waiting = Waiting::new();
    let lab = &waiting.lab;
    let _pause = lab.guest.pause().expect("it can be held");
    let report = lab.damaged(waiting.map, |map| map.needs_wakeup.lower());
    expect_finding(&report, "sleeper-flag", "thread", waiting.thread(1).addr());
    let report = lab.damaged(waiting.map, |map| map.needs_wakeup.set(Flag::from_raw(2)));
    expect_finding(&report, "flag-word", "vm_map", waiting.map.addr());
    // 2. Flags of the roots.
    lab.root_word("flag-word", "kernel roots", |r| &r.vm_pages_needed, |_| Flag::from_raw(2));
    lab.root_word(
        "flag-word",
        "kernel roots",
        |r| &r.vm_pageout_pages_needed,
        |_| Flag::from_raw(2),
    );
    lab.root_word("pages-wanted", "kernel roots", |r| &r.vm_pageout_pages_needed, |_| true.into());
    lab.root_word("pages-wanted", "kernel roots", |r| &r.vm_pages_wanted, |_| 5000);
    let (roots_at, roots) = lab.roots();
    let report = lab.damaged(roots_at, |roots| roots.vm_pages_needed.raise());
    expect_finding(&report, "sleeper-flag", "thread", roots.pageproc.get().addr());
    // 3. Give t1 the channels of threads that wait for pages, for a page of the pagedaemon, for
    //    many pages, and for a busy page.
    let channels = [
        lab.root_field(|roots| &roots.meter.v_free_count),
        lab.root_field(|roots| &roots.vm_pageout_pages_needed),
        lab.root_field(|roots| &roots.vm_pages_wanted),
        lab.vm_page(lab.pfn_at(lab.get(waiting.thread(1)).kstack.get())).addr(),
    ];
    for channel in channels {
        let report = lab.damaged(waiting.thread(1), |t| t.wchan.set(channel));
        expect_finding(&report, "sleeper-flag", "thread", waiting.thread(1).addr());
        expect_finding(&report, "wait-message", "thread", waiting.thread(1).addr());
    }
}

#[test]
fn owners_of_sx_locks_exist_and_do_not_wait_for_each_other() {
    let waiting = Waiting::new();
    let lab = &waiting.lab;
    let _pause = lab.guest.pause().expect("it can be held");
    let sx_of = |map: KPtr<VmMap>| -> KPtr<Sx> {
        KPtr::new(map.addr().add(std::mem::offset_of!(VmMap, sx) as u64))
    };
    let finds = |report: &Report, rule: &str, at: GuestVirt| {
        assert!(
            report.findings.iter().any(|f| f.rule == rule && f.at == at),
            "no {rule} at {at}:\n{report}"
        );
    };
    let (one, other) = (sx_of(waiting.map), sx_of(lab.map(2)));
    finds(&lab.damaged(one, |sx| sx.owner.set(4000)), "sx-owner", one.addr());
    finds(&lab.damaged(one, |sx| sx.waiters.set(1)), "sx-waiters", one.addr());
    let (t1, t2) = (waiting.thread(1), waiting.thread(2));
    finds(&lab.damaged(one, |sx| sx.owner.set(2)), "sx-held", t1.addr());
    finds(&lab.damaged(t1, |t| t.wchan.set(one.addr())), "sx-waiters", one.addr());
    lab.change(one, |sx| sx.owner.set(2));
    lab.change(other, |sx| sx.owner.set(3));
    lab.change(t1, |t| t.wchan.set(other.addr()));
    lab.change(t2, |t| t.wchan.set(one.addr()));
    let report = lab.check();
    assert!(report.findings.iter().any(|finding| finding.rule == "lock-cycle"), "{report}");
}

#[test]
fn what_several_threads_wait_for_is_one_queue_with_a_spare_for_each_but_one() {
    let waiting = Waiting::new();
    let lab = &waiting.lab;
    let _pause = lab.guest.pause().expect("it can be held");
    let channel = lab.get(waiting.thread(1)).wchan.get();
    let (_, roots) = lab.roots();
    let queues = roots.sched.sleepqueues.iter().filter_map(|head| head.get().non_null());
    let queue = queues
        .into_iter()
        .find(|&queue| lab.get(queue).wchan.get() == channel)
        .expect("two sleep there");
    let spare = lab.get(queue).spare.get();
    let report = lab.damaged(queue, |queue| queue.spare.set(KPtr::NULL));
    expect_finding(&report, "sleepq-spare", "sleep queue", queue.addr());
    expect_finding(&report, "zone-lost", "sleep queue", spare.addr());
    let report = lab.damaged(queue, |q| q.spare.set(queue));
    expect_finding(&report, "sleepq-owner", "sleep queue", queue.addr());
    let t2 = waiting.thread(2);
    let report = lab.damaged(t2, |t| t.sq_next.set(waiting.thread(1)));
    expect_finding(&report, "sleepq-link", "thread", waiting.thread(1).addr());
}

/// Stores `value` in the word just below the used part of the stack of `thread`, where it may have
/// data (the red zone).
fn put_below_stack(lab: &Lab, thread: KPtr<Thread>, value: GuestVirt) {
    let place = GuestVirt::new(lab.get(thread).md[md::RSP].get() - 8);
    let word = GuestPhys::from_pfn(lab.pfn_at(place)).add(place.page_offset());
    lab.guest.hypervisor.ram.write(word, &value.get().to_le_bytes()).expect("it is RAM");
}

#[test]
fn pages_of_a_window_are_chained_only_while_a_thread_has_the_first() {
    let waiting = Waiting::new();
    let lab = &waiting.lab;
    let _pause = lab.guest.pause().expect("it can be held");
    let window = lab.get(waiting.thread(3)).kstack.get();
    let [first, second] = [0, 4096].map(|offset| lab.pfn_at(window.add(offset)));
    let head = lab.vm_page(first);
    let chain = |page: &VmPage| page.next.set(u32::try_from(second).expect("it is small"));
    expect_finding(&lab.damaged(head, chain), "page-state", "vm_page", head.addr());
    put_below_stack(lab, waiting.thread(1), head.addr());
    let report = lab.damaged(head, chain);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn an_object_has_no_more_references_than_entries_and_threads_that_may_be_in_a_fault() {
    let waiting = Waiting::new();
    let lab = &waiting.lab;
    let _pause = lab.guest.pause().expect("it can be held");
    let object: KPtr<VmObject> = KPtr::new(lab.root_field(|roots| &roots.kmem_object));
    let found = |more: u32| {
        let report =
            lab.damaged(object, |object| object.ref_count.update_locked(|count| count + more));
        report.findings.iter().any(|finding| finding.rule == "object-ref-count")
    };
    assert_eq!([0, 1].map(found), [false, true]);
    // t1 waits for a busy page, and the idle thread works for other CPUs.
    lab.change(waiting.thread(1), |t| {
        let message = vmkern_abi::control::WaitMessage::new("vmpfw").words();
        t.wmesg.iter().zip(message).for_each(|(word, value)| word.set(value));
    });
    assert_eq!([1, 2].map(found), [false, true]);
    lab.change(lab.roots().1.cpuhead.get(), |cpu| cpu.serving.raise());
    assert_eq!([2, 3].map(found), [false, true]);
    lab.change(lab.roots().1.cpuhead.get(), |cpu| cpu.serving.lower());
}
