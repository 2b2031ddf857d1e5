//! The simulated CPU and its memory.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::NonNull;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::pte::PteFlags;

use super::memory::Memory;
use super::tlb::Tlb;
use crate::machine::Machine;
use crate::vm::{PhysRange, Zeroed};
use crate::window::{self, PageTable};

/// A CPU without instructions: memory, a TLB, and counters of what was done to them.
#[derive(Debug)]
pub struct SimMachine {
    memory: Memory,
    pub(super) tlb: RefCell<Tlb>,
    flushes: Cell<u64>,
    zeroings: Cell<u64>,
}

impl SimMachine {
    pub(super) fn new(ram: &[PhysRange], zeroed: Zeroed) -> Self {
        Self {
            memory: Memory::new(ram, zeroed),
            tlb: RefCell::default(),
            flushes: Cell::new(0),
            zeroings: Cell::new(0),
        }
    }

    /// Pages of physical memory that were ever looked at.
    #[must_use]
    pub fn touched_pages(&self) -> u64 {
        self.memory.touched_pages()
    }

    /// Invalidations so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// Pages cleared so far.
    #[must_use]
    pub fn zeroings(&self) -> u64 {
        self.zeroings.get()
    }
}

#[expect(unsafe_code, reason = "the trait is a promise about memory")]
// SAFETY: `Memory::frame` gives the same place in a chunk that lives as long as the machine for the same address, and
// stops the test at any address that is not memory. References into it are made by `window` and `access` alone, as
// words of atomics.
unsafe impl Machine for SimMachine {
    fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        self.memory.frame(pa)
    }

    fn zero_page(&self, pa: GuestPhys) {
        assert!(pa.is_page_aligned(), "zero_page at {pa:#x}");
        self.zeroings.set(self.zeroings.get() + 1);
        let table: &PageTable = window::at(self, pa);
        table.iter().for_each(|word| word.set(vmkern_abi::pte::Pte::EMPTY));
    }

    fn invalidate_range(&self, start: GuestVirt, end: GuestVirt) {
        assert!(start.is_page_aligned() && end.is_page_aligned() && start < end, "invalidate {start:#x} to {end:#x}");
        self.flushes.set(self.flushes.get() + 1);
        self.tlb.borrow_mut().invalidate(start.get() / PAGE_SIZE, end.get() / PAGE_SIZE);
    }

    fn pte_flags_base(&self) -> PteFlags {
        PteFlags::U
    }

    fn panic(&self, message: fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }

    fn ticks(&self) -> u64 {
        0
    }
}
