//! The mappings of the page tables, in runs.

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::pte::PteFlags;

use super::leaves::{Leaf, Leaves};
use crate::InspectError;
use crate::view::View;

/// Neighbouring pages of one size with equal flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageRun {
    /// First address.
    pub start: GuestVirt,
    /// First address past the run.
    pub end: GuestVirt,
    /// Bytes that one entry maps: 4 KiB, 2 MiB or 1 GiB.
    pub span: u64,
    /// What the whole path grants, and the last entry's other flags.
    pub flags: PteFlags,
    /// Physical address behind `start`.
    pub phys: GuestPhys,
}

pub(super) fn runs(
    view: &View<'_>,
    start: GuestVirt,
    end: GuestVirt,
) -> Result<Vec<PageRun>, InspectError> {
    if start > end || !start.is_page_aligned() || !end.is_page_aligned() {
        return Err(InspectError::BadRange { start, end });
    }
    let mut runs: Vec<PageRun> = Vec::new();
    if start == end {
        return Ok(runs);
    }
    for leaf in Leaves::new(view, start, GuestVirt::new(end.get() - 1)) {
        let Leaf { va, span, phys, flags, .. } = leaf?;
        // A large page may reach past either end of the range: count only the part inside.
        let first = va.max(start);
        let phys = phys.add(first.since(va));
        let last = va.checked_add(span).map_or(end, |next| next.min(end));
        match runs.last_mut() {
            Some(run) if run.end == first && run.span == span && run.flags == flags => {
                run.end = last
            }
            _ => runs.push(PageRun { start: first, end: last, span, flags, phys }),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use vmkern_abi::pte::Pte;

    use super::*;
    use crate::testing::{mapped_ram, view};

    const MAPPED: GuestVirt = GuestVirt::new(0x4000_0000);

    #[test]
    fn neighbours_with_equal_flags_make_one_run_and_holes_cost_nothing() {
        let ram = mapped_ram();
        let all = runs(&view(&ram), GuestVirt::new(0), GuestVirt::new(0x7fff_ffff_f000))
            .expect("the tables are sound");
        let flags = PteFlags::V | PteFlags::RW | PteFlags::A;
        let phys = GuestPhys::from_pfn(32);
        assert_eq!(
            all,
            [PageRun { start: MAPPED, end: MAPPED.add(0x3000), span: 4096, flags, phys }]
        );
        let read_only = Pte::new(GuestPhys::from_pfn(33), PteFlags::V);
        ram.write(GuestPhys::from_pfn(19).add(8), &read_only.bits().to_le_bytes())
            .expect("it is RAM");
        assert_eq!(
            runs(&view(&ram), MAPPED, MAPPED.add(0x10_0000)).expect("the tables are sound").len(),
            3
        );
    }

    #[test]
    fn tables_that_refer_to_themselves_do_not_keep_the_host_busy_for_ever() {
        let ram = mapped_ram();
        let table = Pte::new(GuestPhys::from_pfn(16), PteFlags::V | PteFlags::RW);
        for index in 0..512 {
            ram.write(GuestPhys::from_pfn(16).add(index * 8), &table.bits().to_le_bytes())
                .expect("it is RAM");
        }
        let result = runs(&view(&ram), GuestVirt::new(0), GuestVirt::new(0x7fff_ffff_f000));
        assert!(matches!(result, Err(InspectError::Damaged { what: "page table", .. })));
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        let ram = mapped_ram();
        assert!(runs(&view(&ram), MAPPED.add(1), MAPPED.add(0x1000)).is_err());
        assert!(runs(&view(&ram), MAPPED.add(0x1000), MAPPED).is_err());
        assert_eq!(runs(&view(&ram), MAPPED, MAPPED), Ok(Vec::new()));
    }
}
