//! Registering and calling event handlers (`eventhandler.h`, `subr_eventhandler.c`).
//!
//! Lists and handlers come from zones; [`crate::kern::eventhandler`] says how they are linked, and
//! what holds while a handler runs. A handler is called with the whole system.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{EventhandlerEntry, EventhandlerList};

use super::{Shortage, Vm, VmMachine};
use crate::kern::eventhandler::{EventPriority, EventTag};
use crate::kern::func::{EventFn, FnWord};

/// The event of a shortage of memory or address space (`vm_lowmem`), at most 15 bytes like every
/// event's name.
pub const VM_LOWMEM: &str = "vm_lowmem";
/// The event with which [`Vm::uma_reclaim`] asks allocators to free their reserves.
pub const UMA_RECLAIM: &str = "uma_reclaim";

impl<M: VmMachine> Vm<M> {
    /// Calls `func` with `arg` whenever the event `name` happens (`eventhandler_register`). Locks:
    /// takes the lists'.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the handler.
    pub fn eventhandler_register(
        &self,
        name: &str,
        func: EventFn<Self>,
        arg: u64,
        priority: EventPriority,
    ) -> Result<EventTag, Shortage> {
        self.event_register(name, func, arg, priority, |_, _| {})
    }

    /// Calls `func` with `arg` the next time that the event `name` happens, and only once, even if
    /// the event happens on several CPUs at the same time. `note` is called with the registration
    /// before the handler can run, with the lists' lock held. Locks: takes the lists'.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the handler.
    pub(crate) fn eventhandler_register_once(
        &self,
        name: &str,
        func: EventFn<Self>,
        arg: u64,
        priority: EventPriority,
        note: impl FnOnce(EventTag),
    ) -> Result<(), Shortage> {
        self.event_register(name, func, arg, priority, |e, tag| {
            e.once.raise();
            note(tag);
        })
        .map(|_| ())
    }

    fn event_register(
        &self,
        name: &str,
        func: EventFn<Self>,
        arg: u64,
        priority: EventPriority,
        prepare: impl FnOnce(&EventhandlerEntry, EventTag),
    ) -> Result<EventTag, Shortage> {
        let entry = self.zone_alloc::<EventhandlerEntry>().ok_or(Shortage)?;
        let e = self.get(entry);
        e.func.set(func.to_word());
        e.arg.set(arg);
        e.priority.set(priority.0.min(EventhandlerEntry::DEAD - 1));
        let Ok(list) = self.eventhandler_find_list(name) else {
            self.zone_free(entry);
            return Err(Shortage);
        };
        Ok(self.eventhandler_insert(list, entry, prepare))
    }

    /// Ends a registration (`eventhandler_deregister`). The handler is not called again, but may be
    /// running now. Locks: takes the lists'.
    pub fn eventhandler_deregister(&self, tag: EventTag) {
        self.eventhandler_free(self.eventhandler_kill(tag));
    }

    /// Calls the handlers of the event `name`, in order (`EVENTHANDLER_INVOKE`). An event without a
    /// list has no handlers. Locks: takes the lists', and holds no lock while a handler runs.
    /// Sleeps if a handler does.
    pub fn eventhandler_invoke(&self, name: &str, flags: u64) {
        let call = |func, arg| EventFn::<Self>::from_word(func)(self, arg, flags);
        self.eventhandler_free(self.eventhandler_run(name, call));
    }

    /// Asks all handlers that can free memory or address space to do so, because it is short
    /// (`EVENTHANDLER_INVOKE(vm_lowmem, 0)`), and counts the event. Locks: none may be held. May
    /// sleep.
    pub fn vm_lowmem(&self) {
        self.cnt().lowmem_events.fetch_add(1);
        self.eventhandler_invoke(VM_LOWMEM, 0);
    }

    /// Makes every allocator free its reserves (`uma_reclaim`). Locks: none may be held. May sleep.
    pub fn uma_reclaim(&self) {
        self.eventhandler_invoke(UMA_RECLAIM, 0);
    }

    /// The list of the event `name` (`eventhandler_find_list`), created if necessary.
    fn eventhandler_find_list(&self, name: &str) -> Result<KPtr<EventhandlerList>, Shortage> {
        if let Some(list) = self.eventhandler_list(name) {
            return Ok(list);
        }
        // Nothing can be allocated with the lock held; another thread may have made the list in the
        // meantime.
        let new = self.zone_alloc::<EventhandlerList>().ok_or(Shortage)?;
        let list = self.eventhandler_list_add(name, new);
        if list != new {
            self.zone_free(new);
        }
        Ok(list)
    }

    /// Frees the handlers of the chain `dead`.
    fn eventhandler_free(&self, dead: KPtr<EventhandlerEntry>) {
        let mut at = dead;
        while let Some(entry) = at.non_null() {
            at = self.get(entry).next.get();
            self.zone_free(entry);
        }
    }
}
