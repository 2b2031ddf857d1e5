//! Event handlers: their lists, their order, and those that wait to leave.

use std::collections::HashMap;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{Request, WaitMessage};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::{EventhandlerEntry, StoredOp};

use super::context::Context;
use super::sched::{Event, Item};
use super::zones::Zone;

/// Checks the lists of event handlers.
pub(super) fn check(ctx: &Context<'_>) {
    if ctx.roots.eventhandler_mtx.owner.get() != 0 {
        return;
    }
    let mut names = HashMap::new();
    for event in &ctx.sched.events {
        let list = &event.list;
        let words = [list.value.name[0].get(), list.value.name[1].get()];
        if words[0] == 0 {
            ctx.finding("event-name", "event", list.addr(), || "it has no name");
        }
        if let Some(other) = names.insert(words, list.addr()) {
            ctx.finding("event-name", "event", list.addr(), || {
                format!("its name `{}` is also that of {other}", WaitMessage::from_words(words))
            });
        }
        check_event(ctx, event, &WaitMessage::from_words(words).to_string());
    }
}

fn check_event(ctx: &Context<'_>, event: &Event, name: &str) {
    let runs = event.list.value.runcount.get();
    if runs != 0 && ctx.is_quiet() {
        ctx.finding("event-runcount", "event", event.list.addr(), || {
            format!("runcount of `{name}` is {runs}, but every thread waits for work")
        });
    }
    if runs > ctx.sched.threads.len() as u64 && ctx.roots.sched.lock.owner.get() == 0 {
        ctx.finding("event-runcount", "event", event.list.addr(), || {
            format!("runcount of `{name}` is {runs}, but there are {} threads", ctx.sched.threads.len())
        });
    }
    let mut least = 0;
    for handler in &event.handlers {
        let (at, priority) = (handler.addr(), handler.value.priority.get());
        if priority == EventhandlerEntry::DEAD {
            if runs == 0 {
                ctx.finding("event-dead", "event handler", at, || {
                    format!("it is deregistered and on the list of `{name}`, which nobody runs")
                });
            }
        } else {
            if priority < least {
                ctx.finding("event-order", "event handler", at, || {
                    format!("its priority is {priority}, but one before it on the list of `{name}` has {least}")
                });
            }
            least = least.max(priority);
            check_stored(ctx, event, handler);
        }
        let image = KERNBASE..ctx.roots.virtual_avail.get();
        let func = GuestVirt::new(handler.value.func.get());
        if !image.contains(&func) {
            ctx.finding("event-function", "event handler", at, || {
                format!("its function is at {func}, outside of the image [{}, {})", image.start, image.end)
            });
        }
    }
}

/// A handler whose argument is a stored operation is the one that the operation names.
fn check_stored(ctx: &Context<'_>, event: &Event, handler: &Item<EventhandlerEntry>) {
    let Some(stored) = stored_op(ctx, handler) else { return };
    let s = &stored.value;
    if !ctx.is_quiet() {
        return;
    }
    if s.handler.get() != handler.at || s.list.get() != event.list.at {
        ctx.finding("stored-op", "stored operation", stored.addr(), || {
            let (own, list) = (s.handler.get().addr(), s.list.get().addr());
            format!("it names handler {own} of list {list}, but {} of {} names it", handler.addr(), event.list.addr())
        });
    }
    let slot = std::array::from_fn(|word| s.slot[word].get());
    if let Err(error) = Request::decode(&slot) {
        ctx.finding("stored-op", "stored operation", stored.addr(), || format!("it is no operation: {error}"));
    }
}

/// The stored operation that `handler` performs, if its argument is one.
pub(super) fn stored_op(ctx: &Context<'_>, handler: &Item<EventhandlerEntry>) -> Option<Item<StoredOp>> {
    let at: KPtr<StoredOp> = KPtr::new(GuestVirt::new(handler.value.arg.get()));
    if handler.value.priority.get() == EventhandlerEntry::DEAD || Zone::of_item(ctx, at.addr()) != Some(Zone::StoredOp)
    {
        return None;
    }
    ctx.memory.get("stored operation", at).ok().map(|value| Item { at, value })
}
