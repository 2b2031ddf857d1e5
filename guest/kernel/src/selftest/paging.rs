//! The page tables, read as the CPU reads them.

use core::convert::Infallible;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::kva::{KERNBASE, phys_to_dmap};
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::{Level, NPTEPG, Pte, PteFlags};
use vmkern_abi::walk::{Mapping, TableReader, walk};

use super::{Bench, Verdict, same};
use crate::arch::percpu::PerCpu;
use crate::arch::stack;
use crate::direct_map;
use crate::host::region;

/// Reads tables through the direct map.
pub struct Tables;

impl TableReader for Tables {
    type Error = Infallible;

    fn entry(&self, table: GuestPhys, index: usize) -> Result<Pte, Infallible> {
        assert!(index < NPTEPG);
        let at = phys_to_dmap(table).get() as *const u64;
        // SAFETY: page tables are RAM, which the direct map maps; a concurrent change of A or M is
        // harmless in a volatile read of one word.
        Ok(Pte::from_bits(unsafe { at.add(index).read_volatile() }))
    }

    fn paging(&self) -> Paging {
        region::paging()
    }
}

/// The mapping at `va`.
pub fn translate(va: GuestVirt) -> Option<Mapping> {
    let Ok(walk) = walk(&Tables, direct_map::pml4(), va);
    walk.mapping
}

/// Calls `visit` with each leaf entry and the rights of its path.
fn each_leaf(
    table: GuestPhys,
    level: Level,
    granted: PteFlags,
    visit: &mut impl FnMut(PteFlags) -> Verdict,
) -> Verdict {
    for index in 0..NPTEPG {
        let Ok(pte) = Tables.entry(table, index);
        if !pte.is_valid() {
            continue;
        }
        let both = PteFlags::RW | PteFlags::U;
        let grants = (granted & pte.flags() & both) | ((granted | pte.flags()) & PteFlags::NX);
        let below = match level {
            Level::Pml4 => Some(Level::Pdpt),
            Level::Pdpt if !pte.is_large() => Some(Level::Pd),
            Level::Pd if !pte.is_large() => Some(Level::Pt),
            _ => None,
        };
        match below {
            Some(below) => each_leaf(pte.frame(), below, grants, visit)?,
            None => visit(grants)?,
        }
    }
    Ok(())
}

fn all_leaves(visit: &mut impl FnMut(PteFlags) -> Verdict) -> Verdict {
    each_leaf(direct_map::pml4(), Level::Pml4, PteFlags::RW | PteFlags::U, visit)
}

pub fn write_xor_execute(_: &Bench<'_>) -> Verdict {
    all_leaves(&mut |grants| {
        let both = grants.contains(PteFlags::RW) && !grants.contains(PteFlags::NX);
        same("writable and executable", both.into(), 0)
    })
}

pub fn user_bit_follows_privilege(_: &Bench<'_>) -> Verdict {
    let want = PerCpu::current().body_is_user();
    all_leaves(&mut |grants| {
        same("accessible at CPL3", grants.contains(PteFlags::U).into(), want.into())
    })
}

pub fn image_protection(_: &Bench<'_>) -> Verdict {
    static IN_RODATA: u64 = 1;
    let access = |va: u64| match translate(GuestVirt::new(va)) {
        None => 0,
        Some(mapping) => {
            let write = if mapping.flags.contains(PteFlags::RW) { 2 } else { 0 };
            let execute = if mapping.flags.contains(PteFlags::NX) { 0 } else { 4 };
            1 | write | execute
        }
    };
    same(
        "rights on text",
        access(image_protection as fn(&Bench<'_>) -> Verdict as usize as u64),
        1 | 4,
    )?;
    same("rights on read-only data", access(&raw const IN_RODATA as u64), 1)?;
    same("rights on data", access(&raw const *PerCpu::current() as u64), 1 | 2)?;
    for guarded in [stack::BOOT, stack::TRAP, stack::EMERGENCY] {
        same("rights on a stack", access(guarded.bottom() as u64), 1 | 2)?;
        same("rights on a guard page", access(guarded.bottom() as u64 - 1), 0)?;
    }
    same("rights past the image", access(KERNBASE.get() + direct_map::image_end().get()), 0)
}
