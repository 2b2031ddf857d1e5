//! Access to memory through the page tables and the TLB, with the page-fault handler behind them.

use std::slice;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::control::KernReturn;
use vmkern_abi::field::Field;
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::{Pte, PteFlags};
use vmkern_abi::walk::{self, TableReader};

use super::machine::SimMachine;
use crate::machine::{Mmu, PhysMem};
use crate::ops::{Access, Intent};
use crate::vm::Vm;
use crate::vm::fault::FaultType;
use crate::window::{self, PageTable};

/// The kernel's view of simulated memory.
#[derive(Debug)]
pub struct SimAccess<'a> {
    vm: &'a Vm<SimMachine>,
}

impl TableReader for &SimMachine {
    type Error = std::convert::Infallible;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, Self::Error> {
        Ok(window::at::<PageTable, SimMachine>(self, table)[index].get())
    }

    fn paging(&self) -> Paging {
        Mmu::paging(*self)
    }
}

impl<'a> SimAccess<'a> {
    /// The view through the tables of `vm`.
    #[must_use]
    pub fn new(vm: &'a Vm<SimMachine>) -> Self {
        Self { vm }
    }

    /// The current translation of the page of `va` in the tables, as one entry.
    pub(super) fn walk(&self, va: GuestVirt) -> Option<Pte> {
        let pml4 = self.vm.state().kernel_pmap.pml4.get();
        let Ok(walk) = walk::walk(&self.vm.machine(), pml4, va.page());
        walk.mapping.map(|mapping| Pte::new(mapping.phys, mapping.flags | PteFlags::V))
    }

    /// Translates `va`, faulting where the hardware would.
    fn translate(&self, va: GuestVirt, intent: Intent) -> GuestPhys {
        self.try_translate(va, intent)
            .unwrap_or_else(|code| panic!("page fault at {va:#x}: {code}"))
    }

    fn try_translate(&self, va: GuestVirt, intent: Intent) -> Result<GuestPhys, KernReturn> {
        let vpn = va.get() / PAGE_SIZE;
        self.vm.machine().interrupt_point();
        let allowed = |pte: &Pte| intent == Intent::Read || pte.flags().contains(PteFlags::RW);
        loop {
            let now = self.walk(va);
            let remembered = self.vm.machine().tlb().get(vpn);
            if let Some(old) = remembered {
                assert!(
                    now.is_some_and(|now| covers(now, old)),
                    "access to {va:#x} through a stale translation: {old:?}, \
                     where the tables say {now:?}"
                );
            }
            if let Some(pte) = remembered.or(now).filter(allowed) {
                self.vm.machine().tlb().insert(vpn, pte);
                return Ok(pte.frame().add(va.page_offset()));
            }
            let fault = match intent {
                Intent::Read => FaultType::Read,
                Intent::Write => FaultType::Write,
            };
            // The CPU drops what it caches of a page whose access faults (SDM vol. 3, 4.10.4.1).
            self.vm.machine().tlb().invalidate(vpn, vpn + 1);
            self.vm.trap_pfault(va, fault)?;
        }
    }

    /// Stops the test when the TLB still caches a mapping that the tables no longer have.
    pub fn assert_tlb_matches_tables(&self) {
        for (vpn, old) in self.vm.machine().tlb().iter() {
            let va = GuestVirt::new(vpn * PAGE_SIZE);
            let now = self.walk(va);
            let same = now.is_some_and(|now| covers(now, old));
            assert!(same, "the TLB remembers {old:?} for {va:#x}, where the tables say {now:?}");
        }
    }
}

/// Whether the tables still have the translation `cached`, and allow what it allows.
fn covers(now: Pte, cached: Pte) -> bool {
    let is_writable = |pte: Pte| pte.flags().contains(PteFlags::RW);
    now.frame() == cached.frame() && (is_writable(now) || !is_writable(cached))
}

impl Access for SimAccess<'_> {
    #[expect(unsafe_code, reason = "memory behind an address is raw memory")]
    fn words(&self, start: GuestVirt, count: usize, intent: Intent) -> &[Field<u64>] {
        assert!(
            start.get().is_multiple_of(8) && start.page_offset() + count as u64 * 8 <= PAGE_SIZE
        );
        let frame = self.vm.machine().frame(self.translate(start, intent));
        // SAFETY: the machine vouches for the memory up to the end of the page, and the assertion
        // keeps the words inside it and aligned.
        unsafe { slice::from_raw_parts(frame.as_ptr().cast(), count) }
    }

    fn probe(&self, va: GuestVirt) -> Option<u64> {
        self.try_translate(va, Intent::Read).ok()?;
        Some(self.words(va, 1, Intent::Read)[0].get())
    }

    #[expect(unsafe_code, reason = "memory behind an address is raw memory")]
    fn bytes(&self, start: GuestVirt, count: usize, intent: Intent) -> &[Field<u8>] {
        assert!(start.page_offset() + count as u64 <= PAGE_SIZE);
        let frame = self.vm.machine().frame(self.translate(start, intent));
        // SAFETY: the machine vouches for the memory up to the end of the page, and the assertion
        // keeps the bytes inside it.
        unsafe { slice::from_raw_parts(frame.as_ptr().cast(), count) }
    }
}
