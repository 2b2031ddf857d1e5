//! The account of stalls on memory.

use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::control::{Context, MapId, MapKind, Op, Outcome};
use vmkern_abi::layout::Thread;
use vmkern_abi::pressure::{PERIOD, StallCause, WHOLE};

use super::lab::{Lab, expect_finding};
use crate::guest::{Guest, ThreadId};

/// A guest in which t1 waits for room in a map, and three seconds have passed since.
fn stalled() -> (Lab, KPtr<Thread>) {
    let guest = Guest::builder().memory(32 << 20).launch().expect("a guest can be launched");
    let mut lab = Lab::of(guest);
    let kind = MapKind::User;
    let map = lab.address(Op::KmemSuballoc { parent: MapId::KERNEL, size: PAGE_SIZE, kind }).get();
    let room = Op::KmemAllocWait { map: MapId(map), size: PAGE_SIZE };
    lab.address(room);
    let one = ThreadId::all().nth(1).expect("there are 64");
    lab.guest.submit(one, room).expect("the guest lives");
    let settled = lab.guest.call_in(Context::Thread(0), Op::Settle).expect("the guest lives");
    assert_eq!(settled.outcome, Outcome::Ok);
    lab.ok(Op::Sleep { micros: 3_000_000 });
    let mut at = lab.roots().1.sched.all.head.get();
    while lab.get(at).tid.get() != 1 {
        at = lab.get(at).all_next.get();
    }
    (lab, at)
}

#[test]
fn counts_and_times_of_stalls_are_those_of_the_threads() {
    let (lab, thread) = stalled();
    let report = lab.check();
    assert!(report.is_clean(), "{report}");
    let times = lab.guest.stall_times().expect("the roots can be read");
    let waited = times.causes[StallCause::Vmmaps.index()];
    assert!(waited >= 3_000_000, "{times:?}");
    assert_eq!((times.some, times.total()), (waited, waited), "{times:?}");
    // 1. The counts.
    lab.root_word("stall-count", "scheduler", |r| &r.sched.pressure.stalled, |n| n + 1);
    lab.root_word("stall-count", "scheduler", |r| &r.sched.pressure.working, |n| n + 1);
    // 2. A thread's times.
    let report = lab.damaged(thread, |t| t.stall_since.set(1 << 50));
    expect_finding(&report, "stall-time", "thread", thread.addr());
    let host = lab.roots().1.sched.all.head.get();
    let report = lab.damaged(host, |t| t.stall_since.set(1));
    expect_finding(&report, "stall-time", "thread", host.addr());
    let report = lab.damaged(thread, |t| t.stalled[0].set(1));
    let sum = lab.root_field(|r| &r.sched.pressure.micros[0]);
    expect_finding(&report, "stall-time", "scheduler", sum);
}

#[test]
fn the_lines_of_the_pressure_agree_with_the_clock_and_with_each_other() {
    let (lab, _) = stalled();
    let some = lab.root_field(|r| &r.sched.pressure.some);
    let full = lab.root_field(|r| &r.sched.pressure.full);
    let damaged = |damage: super::lab::Damage<vmkern_abi::layout::KernelRoots>| {
        lab.damaged(lab.roots().0, damage)
    };
    let report = damaged(|r| r.sched.pressure.since.set(1 << 50));
    expect_finding(&report, "stall-time", "scheduler", some);
    let report = damaged(|r| r.sched.pressure.some.total.set(1 << 50));
    expect_finding(&report, "stall-time", "scheduler", some);
    let report = damaged(|r| r.sched.pressure.some.sampled.set(PERIOD));
    expect_finding(&report, "stall-time", "scheduler", some);
    let report = damaged(|r| r.sched.pressure.full.avg60.set(WHOLE + 1));
    expect_finding(&report, "stall-time", "scheduler", full);
    let report =
        damaged(|r| r.sched.pressure.full.total.set(r.sched.pressure.some.total.get() + 1));
    expect_finding(&report, "stall-time", "scheduler", full);
}
