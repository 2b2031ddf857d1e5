//! Event handlers (`subr_eventhandler.c`): functions that are called when something happens, such
//! as a shortage.
//!
//! An event is a name; its list is made at the first registration and lives on. Handlers run in
//! ascending order of priority and, among equals, in the order of registration. While one runs the
//! lists are not locked, so that it may sleep, register and deregister as its caller may; a handler
//! that is deregistered while its list runs is marked dead and leaves when the last run ends.
//!
//! Lists and handlers come from zones and are reachable from the roots. A handler's function is
//! kept as its address, as in FreeBSD ([`FnWord`]).

use vmkern_abi::addr::KPtr;
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{EventhandlerEntry, EventhandlerList};

use super::func::FnWord;
use super::lock::LockClass;
use crate::machine::Machine;
use crate::vm::{Shortage, Vm};

/// The event of a shortage of memory or address space (`vm_lowmem`), at most 15 bytes like every
/// event's name.
pub const VM_LOWMEM: &str = "vm_lowmem";
/// The event with which [`Vm::uma_reclaim`] asks allocators to give back what they keep.
pub const UMA_RECLAIM: &str = "uma_reclaim";

/// A handler's function: called with its own argument and with what the event says (0 for vm_lowmem
/// in 2008).
pub type EventFn<M> = fn(&Vm<M>, arg: u64, flags: u64);

/// When a handler runs among the others of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPriority(pub u32);

impl EventPriority {
    /// Before all others (`EVENTHANDLER_PRI_FIRST`).
    pub const FIRST: Self = Self(0);
    /// At any time (`EVENTHANDLER_PRI_ANY`).
    pub const ANY: Self = Self(10_000);
    /// After all others (`EVENTHANDLER_PRI_LAST`).
    pub const LAST: Self = Self(20_000);
}

/// A registration, for [`Vm::eventhandler_deregister`].
#[must_use = "a handler that nobody can deregister runs for ever"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTag {
    list: KPtr<EventhandlerList>,
    entry: KPtr<EventhandlerEntry>,
}

impl EventTag {
    /// Its list.
    pub(crate) const fn list(self) -> KPtr<EventhandlerList> {
        self.list
    }

    /// Its entry there.
    pub(crate) const fn entry(self) -> KPtr<EventhandlerEntry> {
        self.entry
    }
}

impl<M: Machine> Vm<M> {
    /// Calls `func` with `arg` whenever the event `name` happens (`eventhandler_register`). Locks:
    /// takes the lists'.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the handler.
    pub fn eventhandler_register(
        &self,
        name: &str,
        func: EventFn<M>,
        arg: u64,
        priority: EventPriority,
    ) -> Result<EventTag, Shortage> {
        self.event_register(name, func, arg, priority, |_, _| {})
    }

    /// Calls `func` with `arg` the next time that the event `name` happens, and then no more, on
    /// however many CPUs it happens at once. `note` is called with the registration before anybody
    /// can run it, with the lists' lock held. Locks: takes the lists'.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for the handler.
    pub(crate) fn eventhandler_register_once(
        &self,
        name: &str,
        func: EventFn<M>,
        arg: u64,
        priority: EventPriority,
        note: impl FnOnce(EventTag),
    ) -> Result<(), Shortage> {
        self.event_register(name, func, arg, priority, |e, tag| {
            e.once.set(1);
            note(tag);
        })
        .map(|_| ())
    }

    fn event_register(
        &self,
        name: &str,
        func: EventFn<M>,
        arg: u64,
        priority: EventPriority,
        prepare: impl FnOnce(&EventhandlerEntry, EventTag),
    ) -> Result<EventTag, Shortage> {
        let entry = self.zone_alloc::<EventhandlerEntry>().ok_or(Shortage)?;
        let e = self.get(entry);
        e.func.set(func.to_word());
        e.arg.set(arg);
        e.priority.set(priority.0.min(EventhandlerEntry::DEAD - 1));
        let Ok(list) = self.eventhandler_list(name) else {
            self.zone_free(entry);
            return Err(Shortage);
        };
        self.eventhandler_lock();
        let mut link = &self.get(list).first;
        while let Some(at) = link.get().non_null() {
            let other = self.get(at).priority.get();
            if other != EventhandlerEntry::DEAD && e.priority.get() < other {
                break;
            }
            link = &self.get(at).next;
        }
        e.next.set(link.get());
        let tag = EventTag { list, entry };
        prepare(e, tag);
        link.set(entry);
        self.eventhandler_unlock();
        Ok(tag)
    }

    /// Ends a registration (`eventhandler_deregister`). The handler is not called again, but may be
    /// running now. Locks: takes the lists'.
    pub fn eventhandler_deregister(&self, tag: EventTag) {
        self.eventhandler_lock();
        self.get(tag.entry).priority.set(EventhandlerEntry::DEAD);
        let dead = if self.get(tag.list).runcount.get() == 0 {
            self.eventhandler_prune(tag.list)
        } else {
            KPtr::NULL
        };
        self.eventhandler_unlock();
        self.eventhandler_free(dead);
    }

    /// Calls the handlers of the event `name`, in order (`EVENTHANDLER_INVOKE`). An event without a
    /// list has none. Locks: takes the lists', and holds no lock while a handler runs. Sleeps if a
    /// handler does.
    pub fn eventhandler_invoke(&self, name: &str, flags: u64) {
        self.eventhandler_lock();
        let Some(list) = self.eventhandler_find(name) else {
            self.eventhandler_unlock();
            return;
        };
        let l = self.get(list);
        let runs = |change: i16| {
            l.runcount.update_locked(|n| n.wrapping_add_signed(change.into()));
            if let Some(current) = self.current_thread().non_null() {
                self.get(current).event_nesting.update_locked(|n| n.wrapping_add_signed(change));
            }
        };
        runs(1);
        let mut at = l.first.get();
        while let Some(entry) = at.non_null() {
            let e = self.get(entry);
            if e.priority.get() != EventhandlerEntry::DEAD {
                let (func, arg) = (EventFn::<M>::from_word(e.func.get()), e.arg.get());
                if e.once.get() != 0 {
                    e.priority.set(EventhandlerEntry::DEAD);
                }
                self.eventhandler_unlock();
                func(self, arg, flags);
                self.eventhandler_lock();
            }
            at = e.next.get();
        }
        runs(-1);
        let dead = if l.runcount.get() == 0 { self.eventhandler_prune(list) } else { KPtr::NULL };
        self.eventhandler_unlock();
        self.eventhandler_free(dead);
    }

    /// Tells everybody who can give memory or address space back that it is short
    /// (`EVENTHANDLER_INVOKE(vm_lowmem, 0)`), and counts that. Locks: none may be held. May sleep.
    pub fn vm_lowmem(&self) {
        self.cnt().lowmem_events.fetch_add(1);
        self.eventhandler_invoke(VM_LOWMEM, 0);
    }

    /// Makes every allocator give back what it keeps in reserve (`uma_reclaim`). Locks: none may be
    /// held. May sleep.
    pub fn uma_reclaim(&self) {
        self.eventhandler_invoke(UMA_RECLAIM, 0);
    }

    fn eventhandler_lock(&self) {
        self.mtx_lock(LockClass::Eventhandler, &self.state().eventhandler_mtx.owner);
    }

    fn eventhandler_unlock(&self) {
        self.mtx_unlock(LockClass::Eventhandler, &self.state().eventhandler_mtx.owner);
    }

    /// The list of the event `name` (`_eventhandler_find_list`), if anybody has registered. Locks:
    /// the lists'.
    fn eventhandler_find(&self, name: &str) -> Option<KPtr<EventhandlerList>> {
        let name = WaitMessage::new(name).words();
        let mut at = self.state().eventhandler_lists.get();
        while let Some(list) = at.non_null() {
            let l = self.get(list);
            if [l.name[0].get(), l.name[1].get()] == name {
                return Some(list);
            }
            at = l.next_list.get();
        }
        None
    }

    /// The list of the event `name`, made if need be.
    fn eventhandler_list(&self, name: &str) -> Result<KPtr<EventhandlerList>, Shortage> {
        self.eventhandler_lock();
        let found = self.eventhandler_find(name);
        self.eventhandler_unlock();
        if let Some(list) = found {
            return Ok(list);
        }
        // Nothing can be allocated with the lock held; somebody else may have made the list
        // meanwhile.
        let new = self.zone_alloc::<EventhandlerList>().ok_or(Shortage)?;
        self.eventhandler_lock();
        let found = self.eventhandler_find(name);
        if found.is_none() {
            let words = WaitMessage::new(name).words();
            self.get(new).name.iter().zip(words).for_each(|(field, word)| field.set(word));
            self.get(new).next_list.set(self.state().eventhandler_lists.get());
            self.state().eventhandler_lists.set(new);
        }
        self.eventhandler_unlock();
        Ok(match found {
            Some(list) => {
                self.zone_free(new);
                list
            }
            None => new,
        })
    }

    /// Takes the dead handlers off a list that nobody runs (`eventhandler_prune_list`), as a chain.
    fn eventhandler_prune(&self, list: KPtr<EventhandlerList>) -> KPtr<EventhandlerEntry> {
        let mut dead = KPtr::NULL;
        let mut link = &self.get(list).first;
        while let Some(at) = link.get().non_null() {
            let e = self.get(at);
            if e.priority.get() == EventhandlerEntry::DEAD {
                link.set(e.next.get());
                e.next.set(dead);
                dead = at;
            } else {
                link = &e.next;
            }
        }
        dead
    }

    fn eventhandler_free(&self, dead: KPtr<EventhandlerEntry>) {
        let mut at = dead;
        while let Some(entry) = at.non_null() {
            at = self.get(entry).next.get();
            self.zone_free(entry);
        }
    }
}
