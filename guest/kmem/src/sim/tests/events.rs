//! Event handlers: their order, their changes of their own list, and stored operations.

use std::sync::Mutex;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MapId, Op, Outcome};

use super::super::check::check;
use super::super::threads::perform;
use super::super::{Sim, SimMachine};
use super::{NOWAIT, boot};
use crate::kern::eventhandler::{EventPriority, EventTag};
use crate::ops;
use crate::vm::Vm;
use crate::vm::eventhandler::VM_LOWMEM;

/// Appends its argument to `v_swapin`, as one more decimal digit.
fn note(vm: &Vm<SimMachine>, arg: u64, flags: u64) {
    assert_eq!(flags, 0);
    vm.assert_no_locks("a handler");
    vm.cnt().v_swapin.update_locked(|digits| digits * 10 + arg);
}

fn on(sim: &Sim, arg: u64, priority: EventPriority) -> EventTag {
    sim.vm().eventhandler_register(VM_LOWMEM, note, arg, priority).expect("there is memory")
}

/// The digits that one invocation appends.
fn fire(sim: &Sim) -> u64 {
    sim.vm().cnt().v_swapin.set(0);
    sim.vm().vm_lowmem();
    sim.vm().cnt().v_swapin.get()
}

#[test]
fn handlers_run_by_priority_and_equals_in_the_order_of_registration() {
    let sim = boot();
    assert_eq!(fire(&sim), 0, "an event without a list has no handlers");
    let five = on(&sim, 5, EventPriority::LAST);
    let _ = on(&sim, 3, EventPriority::ANY);
    let _ = on(&sim, 1, EventPriority::FIRST);
    let _ = on(&sim, 4, EventPriority::ANY);
    let two = on(&sim, 2, EventPriority::FIRST);
    assert_eq!(fire(&sim), 12345);
    sim.vm().eventhandler_deregister(two);
    sim.vm().eventhandler_deregister(five);
    assert_eq!(fire(&sim), 134);
    assert_eq!(sim.vm().cnt().lowmem_events.get(), 3);
    sim.vm().uma_reclaim();
    assert_eq!(sim.vm().cnt().lowmem_events.get(), 3, "only vm_lowmem is counted");
    check(&sim);
}

#[test]
fn there_is_no_end_to_the_number_of_handlers_and_all_their_memory_comes_back() {
    let sim = boot();
    let last = on(&sim, 1, EventPriority::LAST);
    let (free, before) = (sim.free_pages(), fire(&sim));
    let tags: Vec<_> = (0..5000).map(|_| on(&sim, 0, EventPriority::FIRST)).collect();
    assert_eq!(fire(&sim), before);
    tags.into_iter().for_each(|tag| sim.vm().eventhandler_deregister(tag));
    assert_eq!(sim.free_pages(), free);
    sim.vm().eventhandler_deregister(last);
    assert_eq!(fire(&sim), 0);
    check(&sim);
}

/// The handler that [`meddle`] deregisters.
static TAGS: Mutex<Vec<EventTag>> = Mutex::new(Vec::new());

/// Deregisters itself and the handler after it, and registers one at the end.
fn meddle(vm: &Vm<SimMachine>, _arg: u64, _flags: u64) {
    for tag in TAGS.lock().expect("nobody panicked").drain(..) {
        vm.eventhandler_deregister(tag);
    }
    let _ = vm.eventhandler_register(VM_LOWMEM, note, 9, EventPriority::LAST);
}

#[test]
fn a_handler_may_deregister_itself_and_others_and_register_more_while_its_list_runs() {
    let sim = boot();
    let _ = on(&sim, 1, EventPriority::FIRST);
    let own = sim
        .vm()
        .eventhandler_register(VM_LOWMEM, meddle, 0, EventPriority::ANY)
        .expect("there is memory");
    let next = on(&sim, 2, EventPriority::ANY);
    TAGS.lock().expect("nobody panicked").extend([own, next]);
    assert_eq!(
        fire(&sim),
        19,
        "the next one is dead at once, the new one runs in the same invocation"
    );
    assert_eq!(fire(&sim), 19);
    check(&sim);
}

fn run(vm: &Vm<SimMachine>, op: &Op) {
    let _ = perform(vm, op);
}

#[test]
fn a_stored_operation_runs_once_at_the_next_shortage_and_then_is_gone() {
    let sim = boot();
    let a = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    let b = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    let free = |addr| Op::KmemFree { map: MapId::KMEM, addr, size: PAGE_SIZE };
    assert_eq!(ops::register_lowmem(sim.vm(), &free(a), run), Outcome::Ok);
    assert_eq!(ops::register_lowmem(sim.vm(), &Op::Write { addr: b, value: 7 }, run), Outcome::Ok);
    assert_eq!(sim.map(MapId::KMEM).size.get(), 2 * PAGE_SIZE);
    sim.vm().vm_lowmem();
    assert_eq!(sim.map(MapId::KMEM).size.get(), PAGE_SIZE);
    assert_eq!(sim.read(b), 7);
    assert_eq!(sim.malloc(PAGE_SIZE, NOWAIT), Some(a));
    sim.vm().vm_lowmem();
    assert_eq!(sim.map(MapId::KMEM).size.get(), 2 * PAGE_SIZE, "it does not run again");
    check(&sim);
}
