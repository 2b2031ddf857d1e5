//! Sleeps and wakeups on two CPUs, and CPUs that are about to halt.
//!
//! The CPUs share much, and take turns at every access to it, so few preemptions make many orders
//! of events. Models that must hold are tried with one preemption, in some seconds. Models that
//! must fail need two for that, and fail long before all orders are tried.

use super::machine::{Cpu, Kernel, Rest, clock};
use super::sleep::{announce, await_ready};
use crate::kern::Kern;
use crate::kern::idle::{IdleCpu, Polling};

/// Runs `model` with at most this many preemptions.
fn model(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.map(|bound| bound.min(preemptions));
    builder.check(model);
}

/// The kernel's own way to wait, without a second look for work before the halt.
fn rest(idle: &IdleCpu, has_work: &dyn Fn() -> bool, interrupts: &dyn Fn(), halt: &dyn Fn()) {
    let go_on = || {
        interrupts();
        false
    };
    idle.rest(has_work, go_on, halt);
}

fn wait(kern: &Kern<Cpu>) {
    await_ready(kern, || kern.cnt().v_page_count.get() == 1);
}

fn wake(kern: &Kern<Cpu>) {
    announce(kern, || kern.cnt().v_page_count.set(1));
}

/// A thread of one CPU waits for a thread of the other.
fn wait_and_wake(rest: Rest) {
    let mut kernel = Kernel::on_two_cpus(clock, rest);
    kernel.spawn_on(1, 1, wait);
    kernel.spawn_on(0, 2, wake);
    kernel.finish();
}

#[test]
fn a_wakeup_reaches_a_thread_whose_cpu_is_about_to_halt() {
    model(1, || wait_and_wake(rest));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_cpu_that_does_not_look_again_after_it_is_armed_halts_for_ever() {
    model(2, || {
        wait_and_wake(|idle, has_work, interrupts, halt| {
            idle.set_polling(Polling::Yes);
            interrupts();
            if !has_work() {
                idle.arm();
                halt();
                idle.disarm();
            }
        });
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_cpu_that_is_armed_after_its_last_look_halts_for_ever() {
    model(2, || {
        wait_and_wake(|idle, has_work, interrupts, halt| {
            // The word that others read is set too late.
            idle.rest(
                has_work,
                || {
                    interrupts();
                    has_work()
                },
                || {
                    idle.disarm();
                    if !has_work() {
                        idle.arm();
                        halt();
                    }
                },
            );
        });
    });
}
