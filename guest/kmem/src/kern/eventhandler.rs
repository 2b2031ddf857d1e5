//! The lists of event handlers (`subr_eventhandler.c`): functions that are called when something
//! happens, such as a shortage.
//!
//! An event is a name; its list is created at the first registration and never destroyed. Handlers
//! run in ascending order of priority and, among equals, in the order of registration. While a
//! handler runs the lists are not locked, so it may sleep, register and deregister if its caller
//! may. A handler that is deregistered while its list runs is marked dead, and leaves the list when
//! the last run ends.
//!
//! This module links lists and handlers. The layer above allocates, frees and calls them
//! ([`crate::vm::eventhandler`]): handlers that leave a list are returned as a chain. All
//! structures are reachable from the roots. A handler's function is stored as its address, as in
//! FreeBSD ([`super::func::FnWord`]).

use vmkern_abi::addr::KPtr;
use vmkern_abi::field::Field;
use vmkern_abi::kmem::WaitMessage;
use vmkern_abi::layout::{EventhandlerEntry, EventhandlerList};

use super::Kern;
use super::guard::{Guard, Lock};
use super::lock::LockClass;
use super::queue::{PointerSList, pointer_links};
use crate::machine::{Cpu, PhysMem};

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

/// A registration, for `eventhandler_deregister`.
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

/// The kind of the lists' mutex.
enum ListsLock {}

impl Lock for ListsLock {
    const CLASS: LockClass = LockClass::Eventhandler;
}

/// The lists of event handlers, locked.
type Lists<'a, M> = Guard<'a, M, ListsLock>;

pointer_links! {
    /// The lists of all events (`el_link`).
    ListLinks: EventhandlerList { next: next_list }
    /// The handlers of an event, the first to run first (`ee_link`).
    EntryLinks: EventhandlerEntry { next: next }
}

impl<M: PhysMem + Cpu> Kern<M> {
    fn eventhandler_lists(&self) -> Lists<'_, M> {
        self.mtx_guard(&self.state().eventhandler_mtx)
    }

    /// The list of the event `name`, if there was a registration. Locks: takes the lists'.
    pub(crate) fn eventhandler_list(&self, name: &str) -> Option<KPtr<EventhandlerList>> {
        self.eventhandler_find(&self.eventhandler_lists(), name)
    }

    /// Makes `new`, all zero, the list of the event `name`, unless the event has one; returns the
    /// event's list. Locks: takes the lists'.
    pub(crate) fn eventhandler_list_add(
        &self,
        name: &str,
        new: KPtr<EventhandlerList>,
    ) -> KPtr<EventhandlerList> {
        let lists = self.eventhandler_lists();
        let found = self.eventhandler_find(&lists, name);
        if found.is_none() {
            let words = WaitMessage::new(name).words();
            self.get(new).name.iter().zip(words).for_each(|(field, word)| field.set(word));
            self.eventhandler_all(&lists).insert_head(new);
        }
        found.unwrap_or(new)
    }

    /// Puts `entry`, whose function, argument and priority are set, into `list`. `prepare` is
    /// called with the registration before the handler can run, with the lists' lock held. Locks:
    /// takes the lists'.
    pub(crate) fn eventhandler_insert(
        &self,
        list: KPtr<EventhandlerList>,
        entry: KPtr<EventhandlerEntry>,
        prepare: impl FnOnce(&EventhandlerEntry, EventTag),
    ) -> EventTag {
        let e = self.get(entry);
        let lists = self.eventhandler_lists();
        let tag = EventTag { list, entry };
        prepare(e, tag);
        self.eventhandler_entries(&lists, list).insert_sorted(entry, |at| {
            let other = self.get(at).priority.get();
            other != EventhandlerEntry::DEAD && e.priority.get() < other
        });
        tag
    }

    /// Marks the handler of `tag` dead: it is not called again, but may be running now. Returns the
    /// handlers that have left the list, as a chain. Locks: takes the lists'.
    #[must_use = "what has left its list is to be freed"]
    pub(crate) fn eventhandler_kill(&self, tag: EventTag) -> KPtr<EventhandlerEntry> {
        let lists = self.eventhandler_lists();
        self.get(tag.entry).priority.set(EventhandlerEntry::DEAD);
        if self.get(tag.list).runcount.get() == 0 {
            self.eventhandler_prune(&lists, tag.list)
        } else {
            KPtr::NULL
        }
    }

    /// Uses `call` to call the handlers of the event `name`, in order; its arguments are a
    /// handler's function, as a word, and the handler's argument. An event without a list has no
    /// handlers. Returns the handlers that have left the list, as a chain. Locks: takes the lists',
    /// and holds no lock while a handler runs. Sleeps if a handler does.
    #[must_use = "what has left its list is to be freed"]
    pub(crate) fn eventhandler_run(
        &self,
        name: &str,
        call: impl Fn(u64, u64),
    ) -> KPtr<EventhandlerEntry> {
        // 1. The list runs from here on, so nothing on it is freed.
        let mut lists = self.eventhandler_lists();
        let Some(list) = self.eventhandler_find(&lists, name) else { return KPtr::NULL };
        let l = self.get(list);
        let runs = |change: i16| {
            l.runcount.update_locked(|n| n.wrapping_add_signed(change.into()));
            if let Some(current) = self.current_thread().non_null() {
                self.get(current).event_nesting.update_locked(|n| n.wrapping_add_signed(change));
            }
        };
        runs(1);
        // 2. Call the handlers, each without the lock. A handler that runs only once is marked dead
        // before its call.
        let mut at = l.first.get();
        while let Some(entry) = at.non_null() {
            let e = self.get(entry);
            if e.priority.get() != EventhandlerEntry::DEAD {
                let (func, arg) = (e.func.get(), e.arg.get());
                if e.once.is_set() {
                    e.priority.set(EventhandlerEntry::DEAD);
                }
                // Handlers may be registered and deregistered during the call, but this entry
                // stays: the list runs.
                lists.unlocked(|| call(func, arg));
            }
            at = e.next.get();
        }
        // 3. The last run prunes the handlers that have died in the meantime.
        runs(-1);
        if l.runcount.get() == 0 { self.eventhandler_prune(&lists, list) } else { KPtr::NULL }
    }

    /// The list of the event `name` (`_eventhandler_find_list`), if there was a registration.
    fn eventhandler_find(
        &self,
        lists: &Lists<'_, M>,
        name: &str,
    ) -> Option<KPtr<EventhandlerList>> {
        let name = WaitMessage::new(name).words();
        self.eventhandler_all(lists).find(|list| {
            let l = self.get(list);
            [l.name[0].get(), l.name[1].get()] == name
        })
    }

    /// Removes the dead handlers from a list that is not running (`eventhandler_prune_list`), and
    /// returns them as a chain.
    fn eventhandler_prune(
        &self,
        lists: &Lists<'_, M>,
        list: KPtr<EventhandlerList>,
    ) -> KPtr<EventhandlerEntry> {
        let dead = Field::default();
        let chain = self.slist::<EntryLinks>(&dead);
        self.eventhandler_entries(lists, list).remove_all(
            |entry| self.get(entry).priority.get() == EventhandlerEntry::DEAD,
            |entry| chain.insert_head(entry),
        );
        dead.get()
    }

    /// The lists of all events.
    fn eventhandler_all(&self, _: &Lists<'_, M>) -> PointerSList<'_, M, ListLinks> {
        self.slist(&self.state().eventhandler_lists)
    }

    /// The handlers of `list` (`el_entries`).
    fn eventhandler_entries(
        &self,
        _: &Lists<'_, M>,
        list: KPtr<EventhandlerList>,
    ) -> PointerSList<'_, M, EntryLinks> {
        self.slist(&self.get(list).first)
    }
}
