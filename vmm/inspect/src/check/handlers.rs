//! Event handlers: their lists, their order, and those that wait for removal.

use std::collections::HashMap;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::Context::Lowmem;
use vmkern_abi::control::{Request, WaitMessage};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::{EventhandlerEntry, StoredOp, Zone};

use super::context::Context;
use super::rule::rules;
use super::sched::{Event, Item};
use super::zones::zone_of_item;

rules! {
    Some(check);
    Locks {
        EVENT_NAME = "event-name":
            "lists of handlers have the names of the kernel's events";
        EVENT_ORDER = "event-order":
            "the handlers of a list have ascending priorities";
        EVENT_FUNCTION = "event-function":
            "a handler's function lies in the image";
        EVENT_RUNCOUNT = "event-runcount":
            "threads note every run of a list (`event_nesting`), including nested ones";
        EVENT_DEAD = "event-dead":
            "a list keeps dead handlers only while it runs";
        STORED_OP = "stored-op":
            "a stored operation can be decoded, and its handler names it";
    }
}

/// The kernel's events.
const EVENTS: [&str; 1] = ["vm_lowmem"];

/// Checks the lists of event handlers.
fn check(ctx: &Context<'_>) {
    if ctx.roots.eventhandler_mtx.owner.get() != 0 {
        return;
    }
    check_runs(ctx);
    let mut names = HashMap::new();
    for event in &ctx.sched.events {
        let list = &event.list;
        let words = [list.value.name[0].get(), list.value.name[1].get()];
        if !EVENTS.iter().any(|name| WaitMessage::new(name).words() == words) {
            ctx.finding(&EVENT_NAME, "event", list.addr(), || {
                format!(
                    "its name is `{}`, but the kernel has only {EVENTS:?}",
                    WaitMessage::from_words(words)
                )
            });
        }
        if let Some(other) = names.insert(words, list.addr()) {
            ctx.finding(&EVENT_NAME, "event", list.addr(), || {
                format!("its name `{}` is also that of {other}", WaitMessage::from_words(words))
            });
        }
        check_event(ctx, event, &WaitMessage::from_words(words).to_string());
    }
}

/// Checks that each run of a list belongs to a thread. A handler may sleep in a way that fires the
/// event again, so one thread may account for several runs; the thread counts them.
fn check_runs(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    let runs = |event: &Event| event.list.value.runcount.get();
    let counted = ctx.sched.events.iter().map(runs).fold(0u64, u64::wrapping_add);
    let threads = ctx.sched.threads.iter().chain(&ctx.sched.zombies);
    let noted: u64 = threads.map(|thread| u64::from(thread.value.event_nesting.get())).sum();
    if counted == noted {
        return;
    }
    // The faulty list is unknown: name the one with the most runs.
    let at = ctx
        .sched
        .events
        .iter()
        .max_by_key(|&event| runs(event))
        .map_or_else(|| ctx.root_of(&ctx.roots.eventhandler_lists), |event| event.list.addr());
    ctx.finding(&EVENT_RUNCOUNT, "event", at, || {
        format!(
            "the lists' runcounts sum to {counted}, but threads note that they are in {noted} runs"
        )
    });
}

fn check_event(ctx: &Context<'_>, event: &Event, name: &str) {
    // 1. A deregistered handler stays on the list only while the list runs.
    let runs = event.list.value.runcount.get();
    let mut least = 0;
    for handler in &event.handlers {
        let (at, priority) = (handler.addr(), handler.value.priority.get());
        if priority == EventhandlerEntry::DEAD {
            if runs == 0 {
                ctx.finding(&EVENT_DEAD, "event handler", at, || {
                    format!(
                        "it is deregistered, but still on the list of `{name}`, which is not \
                         running"
                    )
                });
            }
        } else {
            if priority < least {
                ctx.finding(&EVENT_ORDER, "event handler", at, || {
                    format!(
                        "its priority is {priority}, but one before it on the list of `{name}` has \
                         {least}"
                    )
                });
            }
            least = least.max(priority);
            check_stored(ctx, event, handler);
        }
        // 2. The handler is a function of the kernel.
        let image = KERNBASE..ctx.roots.virtual_avail.get();
        let func = GuestVirt::new(handler.value.func.get());
        if !image.contains(&func) {
            ctx.finding(&EVENT_FUNCTION, "event handler", at, || {
                format!(
                    "its function is at {func}, outside the image [{}, {})",
                    image.start, image.end
                )
            });
        }
    }
}

/// Checks that a handler whose argument is a stored operation is the one that the operation names.
fn check_stored(ctx: &Context<'_>, event: &Event, handler: &Item<EventhandlerEntry>) {
    // 1. The operation names its handler and its list.
    let Some(stored) = stored_op(ctx, handler) else { return };
    let s = &stored.value;
    // A new operation gets its slot first; its handler and list follow when it is registered.
    let unset = !ctx.is_quiet() && s.handler.get().is_null() && s.list.get().is_null();
    let half_set = !ctx.is_quiet() && s.handler.get() == handler.at && s.list.get().is_null();
    if (s.handler.get() != handler.at || s.list.get() != event.list.at) && !unset && !half_set {
        ctx.finding(&STORED_OP, "stored operation", stored.addr(), || {
            let (own, list) = (s.handler.get().addr(), s.list.get().addr());
            format!(
                "it names handler {own} of list {list}, but {} of {} names it",
                handler.addr(),
                event.list.addr()
            )
        });
    }
    // 2. The operation itself.
    check_slot(ctx, &stored);
    // 3. The functions: the same for all stored operations.
    let run = GuestVirt::new(s.run.get());
    let image = KERNBASE..ctx.roots.virtual_avail.get();
    if !image.contains(&run) {
        ctx.finding(&STORED_OP, "stored operation", stored.addr(), || {
            format!("its function is at {run}, outside the image [{}, {})", image.start, image.end)
        });
    }
    let others = event.handlers.iter().filter_map(|other| Some((other, stored_op(ctx, other)?)));
    for (other, theirs) in others.take_while(|(other, _)| other.at != handler.at) {
        if (other.value.func.get(), theirs.value.run.get())
            != (handler.value.func.get(), s.run.get())
        {
            ctx.finding(&STORED_OP, "stored operation", stored.addr(), || {
                let (func, other) = (handler.value.func.get(), theirs.addr());
                format!("handler function {func:#x} or run {run} is not that of the one at {other}")
            });
            break;
        }
    }
}

/// Checks that the slot of a stored operation holds a valid request and nothing more.
fn check_slot(ctx: &Context<'_>, stored: &Item<StoredOp>) {
    let s = &stored.value;
    let slot = std::array::from_fn(|word| s.slot[word].get());
    match Request::decode(&slot) {
        Err(error) => {
            ctx.finding(&STORED_OP, "stored operation", stored.addr(), || {
                format!("it is not an operation: {error}")
            });
        }
        Ok(request)
            if request.encode() != slot || request.tag != 0 || request.context != Lowmem =>
        {
            ctx.finding(&STORED_OP, "stored operation", stored.addr(), || {
                format!("its slot {slot:x?} holds more than {request:?}")
            });
        }
        Ok(_) => {}
    }
}

/// The stored operation that `handler` performs, if its argument is one.
pub(super) fn stored_op(
    ctx: &Context<'_>,
    handler: &Item<EventhandlerEntry>,
) -> Option<Item<StoredOp>> {
    let at: KPtr<StoredOp> = KPtr::new(GuestVirt::new(handler.value.arg.get()));
    if handler.value.priority.get() == EventhandlerEntry::DEAD
        || zone_of_item(ctx, at.addr()) != Some(Zone::StoredOp)
    {
        return None;
    }
    ctx.memory.get("stored operation", at).ok().map(|value| Item { at, value })
}
