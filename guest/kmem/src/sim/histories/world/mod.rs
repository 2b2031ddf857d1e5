//! A machine and the model, side by side.
//!
//! This module defines both and sets them up. The modules below perform operations on the machine,
//! keep the model in step, and compare the two.

mod compare;
mod contents;
mod finish;
mod perform;
mod refusal;
mod sleepers;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use vmkern_abi::control::{MapId, MapKind, Op, Outcome};
use vmkern_abi::fail::FailSite;
use vmkern_abi::layout::EntryFlags;

pub use self::perform::{Verdict, store};
pub use self::sleepers::{Cause, Sleeper};
use super::naive::{Naive, NaiveMap, Range, What};
use super::script::Script;
use super::step::Shape;
use crate::sim::Sim;

/// The machine and the model.
#[derive(Debug)]
pub struct World {
    pub sim: Sim,
    /// Whether thread 0 performs the operations that otherwise the driver performs, much faster.
    exact: bool,
    pub naive: Naive,
    pub shape: Shape,
    /// The sleepers, in the order in which they fell asleep.
    pub sleepers: Vec<Sleeper>,
    /// Ranges that a stored operation will free.
    pub doomed: Vec<(usize, u64, u64)>,
    /// First addresses of ranges that no other operation may use: doomed, or a sleeper's.
    pub pinned: BTreeSet<u64>,
    /// Maps in which room came without a wakeup since the sleepers last looked.
    pub quiet: BTreeSet<usize>,
    /// The range that was freed last.
    pub freed: Option<(usize, u64, u64)>,
    /// The operations so far, to be printed on a failure.
    pub script: Rc<RefCell<Script>>,
    /// Whether the kernel has panicked, as it should.
    pub over: bool,
    /// Number of the step or round.
    pub turn: u64,
    armed: Option<(FailSite, u64)>,
    /// The site that is armed for the operation that runs.
    failing: Option<FailSite>,
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
        // In a guest, a thread performs the operations that the driver performs here.
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
            failing: None,
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
        // clean_map consists of submaps: a thread that waits for room in it waits for ever.
        // pager_map is like buffer_map.
        for (_, id) in
            MapId::NAMED.into_iter().filter(|(_, id)| ![MapId::CLEAN, MapId::PAGER].contains(id))
        {
            let map = vm.map_by_id(id).expect("the map exists");
            let m = vm.get(map);
            let kind = if !m.system_map.is_set() { MapKind::User } else { MapKind::System };
            let ranges = vm.vm_map_entries(map).map(|entry| {
                let e = vm.get(entry);
                let is_submap = e.eflags.get().contains(EntryFlags::IS_SUB_MAP);
                let what = if is_submap { What::Submap } else { What::Fixed };
                (e.start.get().get(), Range::new(e.end.get().since(e.start.get()), what))
            });
            let (min, max) = (m.min_offset().get(), m.max_offset().get());
            self.naive.maps.push(NaiveMap { id, min, max, kind, ranges: ranges.collect() });
        }
    }

    /// Frees a range in the model, without a wakeup.
    pub fn free(&mut self, map: usize, start: u64, end: u64) {
        self.naive.free(map, start, end);
        self.quiet.insert(map);
    }
}
