//! A guest as the tests of `vm_kern.c` see it: calls whose answers they take for granted, and looks
//! at maps, pages and counters.

use std::ops::{Deref, DerefMut};

use vmkern::abi::layout::VmMeter;
use vmkern::inspect::{EntryView, MapStats, ObjectView};
use vmkern::testing::{Answer, TestGuest};
use vmkern::{Context, Crash, Guest, GuestVirt, MallocFlags, MapId, Op, Outcome, ThreadId};

use crate::{Run as _, t};

pub use vmkern::testing::Calls;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// What execve asks exec_map for, in bytes.
pub const ARGUMENTS: u64 = 267_264;

/// What is counted in pages, entries and bytes, and comes back when everything that was allocated
/// is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// `v_free_count`.
    pub free: u64,
    /// `v_wire_count`.
    pub wired: u64,
    /// Entries of the map.
    pub entries: u64,
    /// Bytes in use in the map.
    pub size: u64,
}

/// A guest whose calls return the answer itself. One that brings none panics with its own words, so
/// the closures in which these tests run return nothing.
#[derive(Debug)]
pub struct KernGuest(TestGuest);

impl From<TestGuest> for KernGuest {
    fn from(guest: TestGuest) -> Self {
        Self(guest)
    }
}

impl Deref for KernGuest {
    type Target = TestGuest;

    fn deref(&self) -> &TestGuest {
        &self.0
    }
}

impl DerefMut for KernGuest {
    fn deref_mut(&mut self) -> &mut TestGuest {
        &mut self.0
    }
}

/// On thread 0.
impl Calls for KernGuest {
    type Returned<A: Answer> = A;

    #[track_caller]
    fn perform<A: Answer>(&mut self, op: Op) -> A {
        self.0.perform(op).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Calls on thread 0, unless they say otherwise. All panic when the guest dies of it, or cannot be
/// looked into.
impl KernGuest {
    /// The guest, which nobody looks over any more.
    #[must_use]
    pub fn into_unchecked(self) -> Guest {
        self.0.into_unchecked()
    }

    /// Fills the range, and finds in it what was written.
    pub fn use_memory(&mut self, addr: GuestVirt, size: u64) {
        self.fill(addr, size, size);
        self.verify(addr, size, size);
    }

    /// Makes thread `thread` do `op`, by which it must block in `wmesg`. It must not be blocked any
    /// more in the end.
    pub fn blocks(&mut self, thread: u16, op: Op, wmesg: &str) {
        let outcome = self.on(t(thread)).perform::<Outcome>(op);
        let Ok(Outcome::Blocked { waits_for }) = outcome else {
            panic!("{op} gave {outcome:?}, not a sleep in {wmesg}")
        };
        assert_eq!(waits_for.to_string(), wmesg, "{op}");
    }

    /// What became of the operation of a blocked thread.
    pub fn join(&mut self, thread: u16) -> Outcome {
        self.perform(Op::Join { thread })
    }

    /// Asks for a blocked thread, which must be blocked still.
    pub fn still_blocked(&mut self, thread: u16) {
        let outcome = self.join(thread);
        assert!(matches!(outcome, Outcome::Blocked { .. }), "thread {thread}: {outcome:?}");
    }

    /// The address that a blocked thread has got meanwhile.
    pub fn joined(&mut self, thread: u16) -> GuestVirt {
        match self.join(thread) {
            Outcome::Value(value) => GuestVirt::new(value),
            other => panic!("thread {thread}: {other:?}"),
        }
    }

    /// Does `op` in an interrupt handler.
    pub fn interrupt(&mut self, op: Op) -> Outcome {
        self.in_interrupt().perform(op).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Has `op` done by a handler of the next vm_lowmem event.
    pub fn on_lowmem(&mut self, op: Op) {
        self.0.on_lowmem().perform::<()>(op).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Does `op`, by which the guest must die.
    pub fn dies_of(&mut self, op: Op) -> Crash {
        self.dies_of_in(Context::from(ThreadId::MAIN), op)
    }

    /// Does `op` in `context`, by which the guest must die.
    pub fn dies_of_in(&mut self, context: Context, op: Op) -> Crash {
        // What it says is judged by the caller.
        match context {
            Context::Thread(thread) => self.on(t(thread)).expect_panic("").perform::<Outcome>(op),
            Context::Interrupt => self.in_interrupt().expect_panic("").perform::<Outcome>(op),
            other => panic!("no test dies in {other:?}"),
        }
    }

    /// The kernel's counters.
    pub fn counters(&self) -> VmMeter {
        self.meter().expect("the counters can be read")
    }

    /// `v_free_count`.
    pub fn free_pages(&self) -> u64 {
        self.counters().v_free_count.get()
    }

    /// Size and use of a map.
    pub fn stats(&self, map: MapId) -> MapStats {
        self.map_stats(map).expect("the map can be read")
    }

    /// The entries of a map.
    pub fn entries(&self, map: MapId) -> Vec<EntryView> {
        self.map_entries(map).expect("the map can be read")
    }

    /// The entries of a map: first page and page past the end, counted from the map's start.
    pub fn pages(&self, map: MapId) -> Vec<(u64, u64)> {
        let min = self.stats(map).min;
        self.entries(map)
            .iter()
            .map(|e| (e.start.since(min) / PAGE, e.end.since(min) / PAGE))
            .collect()
    }

    /// The entry of a map that holds `addr`, or of the submap there.
    pub fn entry(&self, map: MapId, addr: GuestVirt) -> EntryView {
        let entries = self.entries(map);
        let found = entries.into_iter().find(|e| e.start <= addr && addr < e.end);
        found.unwrap_or_else(|| panic!("{addr} is in no entry"))
    }

    /// Whether the host's own walk finds a translation for `addr`.
    pub fn is_mapped(&self, addr: GuestVirt) -> bool {
        self.vtop(addr).expect("the page tables can be read").mapping.is_some()
    }

    /// Whether `[addr, addr + size)` is mapped page by page.
    pub fn mapped_pages(&self, addr: GuestVirt, size: u64) -> u64 {
        let runs = self.page_runs(addr, addr.add(size)).expect("the page tables can be read");
        runs.iter().map(|run| run.end.since(run.start) / PAGE).sum()
    }

    /// The account of `map`.
    pub fn account(&self, map: MapId) -> Account {
        let (meter, stats) = (self.counters(), self.stats(map));
        Account {
            free: meter.v_free_count.get(),
            wired: meter.v_wire_count.get(),
            entries: stats.entries,
            size: stats.size,
        }
    }

    /// Makes thread `thread`, so that its stack is there before pages are counted.
    pub fn make_thread(&mut self, thread: u16) {
        self.on(t(thread)).nop().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Takes the rest of the addresses that the boot has made page tables for: more of kernel_map
    /// costs pages.
    pub fn take_boot_tables(&mut self) {
        let roots = self.look(|view| view.copy("kernel roots", view.roots()));
        let end = roots.expect("the roots can be read").kernel_vm_end.get();
        let first = self.kmem_alloc_nofault(MapId::KERNEL, PAGE).expect("there is room");
        assert!(self.kmem_alloc_nofault(MapId::KERNEL, end.since(first) - PAGE).is_some());
    }

    /// Takes all free pages but `left` for a block of kmem_map: its address and size.
    pub fn drain(&mut self, left: u64) -> (GuestVirt, u64) {
        let size = (self.free_pages() - left) * PAGE;
        let addr = self.kmem_malloc(MapId::KMEM, size, MallocFlags::NOWAIT).expect("there is room");
        assert_eq!(self.free_pages(), left);
        (addr, size)
    }

    /// Takes kmem_map whole, in single entries of one page with a hole of a page after each: its
    /// first address.
    pub fn checkerboard(&mut self) -> GuestVirt {
        let stats = self.stats(MapId::KMEM);
        let addr = self.malloc(stats.max.since(stats.min));
        for page in (1..stats.max.since(stats.min) / PAGE).step_by(2) {
            self.free(addr.add(page * PAGE), PAGE);
        }
        assert_eq!(self.stats(MapId::KMEM).max_free, PAGE);
        addr
    }

    /// What stands behind the entry at `addr`.
    pub fn object(&self, map: MapId, addr: GuestVirt) -> ObjectView {
        self.entry(map, addr).object
    }
}
