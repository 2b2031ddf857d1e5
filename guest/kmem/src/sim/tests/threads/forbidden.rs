//! Uses that end the system, and the messages of their panics.

use super::*;

/// Runs `f` on a thread of its own.
fn on_a_thread(f: impl FnOnce(&Vm<SimMachine>) + Send + 'static) {
    let sim = boot();
    sim.spawn(1, f);
    sim.run();
}

#[test]
#[should_panic(expected = "thread 1 sleeps in `test` with locks held: vm page free queue mutex")]
fn sleeping_with_a_mutex_held_panics() {
    on_a_thread(|vm| {
        vm.mtx_lock(LockClass::FreeQueue, &vm.state().vm_page_queue_free_mtx.owner);
        vm.tsleep(channel(0), 0, "test", 1);
    });
}

#[test]
#[should_panic(expected = "thread 1 sleeps in `test` with locks held: driver")]
fn sleeping_with_another_mutex_than_the_interlock_panics() {
    on_a_thread(|vm| {
        let state = vm.state();
        vm.mtx_lock(LockClass::Driver, &state.driver_mtx.owner);
        vm.mtx_lock(LockClass::PageQueue, &state.vm_page_queue_mtx.owner);
        vm.msleep(
            channel(0),
            (LockClass::PageQueue, &state.vm_page_queue_mtx),
            0,
            "test",
            1,
            Relock::Drop,
        );
    });
}

#[test]
#[should_panic(expected = "sleeping in an interrupt handler: `test`")]
fn sleeping_in_an_interrupt_panics() {
    on_a_thread(|vm| {
        vm.intr_enter();
        vm.tsleep(channel(0), 0, "test", 1);
    });
}

#[test]
#[should_panic(expected = "sleeps in `test` in a critical section")]
fn sleeping_in_a_critical_section_panics() {
    on_a_thread(|vm| {
        vm.critical_enter();
        vm.tsleep(channel(0), 0, "test", 1);
    });
}

#[test]
#[should_panic(expected = "sleeping without a lock")]
fn sleeping_for_ever_without_an_interlock_panics() {
    on_a_thread(|vm| {
        vm.tsleep(channel(0), 0, "test", 0);
    });
}

#[test]
#[should_panic(expected = "lock order reversal: driver after vm page free queue mutex")]
fn taking_locks_out_of_order_panics() {
    on_a_thread(|vm| {
        vm.mtx_lock(LockClass::FreeQueue, &vm.state().vm_page_queue_free_mtx.owner);
        vm.mtx_lock(LockClass::Driver, &vm.state().driver_mtx.owner);
    });
}

#[test]
#[should_panic(expected = "recursed on non-recursive mutex driver")]
fn recursion_panics_unless_the_mutex_allows_it() {
    on_a_thread(|vm| {
        let queues = &vm.state().vm_page_queue_mtx.owner;
        vm.mtx_lock(LockClass::PageQueue, queues);
        vm.mtx_lock(LockClass::PageQueue, queues);
        vm.mtx_unlock(LockClass::PageQueue, queues);
        vm.mtx_assert_owned(LockClass::PageQueue, queues);
        vm.mtx_unlock(LockClass::PageQueue, queues);
        assert_eq!((queues.get(), vm.held_locks().bits()), (0, 0));
        let mtx = &vm.state().driver_mtx.owner;
        vm.mtx_lock(LockClass::Driver, mtx);
        vm.mtx_lock(LockClass::Driver, mtx);
    });
}

#[test]
#[should_panic(expected = "kthread_exit: thread 1 owns 1 sx locks")]
fn exiting_with_an_sx_lock_panics() {
    on_a_thread(|vm| {
        let queue = vm.zone_alloc::<vmkern_abi::layout::SleepQueue>().expect("memory");
        vm.sx_xlock(vmkern_abi::addr::KPtr::new(queue.addr()), "test sx");
    });
}

#[test]
#[should_panic(expected = "all threads sleep forever: thread 64 in `test`")]
fn the_driver_is_told_when_nobody_can_ever_wake_it() {
    let sim = boot();
    let mtx = &sim.vm().state().driver_mtx;
    sim.vm().mtx_lock(LockClass::Driver, &mtx.owner);
    sim.vm().msleep(channel(0), (LockClass::Driver, mtx), 0, "test", 0, Relock::Drop);
}

#[test]
#[should_panic(expected = "all threads sleep forever, apart from time-outs of the kernel itself")]
fn everybody_asleep_for_ever_beside_a_pagedaemon_that_finds_nothing_panics() {
    let sim = Sim::boot(16 << 20, Tunables { vm_kmem_size: Some(24 << 20), ..Tunables::default() });
    let vm = sim.vm();
    while vm.kmem_malloc(vm.kmem_map(), 4096, MallocFlags::NOWAIT).is_some() {}
    vm.vm_wait();
}
