//! All page tables, walked once from the root.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::kva::{DMAP_MAX, DMAP_MIN, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::KernelRoots;
use vmkern_abi::pte::{Level, Pte, PteFlags};

use super::finding::Findings;
use super::memory::Memory;
use super::rule::rules;
use crate::PageWords;
use crate::read::leaves::name;

rules! {
    None;
    Tables {
        TABLE_SLOT = "table-slot":
            "only the two slots of the kernel's half of the root are used";
        TABLE_FLAGS = "table-flags":
            "the entry of a table has V, RW and A, and no bit that the last level decides";
        TABLE_LARGE = "table-large":
            "only entries of the direct map map large pages";
        TABLE_FRAME = "table-frame":
            "a table lies in RAM";
        TABLE_SHARED = "table-shared":
            "no table is reached twice, and there are no more translations than pages";
    }
    Translations {
        PTE_INVALID = "pte-invalid":
            "an entry that is not valid is 0";
    }
}

/// The flags that the entry of a table can have.
const TABLE_KNOWN: PteFlags =
    PteFlags::V.union(PteFlags::RW).union(PteFlags::U).union(PteFlags::A).union(PteFlags::M);
/// The flags that it must have. The last level decides whether a page is writable or executable.
const TABLE_ALWAYS: PteFlags = PteFlags::V.union(PteFlags::RW).union(PteFlags::A);

/// A page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Where it is.
    pub at: GuestPhys,
    /// Its level.
    pub level: Level,
    /// The first address that it translates.
    pub base: GuestVirt,
    /// Valid entries.
    pub valid: u32,
    /// The entry that leads to it; 0 for the root.
    pub pte: Pte,
}

/// A valid entry that maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    /// The address.
    pub va: GuestVirt,
    /// The entry.
    pub pte: Pte,
}

/// All page tables and what they map.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// The tables, parents first.
    pub all: Vec<Table>,
    /// The direct map: pages of 2 MiB, by address.
    pub direct: Vec<Translation>,
    /// The image's window, by address.
    pub image: Vec<Translation>,
    /// What kernel_map maps, by address.
    pub kernel: Vec<Translation>,
}

impl Tables {
    /// Walks all tables, starting at `pml4`.
    pub(super) fn read(
        memory: &Memory<'_>,
        roots: &KernelRoots,
        pml4: GuestPhys,
        findings: &Findings,
    ) -> Self {
        let image_end = roots.virtual_avail.get();
        let left = memory.most_pages().saturating_mul(2);
        let tables_left = memory.most_tables();
        let (seen, tables) = (HashMap::new(), Self::default());
        let mut reader = Reader { memory, findings, image_end, left, tables_left, seen, tables };
        reader.visit(pml4, Level::Pml4, GuestVirt::new(0), Pte::EMPTY);
        reader.tables
    }

    /// The translations of kernel_map in `[start, end)`.
    pub(super) fn kernel_in(&self, start: GuestVirt, end: GuestVirt) -> &[Translation] {
        let first = self.kernel.partition_point(|translation| translation.va < start);
        let rest = &self.kernel[first..];
        &rest[..rest.partition_point(|translation| translation.va < end)]
    }
}

struct Reader<'r, 'a> {
    memory: &'r Memory<'a>,
    findings: &'r Findings,
    image_end: GuestVirt,
    /// Translations that may still come: each page has at most two, apart from the direct map.
    left: u64,
    /// Tables that may still come.
    tables_left: u64,
    /// The tables, with the first address that each translates.
    seen: HashMap<GuestPhys, GuestVirt>,
    tables: Tables,
}

/// The address that entry `index` of a table of `level` for `base` translates.
fn address(level: Level, base: GuestVirt, index: u64) -> GuestVirt {
    let va = base.get() | index << level.shift();
    // Bits 48 to 63 repeat bit 47.
    GuestVirt::new(if va & 1 << 47 != 0 { va | 0xffff << 48 } else { va })
}

impl Reader<'_, '_> {
    fn visit(&mut self, at: GuestPhys, level: Level, base: GuestVirt, pte: Pte) {
        // 1. The table: within the limit, not seen before, in RAM.
        if self.tables_left == 0 {
            return self.findings.add(&TABLE_SHARED, "page table", base, || {
                format!(
                    "there are more page tables than the memory at hand can describe, among them \
                     this {} at {at}",
                    name(level)
                )
            });
        }
        if let Some(first) = self.seen.insert(at, base) {
            self.findings.add(&TABLE_SHARED, "page table", base, || {
                format!("the {} at {at} translates both this address and {first}", name(level))
            });
            return;
        }
        let page = match self.memory.page("page table", at) {
            Ok(page) => page,
            Err(_) => {
                return self.findings.add(&TABLE_FRAME, "page table", base, || {
                    format!(
                        "the {} for this address should be at {at}, where there is no RAM",
                        name(level)
                    )
                });
            }
        };
        // 2. Add it to the list. A table that a dump leaves out as zeros has no entries.
        self.tables_left -= 1;
        let number = self.tables.all.len();
        self.tables.all.push(Table { at, level, base, valid: 0, pte });
        if !self.memory.holds(at) {
            return;
        }
        // 3. Its entries.
        let valid = self.entries(at, level, base, page);
        self.tables.all[number].valid = valid;
    }

    /// Visits the entries of the table at `at`; returns how many are valid.
    fn entries(&mut self, at: GuestPhys, level: Level, base: GuestVirt, page: &PageWords) -> u32 {
        let mut valid = 0;
        for (index, word) in (0u64..).zip(page) {
            let bits = word.load(Ordering::Relaxed);
            if bits == 0 {
                continue;
            }
            let (pte, va) = (Pte::from_bits(bits), address(level, base, index));
            if !pte.is_valid() {
                self.findings.add(&PTE_INVALID, level_name(level), va, || {
                    format!(
                        "entry {index} of the table at {at} is not valid, but not empty: {bits:#x}"
                    )
                });
                continue;
            }
            valid += 1;
            self.entry(at, level, va, pte);
        }
        valid
    }

    fn entry(&mut self, table: GuestPhys, level: Level, va: GuestVirt, pte: Pte) {
        // 1. In the root, only the slots that the kernel uses.
        let is_direct = (DMAP_MIN..DMAP_MAX).contains(&va);
        if level == Level::Pml4 && !is_direct && va < VM_MIN_KERNEL_ADDRESS {
            let slot = level.index(va);
            return self.findings.add(&TABLE_SLOT, "PML4E", va, || {
                format!(
                    "slot {slot} of the root table at {table} is {:#x}, but the kernel maps \
                     nothing there",
                    pte.bits()
                )
            });
        }
        // 2. The entry of a page, or of a large page in the direct map.
        let below = match level {
            Level::Pml4 => Level::Pdpt,
            Level::Pdpt => Level::Pd,
            Level::Pd => Level::Pt,
            Level::Pt => return self.translation(va, pte),
        };
        if level == Level::Pd && is_direct {
            return self.tables.direct.push(Translation { va, pte });
        }
        // 3. The entry of a table: not a large page, and with the flags of every table's entry.
        if pte.is_large() {
            return self.findings.add(&TABLE_LARGE, level_name(level), va, || {
                format!(
                    "the entry {:#x} maps a page of {:#x} bytes, but only the direct map has large \
                     pages",
                    pte.bits(),
                    level.span()
                )
            });
        }
        let flags = pte.bits() & !vmkern_abi::pte::PG_FRAME;
        if flags & !TABLE_KNOWN.bits() != 0 || !pte.flags().contains(TABLE_ALWAYS) {
            self.findings.add(&TABLE_FLAGS, level_name(level), va, || {
                format!(
                    "the entry of a table is {:#x}, but must have {TABLE_ALWAYS:?} and nothing \
                     beyond {TABLE_KNOWN:?}",
                    pte.bits()
                )
            });
        }
        self.visit(pte.frame(), below, va, pte);
    }

    fn translation(&mut self, va: GuestVirt, pte: Pte) {
        let Some(left) = self.left.checked_sub(1) else {
            return self.findings.add(
                &TABLE_SHARED,
                "page table",
                va,
                || "there are more translations than pages",
            );
        };
        self.left = left;
        let is_image = (vmkern_abi::kva::KERNBASE..self.image_end).contains(&va);
        let list = if is_image { &mut self.tables.image } else { &mut self.tables.kernel };
        list.push(Translation { va, pte });
    }
}

/// The name of an entry in a table of `level`.
pub(super) const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Pml4 => "PML4E",
        Level::Pdpt => "PDPTE",
        Level::Pd => "PDE",
        Level::Pt => "PTE",
    }
}
