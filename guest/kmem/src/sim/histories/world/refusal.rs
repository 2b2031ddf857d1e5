//! Allocations that are refused in the middle of an operation: one that fails then must leave
//! everything as it was.

use vmkern_abi::control::{KernReturn, MallocFlags, Op, Outcome};
use vmkern_abi::fail::{FailSite, FailSpec};

use super::World;

/// The state that a failure must not change.
#[derive(Debug, PartialEq, Eq)]
pub struct Counters {
    maps: Vec<(u64, u64)>,
    objects: [(u64, u64); 2],
    pmap: (u64, u64),
    free_and_tables: u64,
    wired: u64,
}

impl World {
    /// Makes the next operation of a step fail at hit number `nth` of `site`.
    pub fn arm(&mut self, site: FailSite, nth: u64) {
        self.armed = Some((site, nth));
    }

    /// Whether an operation has met the refusal.
    pub fn has_refused(&self) -> bool {
        self.refused
    }

    /// Arms the machine if a refusal is planned for `op`. Returns the state that must not change if
    /// it fails.
    pub fn start_refusing(&mut self, op: &Op) -> Option<Counters> {
        if matches!(
            op,
            Op::Verify { .. } | Op::VerifyZero { .. } | Op::Fill { .. } | Op::Vtop { .. } | Op::Nop
        ) {
            return None;
        }
        // With threads, the pagedaemon asks for memory: a stored operation would change the state.
        if self.exact && !self.doomed.is_empty() {
            return None;
        }
        let (site, nth) = self.armed.take()?;
        // A thread that waits because of the refusal must not also wait for lack of pages.
        if self.sim.free_pages() < 250 {
            return None;
        }
        let counters = self.counters();
        let spec = FailSpec::nth(site, nth).expect("a site at which a function can fail");
        self.script.borrow_mut().fail(site, &spec);
        self.sim.fail(site, &spec);
        self.failing = Some(site);
        Some(counters)
    }

    /// Whether an operation that met a refusal has failed, and left everything unchanged. An
    /// operation that may sleep does not fail.
    pub fn is_clean_failure(
        &mut self,
        op: &Op,
        refusal: Option<Counters>,
        outcome: Outcome,
    ) -> bool {
        let Some(before) = refusal else { return false };
        if let Some(site) = self.failing.take() {
            self.refused = self.sim.disarm(site);
            self.script.borrow_mut().fail(site, &FailSpec::OFF);
        }
        let failed =
            matches!(outcome, Outcome::Null | Outcome::Error(KernReturn::ResourceShortage));
        if self.refused && failed {
            assert!(!may_sleep(op), "{op:?} gave {outcome:?}, and did not wait");
            assert_eq!(self.counters(), before, "a failure left something");
        }
        self.refused && failed
    }

    /// The state that a failure must not change. Page tables are kept, once made.
    fn counters(&self) -> Counters {
        let vm = self.sim.vm();
        let state = vm.state();
        let maps = self.naive.maps.iter().map(|m| self.sim.map(m.id));
        let objects = [&state.kernel_object, &state.kmem_object];
        Counters {
            maps: maps.map(|map| (map.size.get(), map.nentries.get())).collect(),
            objects: objects.map(|o| (u64::from(o.ref_count.get()), o.resident_page_count.get())),
            pmap: (state.kernel_pmap.resident_count.get(), state.kernel_pmap.wired_count.get()),
            free_and_tables: self.sim.free_pages() + state.kernel_pmap.table_count.get(),
            wired: vm.cnt().v_wire_count.get() - state.kernel_pmap.table_count.get(),
        }
    }
}

/// Whether an operation waits for pages.
fn may_sleep(op: &Op) -> bool {
    match *op {
        Op::KmemMalloc { flags, .. } => !flags.contains(MallocFlags::NOWAIT),
        Op::KmemAlloc { .. }
        | Op::KmemSuballoc { .. }
        | Op::KmemAllocWait { .. }
        | Op::Touch { .. } => true,
        _ => false,
    }
}
