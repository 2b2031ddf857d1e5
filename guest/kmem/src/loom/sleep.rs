//! Sleeps, wakeups and sx locks, interrupted at every moment.

use super::machine::{Count, Cpu, Kernel, clock};
use crate::kern::Kern;
use crate::kern::lock::LockClass::Driver;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use vmkern_abi::addr::GuestVirt;

fn channel() -> WaitChannel {
    GuestVirt::new(0xffff_ffff_8000_0000).into()
}

/// Sets `ready` under the mutex, and wakes the threads that wait for it.
pub fn announce(kern: &Kern<Cpu>, ready: impl FnOnce()) {
    let mtx = &kern.state().driver_mtx;
    kern.mtx_lock(Driver, &mtx.owner);
    ready();
    kern.wakeup(channel());
    kern.mtx_unlock(Driver, &mtx.owner);
}

/// Waits under the mutex until `ready`, like every waiting thread.
pub fn await_ready(kern: &Kern<Cpu>, ready: impl Fn() -> bool) {
    let mtx = &kern.state().driver_mtx;
    kern.mtx_lock(Driver, &mtx.owner);
    while !ready() {
        kern.msleep(channel(), (Driver, mtx), 0, "ready", 0, Relock::Yes);
    }
    kern.mtx_unlock(Driver, &mtx.owner);
}

#[test]
fn no_wakeup_is_missed_between_the_look_and_the_sleep() {
    loom::model(|| {
        let (mut kernel, ready) = (Kernel::new(clock), Count::default());
        let seen = ready.clone();
        kernel.spawn(1, move |kern| await_ready(kern, || seen.get() == 1));
        kernel.spawn(2, move |kern| announce(kern, || ready.set(1)));
        kernel.interrupt(2);
        kernel.finish();
    });
}

/// Records that the interrupt has arrived, in a word that no model uses otherwise.
fn announce_from_interrupt(kern: &Kern<Cpu>) {
    announce(kern, || kern.cnt().v_page_count.set(1));
}

#[test]
fn no_wakeup_of_an_interrupt_handler_is_missed() {
    loom::model(|| {
        let mut kernel = Kernel::new(announce_from_interrupt);
        kernel.spawn(1, |kern| await_ready(kern, || kern.cnt().v_page_count.get() == 1));
        kernel.interrupt(1);
        kernel.finish();
    });
}

#[test]
#[should_panic(expected = "sleep for ever")]
fn a_look_under_another_lock_than_the_sleep_misses_a_wakeup() {
    loom::model(|| {
        let mut kernel = Kernel::new(announce_from_interrupt);
        kernel.spawn(1, |kern| {
            let mtx = &kern.state().driver_mtx;
            kern.mtx_lock(Driver, &mtx.owner);
            let ready = kern.cnt().v_page_count.get() == 1;
            kern.mtx_unlock(Driver, &mtx.owner);
            if !ready {
                kern.mtx_lock(Driver, &mtx.owner);
                kern.msleep(channel(), (Driver, mtx), 0, "ready", 0, Relock::Drop);
            }
        });
        kernel.interrupt(1);
        kernel.finish();
    });
}

#[test]
fn a_wakeup_and_a_time_out_end_a_sleep_once() {
    loom::model(|| {
        let (mut kernel, ends) = (Kernel::new(clock), Count::default());
        let ended = ends.clone();
        kernel.spawn(1, move |kern| {
            let mtx = &kern.state().driver_mtx;
            kern.mtx_lock(Driver, &mtx.owner);
            let sleep = kern.msleep(channel(), (Driver, mtx), 0, "ready", 1, Relock::Drop);
            let t = kern.get(kern.current_thread());
            assert!(t.callout.sequence.get() == 0 && kern.state().sched.callouts.get().is_null());
            assert!(t.wchan.get() == GuestVirt::new(0) && !t.sleepqueue.get().is_null());
            assert!(sleep == Sleep::Woken || kern.cnt().ticks.get() > 0);
            ended.set(ended.get() + 1);
        });
        kernel.spawn(2, |kern| kern.wakeup(channel()));
        kernel.interrupt(2);
        kernel.finish();
        assert_eq!(ends.get(), 1);
    });
}

#[test]
fn an_sx_lock_has_one_owner_across_switches() {
    loom::model(|| {
        let (mut kernel, inside) = (Kernel::new(clock), Count::default());
        for tid in [1, 2] {
            let (sx, inside) = (kernel.sx(), inside.clone());
            kernel.spawn(tid, move |kern| {
                kern.sx_xlock(sx, "model");
                assert_eq!(inside.get(), 0, "two threads own the lock");
                inside.set(tid);
                kern.sched_yield();
                assert_eq!(inside.get(), tid);
                inside.set(0);
                kern.sx_xunlock(sx);
            });
        }
        kernel.interrupt(2);
        kernel.finish();
    });
}
