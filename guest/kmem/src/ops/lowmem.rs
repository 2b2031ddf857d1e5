//! Operations that wait for the next shortage of memory, as one-time handlers of the vm_lowmem
//! event.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{Context, KernReturn, Op, Outcome, Request};
use vmkern_abi::layout::StoredOp;

use super::OpFn;
use crate::kern::eventhandler::{EventPriority, EventTag};
use crate::kern::func::FnWord;
use crate::vm::eventhandler::VM_LOWMEM;
use crate::vm::{Vm, VmMachine};

/// Stores `op` until the vm_lowmem event next fires. Then `run` performs it, once, on the thread
/// that met the shortage or on the pagedaemon. Several operations run in the order in which they
/// came.
///
/// Answer: ok, KERN_RESOURCE_SHORTAGE when there is no page to keep it in, or KERN_INVALID_ARGUMENT
/// for [`Op::Settle`] and [`Op::Join`]: nothing comes to rest in the middle of a shortage. Locks:
/// none may be held.
pub fn register_lowmem<M: VmMachine>(vm: &Vm<M>, op: &Op, run: OpFn<M>) -> Outcome {
    if matches!(op, Op::Settle | Op::Join { .. }) {
        return Outcome::Error(KernReturn::InvalidArgument);
    }
    let shortage = Outcome::Error(KernReturn::ResourceShortage);
    let Some(stored) = vm.zone_alloc::<StoredOp>() else { return shortage };
    let s = vm.get(stored);
    let slot = Request { tag: 0, context: Context::Lowmem, op: *op }.encode();
    s.slot.iter().zip(slot).for_each(|(field, word)| field.set(word));
    s.run.set(run.to_word());
    let note = |tag: EventTag| {
        s.handler.set(tag.entry());
        s.list.set(tag.list());
    };
    match vm.eventhandler_register_once(
        VM_LOWMEM,
        run_stored,
        stored.addr().get(),
        EventPriority::ANY,
        note,
    ) {
        Ok(()) => Outcome::Ok,
        Err(_) => {
            vm.zone_free(stored);
            shortage
        }
    }
}

/// The handler: performs the operation at `arg`. Because it is registered for one call, neither
/// another CPU nor a shortage in the operation itself performs it again.
fn run_stored<M: VmMachine>(vm: &Vm<M>, arg: u64, _flags: u64) {
    let stored: KPtr<StoredOp> = KPtr::new(GuestVirt::new(arg));
    let s = vm.get(stored);
    let run = <OpFn<M>>::from_word(s.run.get());
    let request = Request::decode(&core::array::from_fn(|i| s.slot[i].get()));
    vm.zone_free(stored);
    match request {
        Ok(request) => run(vm, &request.op),
        Err(error) => vm.panic(format_args!("vm_lowmem: a stored operation is damaged: {error}")),
    }
}
