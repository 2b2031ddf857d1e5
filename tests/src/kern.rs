//! The functions of `vm_kern.c` as a test calls them.

use vmkern::abi::layout::VmMeter;
use vmkern::inspect::{EntryView, MapStats, ObjectView};
use vmkern::{
    Context, Crash, Guest, GuestError, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome,
};

use crate::{Run, t};

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

fn address(op: Op, outcome: Outcome) -> Option<GuestVirt> {
    match outcome {
        Outcome::Value(value) => Some(GuestVirt::new(value)),
        Outcome::Null => None,
        other => panic!("{op:?} gave {other:?}"),
    }
}

/// Calls on thread 0, unless they say otherwise. All panic when the guest dies of it, or cannot be
/// looked into.
pub trait Kern: Run {
    /// The guest itself.
    fn guest(&mut self) -> &mut Guest;

    /// `kmem_alloc_nofault`.
    fn kmem_alloc_nofault(&mut self, map: MapId, size: u64) -> Option<GuestVirt> {
        let op = Op::KmemAllocNofault { map, size };
        address(op, self.run(op))
    }

    /// `kmem_alloc`.
    fn kmem_alloc(&mut self, map: MapId, size: u64) -> Option<GuestVirt> {
        let op = Op::KmemAlloc { map, size };
        address(op, self.run(op))
    }

    /// `kmem_malloc`.
    fn kmem_malloc(&mut self, map: MapId, size: u64, flags: MallocFlags) -> Option<GuestVirt> {
        let op = Op::KmemMalloc { map, size, flags };
        address(op, self.run(op))
    }

    /// `kmem_alloc_wait`.
    fn kmem_alloc_wait(&mut self, map: MapId, size: u64) -> Option<GuestVirt> {
        let op = Op::KmemAllocWait { map, size };
        address(op, self.run(op))
    }

    /// `kmem_suballoc`.
    fn kmem_suballoc(&mut self, parent: MapId, size: u64, kind: MapKind) -> MapId {
        MapId(self.address(Op::KmemSuballoc { parent, size, kind }).get())
    }

    /// `kmem_free`.
    fn kmem_free(&mut self, map: MapId, addr: GuestVirt, size: u64) {
        self.ok(Op::KmemFree { map, addr, size });
    }

    /// `kmem_free_wakeup`.
    fn kmem_free_wakeup(&mut self, map: MapId, addr: GuestVirt, size: u64) {
        self.ok(Op::KmemFreeWakeup { map, addr, size });
    }

    /// The 8 bytes at `addr`.
    fn read(&mut self, addr: GuestVirt) -> u64 {
        match self.run(Op::Read { addr }) {
            Outcome::Value(value) => value,
            other => panic!("a read gave {other:?}"),
        }
    }

    /// Fills the range, and finds in it what was written.
    fn use_memory(&mut self, addr: GuestVirt, size: u64) {
        self.ok(Op::Fill { addr, size, seed: size });
        self.ok(Op::Verify { addr, size, seed: size });
    }

    /// Makes thread `thread` do `op`, by which it must block in `wmesg`.
    fn blocks(&mut self, thread: u16, op: Op, wmesg: &str) {
        let outcome = self
            .guest()
            .call(t(thread), op)
            .unwrap_or_else(|error| panic!("{op:?}: {error}"))
            .outcome;
        let Outcome::Blocked { waits_for } = outcome else {
            panic!("{op:?} gave {outcome:?}, not a sleep in {wmesg}")
        };
        assert_eq!(waits_for.to_string(), wmesg, "{op:?}");
    }

    /// What became of the operation of a blocked thread.
    fn join(&mut self, thread: u16) -> Outcome {
        self.run(Op::Join { thread })
    }

    /// Asks for a blocked thread, which must be blocked still.
    fn still_blocked(&mut self, thread: u16) {
        let outcome = self.join(thread);
        assert!(matches!(outcome, Outcome::Blocked { .. }), "thread {thread}: {outcome:?}");
    }

    /// The address that a blocked thread has got meanwhile.
    fn joined(&mut self, thread: u16) -> GuestVirt {
        match self.join(thread) {
            Outcome::Value(value) => GuestVirt::new(value),
            other => panic!("thread {thread}: {other:?}"),
        }
    }

    /// Does `op` in an interrupt handler.
    fn interrupt(&mut self, op: Op) -> Outcome {
        let response = self.guest().call_in(Context::Interrupt, op);
        response.unwrap_or_else(|error| panic!("{op:?}: {error}")).outcome
    }

    /// Has `op` done by a handler of the next vm_lowmem event.
    fn on_lowmem(&mut self, op: Op) {
        let response = self
            .guest()
            .call_in(Context::Lowmem, op)
            .unwrap_or_else(|error| panic!("{op:?}: {error}"));
        assert_eq!(response.outcome, Outcome::Ok, "{op:?}");
    }

    /// Does `op`, by which the guest must die.
    fn dies_of(&mut self, op: Op) -> Crash {
        self.dies_of_in(Context::Thread(0), op)
    }

    /// Does `op` in `context`, by which the guest must die.
    fn dies_of_in(&mut self, context: Context, op: Op) -> Crash {
        match self.guest().call_in(context, op) {
            Err(GuestError::Crashed(crash)) => *crash,
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    /// The kernel's counters.
    fn counters(&mut self) -> VmMeter {
        self.guest().meter().expect("the counters can be read")
    }

    /// `v_free_count`.
    fn free_pages(&mut self) -> u64 {
        self.counters().v_free_count.get()
    }

    /// Size and use of a map.
    fn stats(&mut self, map: MapId) -> MapStats {
        self.guest().map_stats(map).expect("the map can be read")
    }

    /// The entries of a map.
    fn entries(&mut self, map: MapId) -> Vec<EntryView> {
        self.guest().map_entries(map).expect("the map can be read")
    }

    /// The entries of a map: first page and page past the end, counted from the map's start.
    fn pages(&mut self, map: MapId) -> Vec<(u64, u64)> {
        let min = self.stats(map).min;
        self.entries(map)
            .iter()
            .map(|e| (e.start.since(min) / PAGE, e.end.since(min) / PAGE))
            .collect()
    }

    /// The entry of a map that holds `addr`, or of the submap there.
    fn entry(&mut self, map: MapId, addr: GuestVirt) -> EntryView {
        let entries = self.entries(map);
        let found = entries.into_iter().find(|e| e.start <= addr && addr < e.end);
        found.unwrap_or_else(|| panic!("{addr} is in no entry"))
    }

    /// Whether the host's own walk finds a translation for `addr`.
    fn is_mapped(&mut self, addr: GuestVirt) -> bool {
        self.guest().vtop(addr).expect("the page tables can be read").mapping.is_some()
    }

    /// Whether `[addr, addr + size)` is mapped page by page.
    fn mapped_pages(&mut self, addr: GuestVirt, size: u64) -> u64 {
        let runs =
            self.guest().page_runs(addr, addr.add(size)).expect("the page tables can be read");
        runs.iter().map(|run| run.end.since(run.start) / PAGE).sum()
    }

    /// The account of `map`.
    fn account(&mut self, map: MapId) -> Account {
        let (meter, stats) = (self.counters(), self.stats(map));
        Account {
            free: meter.v_free_count.get(),
            wired: meter.v_wire_count.get(),
            entries: stats.entries,
            size: stats.size,
        }
    }

    /// Makes thread `thread`, so that its stack is there before pages are counted.
    fn make_thread(&mut self, thread: u16) {
        let response = self
            .guest()
            .call(t(thread), Op::Nop)
            .unwrap_or_else(|error| panic!("t{thread}: {error}"));
        assert_eq!(response.outcome, Outcome::Ok);
    }

    /// Takes the rest of the addresses that the boot has made page tables for: more of kernel_map
    /// costs pages.
    fn take_boot_tables(&mut self) {
        let roots = self.guest().look(|view| view.copy("kernel roots", view.roots()));
        let end = roots.expect("the roots can be read").kernel_vm_end.get();
        let first = self.kmem_alloc_nofault(MapId::KERNEL, PAGE).expect("there is room");
        assert!(self.kmem_alloc_nofault(MapId::KERNEL, end.since(first) - PAGE).is_some());
    }

    /// Takes all free pages but `left` for a block of kmem_map: its address and size.
    fn drain(&mut self, left: u64) -> (GuestVirt, u64) {
        let size = (self.free_pages() - left) * PAGE;
        let addr = self.kmem_malloc(MapId::KMEM, size, MallocFlags::NOWAIT).expect("there is room");
        assert_eq!(self.free_pages(), left);
        (addr, size)
    }

    /// Takes kmem_map whole, in single entries of one page with a hole of a page after each: its
    /// first address.
    fn checkerboard(&mut self) -> GuestVirt {
        let stats = self.stats(MapId::KMEM);
        let addr = self.malloc(stats.max.since(stats.min));
        for page in (1..stats.max.since(stats.min) / PAGE).step_by(2) {
            self.free(addr.add(page * PAGE), PAGE);
        }
        assert_eq!(self.stats(MapId::KMEM).max_free, PAGE);
        addr
    }

    /// What stands behind the entry at `addr`.
    fn object(&mut self, map: MapId, addr: GuestVirt) -> ObjectView {
        self.entry(map, addr).object
    }
}

impl Kern for Guest {
    fn guest(&mut self) -> &mut Guest {
        self
    }
}
