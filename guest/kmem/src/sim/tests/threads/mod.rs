//! Threads: running, sleeping, waking, and forbidden uses.

mod forbidden;
mod histories;
mod switching;

use std::sync::{Arc, Mutex};

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome, WaitMessage};

use crate::kern::lock::LockClass;
use crate::kern::sched::PVM;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use crate::sim::{Sim, SimMachine};
use crate::vm::Vm;

/// The records of threads, in order.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<(u32, u64)>>>);

impl Notes {
    /// Thread `tid` records `what`.
    fn note(&self, tid: u32, what: u64) {
        self.0.lock().expect("nobody panics here").push((tid, what));
    }

    fn take(&self) -> Vec<(u32, u64)> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics here"))
    }

    fn tids(&self) -> Vec<u32> {
        self.take().into_iter().map(|(tid, _)| tid).collect()
    }
}

fn channel(number: u64) -> WaitChannel {
    GuestVirt::new(0x1000 + 8 * number).into()
}

/// Sleeps on `channel` under the driver's mutex.
fn sleep(vm: &Vm<SimMachine>, channel: WaitChannel, timo: u64) -> Sleep {
    let mtx = &vm.state().driver_mtx;
    vm.mtx_lock(LockClass::Driver, &mtx.owner);
    vm.msleep(channel, (LockClass::Driver, mtx), 0, "testing", timo, Relock::Drop)
}

fn boot() -> Sim {
    Sim::boot(16 << 20, Tunables::default())
}

#[test]
fn wakeup_wakes_all_in_the_order_in_which_they_came() {
    let (sim, notes) = (boot(), Notes::default());
    for tid in [3, 1, 4, 2] {
        let notes = notes.clone();
        sim.spawn(tid, move |vm| {
            sleep(vm, channel(0), 0);
            notes.note(tid, 0);
        });
    }
    sim.run();
    sim.vm().wakeup_one(channel(0));
    sim.run();
    assert_eq!(notes.tids(), [3]);
    sim.vm().wakeup(channel(1));
    sim.run();
    assert_eq!(notes.tids(), [], "nobody sleeps on that channel");
    sim.vm().wakeup(channel(0));
    sim.run();
    assert_eq!(notes.tids(), [1, 4, 2]);
}

#[test]
fn a_wakeup_with_nobody_asleep_is_lost() {
    let sim = boot();
    sim.vm().wakeup(channel(0));
    sim.spawn(1, |vm| {
        sleep(vm, channel(0), 0);
    });
    sim.run();
    assert_eq!(sim.waits_for(1), Some(WaitMessage::new("testing")));
}

#[test]
fn time_outs_come_in_order_and_equal_ones_in_the_order_of_sleeping() {
    let (sim, notes) = (boot(), Notes::default());
    let start = sim.vm().cnt().ticks.get();
    for (tid, timo) in [(1, 30), (2, 10), (3, 20), (4, 10), (5, 30), (6, 10)] {
        let notes = notes.clone();
        sim.spawn(tid, move |vm| {
            assert_eq!(sleep(vm, channel(tid.into()), timo), Sleep::TimedOut);
            notes.note(tid, vm.cnt().ticks.get() - start);
        });
    }
    sim.run();
    while sim.advance().is_some() {}
    assert_eq!(notes.take(), [(2, 10), (4, 10), (6, 10), (3, 20), (1, 30), (5, 30)]);
}

#[test]
fn a_wakeup_takes_the_time_out_back() {
    let (sim, notes) = (boot(), Notes::default());
    for (tid, timo) in [(1, 10), (2, 20), (3, 30)] {
        let notes = notes.clone();
        sim.spawn(tid, move |vm| {
            notes.note(tid, u64::from(sleep(vm, channel(tid.into()), timo) == Sleep::TimedOut))
        });
    }
    sim.run();
    sim.vm().wakeup(channel(1));
    sim.vm().wakeup(channel(2));
    sim.run();
    let start = sim.vm().cnt().ticks.get();
    assert_eq!(sim.advance(), Some(start + 30));
    assert_eq!(sim.advance(), None);
    assert_eq!(notes.take(), [(1, 0), (2, 0), (3, 1)]);
}

#[test]
fn msleep_misses_no_wakeup_between_unlocking_and_sleeping() {
    for seed in 0..200 {
        let sim = boot();
        sim.interrupt_at_random(seed, 3);
        let ready = Arc::new(Mutex::new(false));
        let (waiter, waker) = (ready.clone(), ready);
        sim.spawn(1, move |vm| {
            let mtx = &vm.state().driver_mtx;
            vm.mtx_lock(LockClass::Driver, &mtx.owner);
            while !*waiter.lock().expect("a flag") {
                vm.msleep(channel(0), (LockClass::Driver, mtx), 0, "ready", 0, Relock::Yes);
            }
            vm.mtx_unlock(LockClass::Driver, &mtx.owner);
        });
        sim.spawn(2, move |vm| {
            let mtx = &vm.state().driver_mtx;
            vm.mtx_lock(LockClass::Driver, &mtx.owner);
            *waker.lock().expect("a flag") = true;
            vm.wakeup(channel(0));
            vm.mtx_unlock(LockClass::Driver, &mtx.owner);
        });
        sim.run();
        assert_eq!(sim.waits_for(1), None, "seed {seed}");
    }
}

#[test]
fn a_thread_that_sleeps_shows_its_channel_and_message() {
    let sim = boot();
    let thread = sim.spawn(7, |vm| {
        let mtx = &vm.state().driver_mtx;
        vm.mtx_lock(LockClass::Driver, &mtx.owner);
        vm.msleep(
            channel(5),
            (LockClass::Driver, mtx),
            PVM,
            "a very long message",
            9,
            Relock::Drop,
        );
    });
    let waiting = sim.run();
    let found = waiting.iter().find(|waiting| waiting.tid == 7).expect("thread 7 sleeps");
    assert_eq!(
        (found.wchan, found.wmesg),
        (channel(5).addr(), WaitMessage::new("a very long mes"))
    );
    assert_eq!(found.deadline, Some(sim.vm().cnt().ticks.get() + 9));
    let t = sim.vm().get(thread);
    assert_eq!((t.name(), t.priority.get()), (WaitMessage::new("sim7"), PVM));
    sim.advance();
    assert_eq!(sim.waits_for(7), None);
    assert_eq!(sim.vm().tfind(7), None, "the thread has exited");
}

#[test]
fn a_number_can_be_used_again_and_stacks_go_back() {
    let sim = boot();
    let count = sim.vm().cnt().thread_count.get();
    let mut free = None;
    for round in 0..20 {
        for tid in 0..5 {
            sim.spawn(tid, move |vm| {
                sleep(vm, channel(0), 0);
            });
        }
        sim.run();
        assert_eq!(sim.vm().cnt().thread_count.get(), count + 5);
        sim.vm().wakeup(channel(0));
        sim.run();
        assert_eq!(sim.vm().cnt().thread_count.get(), count);
        let now = sim.vm().cnt().v_free_count.get();
        assert_eq!(*free.get_or_insert(now), now, "pages are lost in round {round}");
    }
    super::check(&sim);
}

#[test]
fn the_waiters_of_an_sx_lock_get_it_in_order() {
    let (sim, notes) = (boot(), Notes::default());
    let sx = vmkern_abi::addr::KPtr::new(
        sim.vm().zone_alloc::<vmkern_abi::layout::SleepQueue>().expect("memory").addr(),
    );
    for tid in [4, 2, 3, 1] {
        let notes = notes.clone();
        sim.spawn(tid, move |vm| {
            vm.sx_xlock(sx, "test sx");
            notes.note(tid, 0);
            sleep(vm, channel(0), 5);
            // A new thread does not overtake threads that wait.
            vm.sx_xunlock(sx);
            vm.sx_xlock(sx, "test sx");
            notes.note(tid, 1);
            vm.sx_xunlock(sx);
        });
    }
    sim.run();
    assert_eq!(sim.waits_for(2), Some(WaitMessage::new("test sx")));
    assert_eq!(sim.vm().get(sx).waiters.get(), 3);
    while sim.advance().is_some() {}
    assert_eq!(notes.take(), [(4, 0), (2, 0), (3, 0), (1, 0), (4, 1), (2, 1), (3, 1), (1, 1)]);
    assert_eq!((sim.vm().get(sx).owner.get(), sim.vm().get(sx).waiters.get()), (0, 0));
    let queue = vmkern_abi::addr::KPtr::<vmkern_abi::layout::SleepQueue>::new(sx.addr());
    sim.vm().zone_free(queue);
}

#[test]
fn while_the_system_is_cold_a_sleep_returns_at_once() {
    let sim = boot();
    sim.vm().state().sched.cold.raise();
    let ticks = sim.vm().cnt().ticks.get();
    assert_eq!(sim.vm().tsleep(channel(0), 0, "cold", 100), Sleep::Woken);
    assert_eq!(sleep(sim.vm(), channel(0), 0), Sleep::Woken);
    assert_eq!(sim.vm().cnt().ticks.get(), ticks);
    assert_eq!(
        sim.vm().state().driver_mtx.owner.get(),
        0,
        "PDROP releases the interlock all the same"
    );
}

#[test]
fn operations_on_threads_answer_as_those_of_the_driver_do() {
    let sim = boot();
    let op = Op::KmemMalloc { map: MapId::KMEM, size: 3 * PAGE_SIZE, flags: MallocFlags::NOWAIT };
    let Outcome::Value(addr) = sim.execute_on(0, op) else { panic!("no memory") };
    let addr = GuestVirt::new(addr);
    assert_eq!(sim.execute_on(1, Op::Fill { addr, size: 3 * PAGE_SIZE, seed: 5 }), Outcome::Ok);
    assert_eq!(sim.execute_on(0, Op::Verify { addr, size: 3 * PAGE_SIZE, seed: 5 }), Outcome::Ok);
    let ticks = sim.vm().cnt().ticks.get();
    assert_eq!(sim.execute_on(2, Op::Sleep { micros: 50_000 }), Outcome::Ok);
    assert_eq!(sim.vm().cnt().ticks.get() - ticks, 50, "50 ms at 1000 Hz");
}
