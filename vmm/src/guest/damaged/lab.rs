//! A guest with a bit of everything in its memory, and damage done to it.

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, NBPDR, PAGE_SIZE};
use vmkern_abi::control::{Context, MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_abi::field::{Field, Word};
use vmkern_abi::kva::{NKPT, dmap_to_phys};
use vmkern_abi::layout::{KernelRoots, VmMap, VmMapEntry, VmPage};
use vmkern_abi::pte::Level;
use zerocopy::{FromBytes, IntoBytes};

use crate::check::{Finding, Report};
use crate::guest::Guest;
use crate::inspect::RunState;
use crate::inspect::View;

/// An idle guest whose memory a test damages and restores.
pub(in crate::guest) struct Lab {
    pub(in crate::guest) guest: Guest,
    /// A block of several pages in kmem_map, with a hole before and after it.
    pub(super) block: GuestVirt,
    /// A pageable range of exec_map whose first page has been touched.
    pub(super) pageable: GuestVirt,
    /// A range of kernel_map with a window of `pmap_qenter` over its first two pages.
    pub(super) window: GuestVirt,
}

impl Lab {
    /// Launches the guest and gives it something to do.
    pub(super) fn new() -> Self {
        let guest = Guest::builder().memory(32 << 20).launch().expect("a guest can be launched");
        let mut lab = Self::of(guest);
        lab.populate();
        lab
    }

    /// A lab without allocations.
    pub(in crate::guest) fn of(guest: Guest) -> Self {
        let zero = GuestVirt::new(0);
        Self { guest, block: zero, pageable: zero, window: zero }
    }

    fn populate(&mut self) {
        let malloc = |size| Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT };
        let blocks: Vec<GuestVirt> = (0..120).map(|_| self.address(malloc(3 << 12))).collect();
        for &addr in blocks.iter().step_by(2) {
            self.ok(Op::KmemFree { map: MapId::KMEM, addr, size: 3 << 12 });
        }
        self.block = blocks[5];
        self.address(Op::KmemAlloc { map: MapId::KERNEL, size: 40 << 10 });
        self.pageable = self.address(Op::KmemAllocWait { map: MapId::EXEC, size: 64 << 10 });
        self.ok(Op::Touch { addr: self.pageable, size: 4096 });
        self.window = self.address(Op::KmemAllocNofault { map: MapId::KERNEL, size: 32 << 10 });
        self.ok(Op::PmapQenter { addr: self.window, count: 2 });
        self.address(Op::KmemSuballoc {
            parent: MapId::KERNEL,
            size: 1 << 20,
            kind: MapKind::User,
        });
    }

    /// Allocates addresses beyond the boot's page tables, and maps two pages at their end. Returns
    /// where.
    pub(super) fn grow(&mut self) -> GuestVirt {
        let size = NKPT as u64 * NBPDR;
        let addr = self.address(Op::KmemAllocNofault { map: MapId::KERNEL, size });
        let last = addr.add(size - 2 * PAGE_SIZE);
        self.ok(Op::PmapQenter { addr: last, count: 2 });
        last
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.guest.call_in(Context::Thread(0), op).expect("the guest lives").outcome
    }

    pub(in crate::guest) fn address(&mut self, op: Op) -> GuestVirt {
        match self.run(op) {
            Outcome::Value(value) => GuestVirt::new(value),
            other => panic!("{op:?} gave {other:?}"),
        }
    }

    pub(in crate::guest) fn ok(&mut self, op: Op) {
        assert_eq!(self.run(op), Outcome::Ok, "{op:?}");
    }

    /// The map in slot `slot` of the roots.
    pub(super) fn map(&self, slot: usize) -> KPtr<VmMap> {
        self.roots().1.maps[slot].get()
    }

    /// The entry of the map in slot `slot` after `skip` others.
    pub(super) fn entry(&self, slot: usize, skip: usize) -> KPtr<VmMapEntry> {
        (0..skip)
            .fold(self.get(self.map(slot)).header.next.get(), |entry, _| self.get(entry).next.get())
    }

    /// The kernel's roots, with their address.
    pub(super) fn roots(&self) -> (KPtr<KernelRoots>, KernelRoots) {
        self.guest.look(|view| view.kernel_roots()).expect("the roots can be read")
    }

    /// The structure at `at`.
    pub(super) fn get<T: FromBytes + IntoBytes>(&self, at: KPtr<T>) -> T {
        self.guest.look(|view| view.copy("structure", at)).expect("the structure can be read")
    }

    /// Page number of the page mapped at `va`.
    pub(super) fn pfn_at(&self, va: GuestVirt) -> u64 {
        let walk = self.guest.vtop(va).expect("the tables can be read");
        walk.mapping.expect("the address is mapped").phys.pfn()
    }

    /// Where the page-table entry of `level` for `va` lies.
    pub(in crate::guest) fn pte_at(&self, va: GuestVirt, level: Level) -> GuestPhys {
        let walk = self.guest.vtop(va).expect("the tables can be read");
        let step =
            walk.steps().find(|step| step.level == level).expect("there is a table of this level");
        step.table.add(step.index as u64 * 8)
    }

    /// The `vm_page` of page `pfn`.
    pub(super) fn vm_page(&self, pfn: u64) -> KPtr<VmPage> {
        let (_, roots) = self.roots();
        let index = pfn - roots.first_page.get();
        KPtr::new(roots.vm_page_array.get().addr().add(index * size_of::<VmPage>() as u64))
    }

    /// The report of a check.
    pub(super) fn check(&self) -> Report {
        self.guest.check().expect("the roots can be read")
    }

    /// The report of a check while the structure at `at` is damaged by `damage`.
    pub(super) fn damaged<T: FromBytes + IntoBytes>(
        &self,
        at: KPtr<T>,
        damage: impl Fn(&T),
    ) -> Report {
        let place = dmap_to_phys(at.addr()).expect("structures lie in the direct map");
        self.damaged_phys(place, damage)
    }

    /// Asserts that each damage to the structure at `at`, called `what`, is found by its rule.
    #[track_caller]
    pub(super) fn each<T: FromBytes + IntoBytes>(
        &self,
        at: KPtr<T>,
        what: &str,
        damages: &[(&str, Damage<T>)],
    ) {
        for (rule, damage) in damages {
            expect_finding(&self.damaged(at, damage), rule, what, at.addr());
        }
    }

    /// The report of a check while the structure at physical address `at` is damaged by `damage`.
    pub(super) fn damaged_phys<T: FromBytes + IntoBytes>(
        &self,
        at: GuestPhys,
        damage: impl Fn(&T),
    ) -> Report {
        // The kernel must not see the damage and act on it.
        let _pause = self.guest.pause().expect("it can be held");
        let ram = &self.guest.hypervisor.ram;
        let mut before = vec![0; size_of::<T>()];
        ram.read(at, &mut before).expect("it is RAM");
        let mut value = T::read_from_bytes(&before).expect("any bytes are a value");
        damage(&value);
        ram.write(at, value.as_mut_bytes()).expect("it is RAM");
        let report = self.check();
        ram.write(at, &before).expect("it is RAM");
        report
    }
}

impl Lab {
    /// The address of a field of the kernel's roots.
    pub(super) fn root_field<F>(&self, field: fn(&KernelRoots) -> &F) -> GuestVirt {
        let (at, roots) = self.roots();
        let offset = std::ptr::from_ref(field(&roots)).addr() - std::ptr::from_ref(&roots).addr();
        at.addr().add(offset as u64)
    }

    /// Asserts that `rule` finds the damage to a word of the kernel's roots, in `what`, at the
    /// address of that word.
    #[track_caller]
    pub(super) fn root_word<W: Word>(
        &self,
        rule: &str,
        what: &str,
        field: fn(&KernelRoots) -> &Field<W>,
        damage: fn(W) -> W,
    ) {
        let report = self.damaged(self.roots().0, |roots| field(roots).update_locked(damage));
        expect_finding(&report, rule, what, self.root_field(field));
    }

    /// Waits until all CPUs have halted, so no operation is in progress.
    pub(in crate::guest) fn wait_until_halted(&self) {
        let is_halted = |view: &View<'_>| {
            Ok(view.source().cpus()?.iter().all(|cpu| cpu.state == RunState::Halted))
        };
        while !self.guest.look(is_halted).expect("the CPUs can be read") {
            std::thread::yield_now();
        }
    }

    /// Changes the structure at `at` for good.
    pub(super) fn change<T: FromBytes + IntoBytes>(&self, at: KPtr<T>, change: impl FnOnce(&T)) {
        let mut value = self.get(at);
        change(&value);
        let place = dmap_to_phys(at.addr()).expect("structures lie in the direct map");
        self.guest.hypervisor.ram.write(place, value.as_mut_bytes()).expect("it is RAM");
    }
}

/// A change of a structure.
pub(super) type Damage<T> = fn(&T);

/// Asserts that `report` has a finding of `rule` about a structure called `what` at `at`, and
/// returns the first.
#[track_caller]
pub(super) fn expect_finding<'a>(
    report: &'a Report,
    rule: &str,
    what: &str,
    at: GuestVirt,
) -> &'a Finding {
    let found = report.findings.iter().find(|f| f.rule == rule && f.what == what && f.at == at);
    found.unwrap_or_else(|| panic!("no finding of {rule} about {what} at {at} in:\n{report}"))
}
