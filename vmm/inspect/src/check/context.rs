//! The state that the rules share: the structures, read once and indexed, and the findings.
//!
//! Reading comes first. The modules that know the structures read them, add findings about
//! structures that cannot be read or are inconsistent, and continue with the rest. After that only
//! the findings and the owners of pages change, so rules may run in any order.

use std::borrow::Cow;
use std::ptr;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::KernelRoots;
use vmkern_abi::walk::{Mapping, walk};

use super::finding::{CheckStats, Findings, Report, Updating};
use super::locks;
use super::maps::{Map, Maps};
use super::memory::Memory;
use super::objects::{Object, Objects};
use super::owners::{Owner, Owners};
use super::page_array::PageArray;
use super::rest::Rest;
use super::rule::Rule;
use super::sched::Sched;
use super::tables::Tables;
use crate::InspectError;
use crate::cpu::{CpuState, RunState, Standing};
use crate::read::roots;

use crate::view::View;

/// Everything that was read.
pub(super) struct Context<'a> {
    /// Guest memory.
    pub memory: Memory<'a>,
    /// Where the kernel's roots lie.
    pub roots_at: KPtr<KernelRoots>,
    /// The kernel's roots.
    pub roots: KernelRoots,
    /// The page array.
    pub pages: PageArray,
    /// Which threads may be in the middle of an operation.
    pub rest: Rest,
    /// All maps with their entries.
    pub maps: Maps,
    /// All objects with their pages.
    pub objects: Objects,
    /// All page tables.
    pub tables: Tables,
    /// Threads, CPUs, sleep queues and event handlers.
    pub sched: Sched,
    findings: Findings,
    owners: Owners,
}

impl<'a> Context<'a> {
    /// Reads the kernel's structures. If `only` is given, only those rules' findings are reported.
    ///
    /// # Errors
    /// When the kernel's roots cannot be read: there is nothing to check then.
    pub(super) fn read(
        view: &'a View<'a>,
        only: Option<Vec<&'static Rule>>,
    ) -> Result<Self, InspectError> {
        let (roots_at, roots) = roots(view)?;
        let (memory, findings) = (Memory::new(view.source()), Findings::new(only));
        let pages = PageArray::read(&memory, &roots, &findings);
        let owners = Owners::new(&pages);
        let rest = Rest::read(&memory, &roots);
        let maps = Maps::read(&memory, &roots, &findings);
        let objects = Objects::read(&memory, &pages, roots_at, &roots, &maps, &findings);
        let tables = Tables::read(&memory, &roots, view.pml4(), &findings);
        let sched = Sched::read(&memory, &roots, &findings);
        Ok(Self {
            memory,
            roots_at,
            roots,
            pages,
            rest,
            maps,
            objects,
            tables,
            sched,
            findings,
            owners,
        })
    }

    /// Adds a finding: `rule` does not hold for `what` at `at`; `detail` states both sides of the
    /// contradiction.
    pub(super) fn finding<D: Into<String>>(
        &self,
        rule: &'static Rule,
        what: impl Into<Cow<'static, str>>,
        at: GuestVirt,
        detail: impl FnOnce() -> D,
    ) {
        self.findings.add(rule, what, at, detail);
    }

    /// Adds a finding about a structure that cannot be read.
    pub(super) fn unreadable(&self, error: &InspectError) {
        self.findings.unreadable(error);
    }

    /// Claims page `pfn` for `owner`, the structure at `at`. A page has one owner.
    pub(super) fn claim(&self, pfn: u64, owner: Owner, at: GuestVirt) {
        self.owners.claim(&self.pages, &self.findings, pfn, owner, at);
    }

    /// Claims the page of the structure at `at`, an address in the direct map.
    pub(super) fn claim_at(&self, at: GuestVirt, owner: Owner) {
        if let Some(at_phys) = dmap_to_phys(at) {
            self.claim(at_phys.pfn(), owner, at);
        }
    }

    /// The owner that has claimed page `pfn`.
    pub(super) fn owner(&self, pfn: u64) -> Option<Owner> {
        self.owners.of(&self.pages, pfn)
    }

    /// The address of a field of the kernel's roots, `offset` bytes from their start.
    pub(super) fn root(&self, offset: usize) -> GuestVirt {
        self.roots_at.addr().checked_add(offset as u64).unwrap_or_default()
    }

    /// The address in the guest of `field`, which is a field of [`Context::roots`].
    pub(super) fn root_of<T>(&self, field: &T) -> GuestVirt {
        self.root(ptr::from_ref(field).addr().wrapping_sub(ptr::from_ref(&self.roots).addr()))
    }

    /// Where findings go.
    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Whether every thread waits for work.
    pub(super) fn is_quiet(&self) -> bool {
        self.rest.is_quiet()
    }

    /// Whether a CPU was stopped while it held a mutex: then structures may be half changed. The
    /// mutex's own word covers the whole time it is held. The owner's note begins a little later
    /// and ends a little earlier, but it also covers mutexes that no structure leads to yet.
    pub(super) fn is_locked(&self) -> bool {
        let holds = |thread| {
            self.sched
                .thread(thread)
                .is_some_and(|thread| !thread.value.held_locks.get().is_empty())
        };
        !self.roots.boot_held_locks.get().is_empty()
            || locks::is_any_owned(self)
            || self.sched.cpus.iter().any(|cpu| holds(cpu.value.curthread.get()))
    }

    /// Whether any map was being changed.
    pub(super) fn is_any_map_updating(&self) -> bool {
        self.maps.all.iter().any(Map::is_updating)
    }

    /// Whether free pages are in transit, according to the locks that guard them.
    pub(super) fn is_free_memory_updating(&self) -> bool {
        self.roots.vm_page_queue_free_mtx.owner.get() != 0
            || self.sched.cpus.iter().any(|cpu| cpu.value.page_cache.lock.owner.get() != 0)
    }

    /// Where the CPUs stand.
    pub(super) fn standing(&self) -> Standing {
        self.memory.source().standing()
    }

    /// Whether `at` is an address of the direct map whose page is managed.
    pub(super) fn is_managed(&self, at: GuestVirt) -> bool {
        dmap_to_phys(at).is_some_and(|at| self.pages.is_managed(at.pfn()))
    }

    /// The mapping of `va`.
    pub(super) fn translate(&self, va: GuestVirt) -> Option<Mapping> {
        walk(&self.memory, self.pml4(), va).ok()?.mapping
    }

    /// The root page table.
    pub(super) fn pml4(&self) -> GuestPhys {
        self.roots.kernel_pmap.pml4.get()
    }

    /// Whether the guest will not run again: it may have died in the middle of any operation.
    pub(super) fn is_dead(&self) -> bool {
        let ended = |cpus: Vec<CpuState>| cpus.iter().all(|cpu| cpu.state == RunState::Ended);
        self.memory.source().cpus().is_ok_and(ended)
    }

    /// The report of all findings.
    pub(super) fn into_report(self) -> Report {
        let stats = CheckStats {
            maps: self.maps.all.len() as u64,
            entries: self.maps.all.iter().map(|map| map.entries.len() as u64).sum(),
            objects: self.objects.all.len() as u64,
            resident: self.objects.all.values().map(|object| object.pages.len() as u64).sum(),
            tables: self.tables.all.len() as u64,
            translations: [&self.tables.direct, &self.tables.image, &self.tables.kernel]
                .into_iter()
                .map(|translations| translations.len() as u64)
                .sum(),
        };
        let mut updating: Vec<Updating> = self.maps.all.iter().filter_map(Map::updating).collect();
        updating.extend(self.objects.all.values().filter_map(Object::updating));
        updating.extend(locks::updating(&self));
        self.findings.into_report(updating, stats)
    }
}
