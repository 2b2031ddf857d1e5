//! A machine and the model, side by side: what each operation must give, and what must be true after it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MapId, MapKind, Op, Outcome, WaitMessage};
use vmkern_abi::layout::EntryFlags;

use super::explain::Entries;
use super::naive::{Content, Memory, Naive, NaiveMap, Range, What, pages};
use super::script::{Script, Who};
use super::step::{On, Shape};
use crate::machine::{Machine, Supply};
use crate::sim::check::{check, check_zeros};
use crate::sim::threads::perform;
use crate::sim::{Sim, SimMachine};
use crate::vm::Vm;

/// What an operation may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This.
    Is(Outcome),
    /// Nothing yet: the thread sleeps with this message.
    Sleeps(&'static str),
}

/// What a thread sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Pages for a range that it has.
    Memory { map: usize, start: u64, bytes: u64, what: What, content: Content },
    /// Room in a map.
    Room { map: usize, bytes: u64 },
    /// Pages of a pageable range, at the first touch; the range begins at `pin`.
    Touch { pin: u64, start: u64, bytes: u64 },
}

/// A thread that sleeps in the middle of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Sleeper {
    pub tid: u32,
    pub op: Op,
    pub cause: Cause,
    /// The step or round in which it fell asleep.
    pub turn: u64,
}

/// What a failure leaves as it was.
#[derive(Debug, PartialEq, Eq)]
pub struct Counters {
    maps: Vec<(u64, u64)>,
    objects: [(u64, u64, u64); 2],
    pmap: (u64, u64),
    free_and_tables: u64,
    wired: u64,
}

/// The machine and the model.
#[derive(Debug)]
pub struct World {
    pub sim: Sim,
    /// Whether thread 0 does what the driver does otherwise, much faster.
    exact: bool,
    pub naive: Naive,
    pub shape: Shape,
    /// In the order in which they fell asleep.
    pub sleepers: Vec<Sleeper>,
    /// Ranges that a stored operation will free.
    pub doomed: Vec<(usize, u64, u64)>,
    /// First addresses of ranges that nobody else may use: doomed, or a sleeper's.
    pub pinned: BTreeSet<u64>,
    /// Maps in which room came without a wakeup since the sleepers last looked.
    pub quiet: BTreeSet<usize>,
    /// What was freed last.
    pub freed: Option<(usize, u64, u64)>,
    /// What has been done, for whoever wants to know when it fails.
    pub script: Rc<RefCell<Script>>,
    /// Whether the kernel has panicked, as it should.
    pub over: bool,
    /// Number of the step or round.
    pub turn: u64,
    armed: Option<(Option<Supply>, u64)>,
    refused: bool,
    events: u64,
    seed: u64,
    whole: u64,
    /// Bytes in use of kernel_map at first.
    kernel_size: u64,
}

impl World {
    /// Boots a machine of this shape, with all its threads.
    pub fn new(shape: Shape, script: &Rc<RefCell<Script>>) -> Self {
        script.borrow_mut().shape = Some(shape);
        let sim = Sim::boot(shape.memory, shape.tunables());
        // A guest performs on a thread what the driver does here.
        for tid in 0..=u32::from(shape.workers) {
            assert_eq!(sim.execute_on(tid, Op::Nop), Outcome::Ok);
        }
        let exact = script.borrow().is_exact();
        if exact {
            sim.preempt_at_once();
        }
        let mut world = Self {
            exact,
            naive: Naive::default(),
            shape,
            sleepers: Vec::new(),
            doomed: Vec::new(),
            pinned: BTreeSet::new(),
            quiet: BTreeSet::new(),
            freed: None,
            script: Rc::clone(script),
            over: false,
            turn: 0,
            armed: None,
            refused: false,
            events: sim.vm().cnt().lowmem_events.get(),
            seed: 0,
            whole: 0,
            kernel_size: sim.map(MapId::KERNEL).size.get(),
            sim,
        };
        world.look_at_maps();
        world.whole = world.free_and_used_by_itself();
        world
    }

    /// The maps as they are after boot.
    fn look_at_maps(&mut self) {
        let vm = self.sim.vm();
        for (_, id) in MapId::NAMED {
            let map = vm.map_by_id(id).expect("the map exists");
            let m = vm.get(map);
            let kind = if m.system_map.get() == 0 { MapKind::User } else { MapKind::System };
            let ranges = vm.vm_map_entries(map).map(|entry| {
                let e = vm.get(entry);
                let is_submap = e.eflags.get().contains(EntryFlags::IS_SUB_MAP);
                let what = if is_submap { What::Submap } else { What::Fixed };
                (e.start.get().get(), Range { bytes: e.end.get().since(e.start.get()), what })
            });
            let (min, max) = (m.min_offset().get(), m.max_offset().get());
            self.naive.maps.push(NaiveMap { id, min, max, kind, ranges: ranges.collect() });
        }
    }

    /// Free pages, and those that the memory system has for its own structures.
    fn free_and_used_by_itself(&self) -> u64 {
        let state = self.sim.vm().state();
        let slabs: u64 = state.zones.iter().map(|zone| zone.slabs.get()).sum();
        let index = u64::from(state.kernel_object.index_pages.get() + state.kmem_object.index_pages.get());
        self.sim.free_pages() + state.map_pages.get() + slabs + index + state.kernel_pmap.table_count.get()
    }

    /// A seed for a pattern.
    pub fn seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// A thread that has nothing to do.
    fn idle_worker(&self, wanted: u32) -> Option<u32> {
        let workers = u32::from(self.shape.workers);
        let idle = |tid: &u32| self.sleepers.iter().all(|sleeper| sleeper.tid != *tid);
        (0..workers).map(|n| (wanted + n) % workers + 1).find(idle)
    }

    /// Who is to perform an operation that may, or may not, sleep; `None` when nobody can.
    fn performer(&self, on: On, op: &Op, may_sleep: bool) -> Option<Who> {
        let in_interrupt = match *op {
            Op::KmemMalloc { flags, .. } => flags == vmkern_abi::control::MallocFlags::NOWAIT || flags == super::ZEROED,
            Op::KmemFree { map, .. } | Op::KmemFreeWakeup { map, .. } | Op::KmemAllocNofault { map, .. } => {
                self.naive.maps.iter().any(|m| m.id == map && m.kind == MapKind::System)
            }
            Op::PmapQremove { .. } | Op::Verify { .. } => true,
            _ => false,
        };
        match on {
            On::Interrupt if in_interrupt && !may_sleep => Some(Who::Interrupt),
            On::Thread(n) if self.shape.workers > 0 => match self.idle_worker(n.into()) {
                Some(tid) => Some(Who::Thread(tid)),
                None => (!may_sleep).then_some(Who::Thread(0)),
            },
            _ if may_sleep => self.idle_worker(0).filter(|_| self.shape.workers > 0).map(Who::Thread),
            _ => Some(Who::Thread(0)),
        }
    }

    /// Performs `op`, which must give one of `allowed`. `None` when nobody could do it.
    pub fn perform(&mut self, on: On, op: Op, allowed: &[Verdict]) -> Option<(u32, Outcome)> {
        let may_sleep = allowed.iter().any(|verdict| matches!(verdict, Verdict::Sleeps(_)));
        let who = self.performer(on, &op, may_sleep)?;
        let refusal = self.start_refusing(&op);
        let outcome = match who {
            Who::Thread(0) | Who::Lowmem => self.drive(op, perform),
            Who::Thread(tid) => self.sim.execute_on(tid, op),
            Who::Interrupt => self.sim.execute_in_interrupt(&op),
        };
        self.script.borrow_mut().note(who, &op, &outcome);
        if self.is_clean_failure(refusal, outcome) {
            return Some((0, outcome));
        }
        // A guest answers when nobody can run any more.
        self.sim.run();
        let fits = |verdict: &Verdict| match (*verdict, outcome) {
            (Verdict::Sleeps(wmesg), Outcome::Blocked { waits_for }) => waits_for == WaitMessage::new(wmesg),
            (Verdict::Is(expected), _) => expected == outcome,
            _ => false,
        };
        assert!(allowed.iter().any(fits), "{op:?} by {who:?} gave {outcome:?}, where {allowed:?} was expected");
        let tid = if let Who::Thread(tid) = who { tid } else { 0 };
        Some((tid, outcome))
    }

    /// Does an operation on the driver, or on the thread that does it in a guest.
    pub fn drive(&self, op: Op, doing: fn(&Vm<SimMachine>, &Op) -> Outcome) -> Outcome {
        if self.exact {
            self.sim.submit_to(0, op, doing);
            self.sim.finish(0)
        } else {
            doing(self.sim.vm(), &op)
        }
    }

    /// Has the next operation of a step meet a refusal: number `nth` of those for `what`.
    pub fn arm(&mut self, what: Option<Supply>, nth: u64) {
        self.armed = Some((what, nth));
    }

    /// Whether an operation has met the refusal.
    pub fn has_refused(&self) -> bool {
        self.refused
    }

    /// Arms the machine if `op` is what a refusal waits for: what must not change if it fails.
    pub fn start_refusing(&mut self, op: &Op) -> Option<Counters> {
        if matches!(op, Op::Verify { .. } | Op::VerifyZero { .. } | Op::Fill { .. } | Op::Vtop { .. } | Op::Nop) {
            return None;
        }
        let (what, nth) = self.armed.take()?;
        // Who waits then must not wait in earnest.
        if self.sim.free_pages() < 250 {
            return None;
        }
        self.script.borrow_mut().remark(&format!("Allocation {nth} of {what:?} is refused here:"));
        let counters = self.counters();
        self.sim.refuse(what, nth);
        Some(counters)
    }

    /// Whether an operation that met a refusal has failed, and left everything as it was.
    pub fn is_clean_failure(&mut self, refusal: Option<Counters>, outcome: Outcome) -> bool {
        let Some(before) = refusal else { return false };
        self.refused = self.sim.has_refused();
        let failed = matches!(outcome, Outcome::Null | Outcome::Error(KernReturn::ResourceShortage));
        if self.refused && failed {
            assert_eq!(self.counters(), before, "a failure left something");
        }
        self.refused && failed
    }

    /// What a failure leaves as it was. Page tables are kept, once made.
    fn counters(&self) -> Counters {
        let vm = self.sim.vm();
        let state = vm.state();
        let maps = self.naive.maps.iter().map(|m| self.sim.map(m.id));
        let objects = [&state.kernel_object, &state.kmem_object];
        Counters {
            maps: maps.map(|map| (map.size.get(), map.nentries.get())).collect(),
            objects: objects
                .map(|o| (u64::from(o.ref_count.get()), o.resident_page_count.get(), u64::from(o.index_pages.get()))),
            pmap: (state.kernel_pmap.resident_count.get(), state.kernel_pmap.wired_count.get()),
            free_and_tables: self.sim.free_pages() + state.kernel_pmap.table_count.get(),
            wired: vm.cnt().v_wire_count.get() - state.kernel_pmap.table_count.get(),
        }
    }

    /// Performs `op` on the driver, which must give [`Outcome::Ok`].
    pub fn ok(&mut self, op: Op) {
        let _ = self.perform(On::Driver, op, &[Verdict::Is(Outcome::Ok)]);
    }

    /// Performs `op` on the driver, which must be a panic with `text` in its message.
    pub fn panics(&mut self, op: Op, text: &str) {
        self.script.borrow_mut().panics(&op, text);
        let end = catch_unwind(AssertUnwindSafe(|| self.drive(op, perform)));
        self.over = true;
        let payload = end.expect_err("the kernel should have panicked");
        let message = payload.downcast::<String>().expect("a message");
        assert!(message.contains(text), "{op:?} died of {message:?}, where {text:?} was expected");
    }

    /// Puts a new pattern into memory that the model knows; into both ends of it where there is much.
    pub fn fill(&mut self, start: u64, bytes: u64) {
        let most = 4 * PAGE_SIZE;
        if bytes > 2 * most {
            self.fill(start, most);
            return self.fill(start + bytes - most, most);
        }
        let seed = self.seed();
        self.ok(Op::Fill { addr: GuestVirt::new(start), size: bytes, seed });
        self.filled(start, bytes, seed);
    }

    /// Memory that the model knows has a new pattern.
    pub fn filled(&mut self, start: u64, bytes: u64, seed: u64) {
        for va in pages(start, bytes) {
            if let Some(memory) = self.naive.memory.get_mut(&va) {
                memory.content = Content::Pattern(seed);
            }
        }
    }

    /// Looks whether the memory of `[start, end)` holds what it should.
    pub fn verify(&mut self, start: u64, end: u64) {
        let mut known: Vec<(u64, u64, Content)> = Vec::new();
        for (&va, memory) in self.naive.memory.range(start..end) {
            match known.last_mut() {
                Some((at, bytes, content)) if *at + *bytes == va && *content == memory.content => *bytes += PAGE_SIZE,
                _ => known.push((va, PAGE_SIZE, memory.content)),
            }
        }
        for (at, size, content) in known {
            let addr = GuestVirt::new(at);
            match content {
                Content::Unknown => {}
                Content::Zero => self.ok(Op::VerifyZero { addr, size }),
                Content::Pattern(seed) => self.ok(Op::Verify { addr, size, seed }),
            }
        }
    }

    /// An allocation of wired memory is there: looks at it and fills it.
    pub fn arrived(&mut self, start: u64, bytes: u64, what: What, content: Content) {
        self.naive.back(start, bytes, what, content);
        self.verify(start, start + bytes);
        self.fill(start, bytes);
    }

    /// Lets threads run, and sees what came of the operations that sleep. Then all must be as the model says.
    pub fn settle(&mut self) {
        self.sim.run();
        self.count_events();
        let mut at = 0;
        while at < self.sleepers.len() {
            let sleeper = self.sleepers[at];
            match self.sim.answer(sleeper.tid) {
                Some(outcome) => {
                    self.agree_on_place(at, outcome);
                    let sleeper = self.sleepers.remove(at);
                    self.script.borrow_mut().join(sleeper.tid, &sleeper.op, &outcome);
                    self.woken(&sleeper, outcome);
                }
                None => {
                    self.must_sleep(&sleeper);
                    at += 1;
                }
            }
        }
        self.sim.run();
        self.count_events();
        self.compare();
        self.tell_counters();
    }

    /// Tells the script what a guest's counters must be now.
    fn tell_counters(&self) {
        let cnt = self.sim.vm().cnt();
        let mut script = self.script.borrow_mut();
        script.counter("v_free_count", cnt.v_free_count.get());
        script.counter("v_wire_count", cnt.v_wire_count.get());
        script.counter("v_active_count", cnt.v_active_count.get());
        script.counter("v_zfod", cnt.v_zfod.get());
        script.counter("lowmem_events", cnt.lowmem_events.get());
        for m in &self.naive.maps {
            let map = self.sim.map(m.id);
            match m.id {
                MapId::KERNEL => script.kernel_size(self.kernel_size, map.size.get()),
                id => script.map_counter(id, "size", map.size.get()),
            }
            script.map_counter(m.id, "entries", map.nentries.get());
        }
    }

    /// Lets the next time-out come.
    pub fn wait(&mut self) {
        let vm = self.sim.vm();
        let Some(deadline) = vm.next_timeout() else { return };
        let ticks = deadline.saturating_sub(self.sim.machine().ticks()).max(1);
        let micros = ticks * 1_000_000 / vm.cnt().hz.get();
        self.ok(Op::Sleep { micros });
    }

    /// Stored operations run at the event, all of them.
    pub fn count_events(&mut self) {
        let events = self.sim.vm().cnt().lowmem_events.get();
        if events != self.events {
            self.events = events;
            for (map, start, end) in std::mem::take(&mut self.doomed) {
                self.pinned.remove(&start);
                self.free(map, start, end);
            }
        }
    }

    /// Frees in the model, where nobody is told of it.
    pub fn free(&mut self, map: usize, start: u64, end: u64) {
        self.naive.free(map, start, end);
        self.quiet.insert(map);
    }

    /// An operation sleeps from now on.
    pub fn fall_asleep(&mut self, tid: u32, op: Op, cause: Cause) {
        self.sleepers.push(Sleeper { tid, op, cause, turn: self.turn });
    }

    /// The operation of a sleeper has answered. Of two that fell asleep at once over ranges that are alike nobody could
    /// say which has which until now.
    pub fn agree_on_place(&mut self, at: usize, outcome: Outcome) {
        let Sleeper { cause: Cause::Memory { start, .. }, turn, .. } = self.sleepers[at] else { return };
        let Outcome::Value(addr) = outcome else { return };
        let at_place = |cause: Cause, place: u64| match cause {
            Cause::Memory { map, bytes, what, content, .. } => {
                Cause::Memory { map, start: place, bytes, what, content }
            }
            other => other,
        };
        let there = at_place(self.sleepers[at].cause, addr);
        let twin = self.sleepers.iter().position(|other| other.turn == turn && other.cause == there);
        if let Some(twin) = twin {
            self.sleepers[at].cause = there;
            self.sleepers[twin].cause = at_place(there, start);
        }
    }

    /// The operation of a sleeper has answered.
    fn woken(&mut self, sleeper: &Sleeper, outcome: Outcome) {
        match sleeper.cause {
            Cause::Memory { start, bytes, what, content, .. } => {
                assert_eq!(outcome, Outcome::Value(start), "{sleeper:?}");
                self.pinned.remove(&start);
                self.arrived(start, bytes, what, content);
            }
            Cause::Room { map, bytes } => {
                let hole = self.naive.maps[map].hole(bytes).expect("a hole for who was woken");
                assert_eq!(outcome, Outcome::Value(hole), "{sleeper:?}");
                self.naive.take(map, hole, bytes, What::Pageable);
            }
            Cause::Touch { pin, start, bytes } => {
                assert_eq!(outcome, Outcome::Ok, "{sleeper:?}");
                self.pinned.remove(&pin);
                self.touched(start, bytes);
            }
        }
    }

    /// Pages of a pageable range are there.
    pub fn touched(&mut self, start: u64, bytes: u64) {
        for va in pages(start, bytes) {
            self.naive.memory.entry(va).or_insert(Memory { content: Content::Zero, what: What::Pageable });
        }
        self.verify(start, start + bytes);
        self.fill(start, bytes);
    }

    /// A thread that sleeps has a reason to.
    fn must_sleep(&self, sleeper: &Sleeper) {
        let wmesg = self.sim.waits_for(sleeper.tid).expect("who has not answered sleeps");
        let short = self.sim.vm().vm_page_count_min();
        match sleeper.cause {
            Cause::Memory { .. } => assert!(wmesg == WaitMessage::new("vmwait") && short, "{wmesg}: {sleeper:?}"),
            Cause::Touch { .. } => assert!(wmesg == WaitMessage::new("pfault") && short, "{wmesg}: {sleeper:?}"),
            Cause::Room { map, bytes } if wmesg == WaitMessage::new("vmmaps") => {
                let hole = self.naive.maps[map].hole(bytes);
                assert!(hole.is_none() || self.quiet.contains(&map), "a lost wakeup: {sleeper:?}");
            }
            Cause::Room { .. } => assert!(wmesg == WaitMessage::new("vmwait") && short, "{wmesg}: {sleeper:?}"),
        }
    }

    /// Pages that sleepers may have already, of what they will have.
    fn underway(&self, of: What) -> u64 {
        let bytes = |sleeper: &Sleeper| match sleeper.cause {
            Cause::Memory { bytes, what, .. } if what == of => bytes,
            Cause::Touch { bytes, .. } if of == What::Pageable => bytes,
            _ => 0,
        };
        self.sleepers.iter().map(bytes).sum::<u64>() / PAGE_SIZE
    }

    /// Something is exactly where the model has something, and an allocation that sleeps has an entry of its own.
    fn compare_places(&self) {
        let entries = Entries::look(&self.sim, &self.naive.maps);
        assert!(entries.fit(&self.naive.maps), "{entries:#x?}, where {:#x?} was expected", self.naive.maps);
        for sleeper in &self.sleepers {
            if let Cause::Memory { map, start, bytes, what, .. } = sleeper.cause {
                assert!(entries.has(map, start, bytes, what), "{entries:#x?} without {sleeper:#x?}");
            }
        }
    }

    /// The counters say what the model says.
    pub fn compare(&self) {
        let vm = self.sim.vm();
        self.compare_places();
        let (state, cnt) = (vm.state(), vm.cnt());
        assert_eq!(vm.held_locks(), 0, "locks are held");
        for m in &self.naive.maps {
            let map = self.sim.map(m.id);
            assert_eq!(map.size.get(), m.size(), "size of {:?}", m.id);
            let (fewest, most) = m.entries();
            let entries = map.nentries.get();
            assert!((fewest..=most).contains(&entries), "{entries} entries of {:?}, not {fewest} to {most}", m.id);
        }
        let kernel = state.kernel_object.resident_page_count.get();
        let kmem = state.kmem_object.resident_page_count.get();
        let active = cnt.v_active_count.get();
        for (now, what) in [(kernel, What::Kernel), (kmem, What::Kmem), (active, What::Pageable)] {
            let known = self.naive.pages_of(what);
            let most = known + self.underway(what);
            assert!((known..=most).contains(&now), "{now} pages of {what:?}, not {known} to {most}");
        }
        let all = cnt.v_free_count.get() + cnt.v_wire_count.get() + active + cnt.v_inactive_count.get();
        // kmem_alloc wires its pages when it has all of them.
        let missing = cnt.v_page_count.get() - all;
        let most = self.underway(What::Kernel);
        assert!(missing <= most, "{missing} pages are neither free nor wired nor queued, not up to {most}");
    }

    /// All invariants hold, unless an allocation stands half-done.
    pub fn check(&self) {
        if !self.sleepers.iter().any(|sleeper| matches!(sleeper.cause, Cause::Memory { .. })) {
            check(&self.sim);
            check_zeros(&self.sim);
        }
    }

    /// [`World::check`], unless the kernel has panicked.
    pub fn check_unless_over(&self) {
        if !self.over {
            self.check();
        }
    }

    /// Frees everything, lets everybody finish who can, and demands all pages back.
    pub fn finish(mut self) {
        if self.over {
            return;
        }
        self.script.borrow_mut().remark("In the end everything is freed.");
        if !self.doomed.is_empty() {
            self.script.borrow_mut().close("Stored operations run first here, for which there is no statement.");
            self.sim.vm().vm_lowmem();
            self.settle();
        }
        let mut patience = 3;
        while patience > 0 {
            while let Some((map, start, bytes)) = self.anything() {
                self.give_back(map, start, bytes);
                self.settle();
            }
            if self.sleepers.is_empty() {
                break;
            }
            // Room that came without a wakeup is told of now.
            for map in std::mem::take(&mut self.quiet) {
                let (id, addr) = (self.naive.maps[map].id, GuestVirt::new(self.naive.maps[map].min));
                self.ok(Op::KmemFreeWakeup { map: id, addr, size: 0 });
            }
            self.settle();
            // The pagedaemon may have to look around.
            self.wait();
            self.settle();
            patience -= 1;
        }
        // Together they may hold all there is, each waiting for the others.
        let wanted = [What::Kernel, What::Kmem, What::Pageable].map(|what| self.underway(what)).iter().sum::<u64>();
        if !self.sleepers.is_empty() && wanted + 100 > self.whole {
            return;
        }
        assert!(self.sleepers.is_empty(), "who could go on sleeps: {:?}", self.sleepers);
        check(&self.sim);
        assert_eq!(self.free_and_used_by_itself(), self.whole, "pages are lost");
    }

    /// A range that is to be freed.
    fn anything(&self) -> Option<(usize, u64, u64)> {
        let free = |range: &Range| !matches!(range.what, What::Fixed | What::Submap);
        let of = |map: usize| {
            let all = self.naive.maps[map].ranges.iter();
            all.filter(|&(at, range)| free(range) && !self.is_asleep_in(*at))
                .map(move |(&at, range)| (map, at, range.bytes))
                .next()
        };
        (0..self.naive.maps.len()).find_map(of)
    }

    fn is_asleep_in(&self, at: u64) -> bool {
        self.sleepers.iter().any(|sleeper| match sleeper.cause {
            Cause::Memory { start, .. } => start == at,
            Cause::Touch { pin, .. } => pin == at,
            Cause::Room { .. } => false,
        })
    }

    /// Frees a whole range, and tells those who wait.
    fn give_back(&mut self, map: usize, start: u64, bytes: u64) {
        self.verify(start, start + bytes);
        self.take_down(start, bytes);
        let addr = GuestVirt::new(start);
        self.ok(Op::KmemFreeWakeup { map: self.naive.maps[map].id, addr, size: bytes });
        self.naive.free(map, start, start + bytes);
        self.quiet.remove(&map);
    }

    /// Takes entered pages out of a range that is about to be freed, as a kernel would.
    pub fn take_down(&mut self, start: u64, bytes: u64) {
        let within = self.naive.memory.range(start..start + bytes);
        let entered: Vec<u64> = within.filter(|(_, memory)| memory.what == What::Nofault).map(|(&va, _)| va).collect();
        for run in entered.chunk_by(|low, high| low + PAGE_SIZE == *high) {
            self.ok(Op::PmapQremove { addr: GuestVirt::new(run[0]), count: run.len() as u64 });
            for va in run {
                self.naive.memory.remove(va);
            }
        }
    }
}

/// Stores an operation for a shortage.
pub fn store(vm: &Vm<SimMachine>, op: &Op) -> Outcome {
    crate::ops::register_lowmem(vm, op, run_stored)
}

/// Performs a stored operation.
fn run_stored(vm: &Vm<SimMachine>, op: &Op) {
    assert_eq!(perform(vm, op), Outcome::Ok, "{op:?}");
}
