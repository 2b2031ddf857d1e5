//! One page of physical memory.

use serde::{Serialize, Serializer};
use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::layout::{PQ_ACTIVE, PQ_INACTIVE, PageFlags, PageOflags, VmPage};
use vmkern_abi::pte::PteFlags;

use super::census::{Census, Use, page_at};
use super::entries::{EntryReport, Lookup};
use super::hex::Hex;
use super::survey::{ObjectRef, Survey};
use super::walk::flag_names;
use crate::read::leaves::Leaves;

/// The most mappings of one page that are listed.
const MAPPINGS_MAX: usize = 256;

/// What a page's structure says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageState {
    /// Address of its `VmPage`.
    pub at: Hex,
    /// The object that owns it.
    pub object: ObjectRef,
    /// Its index in the object.
    pub pindex: u64,
    /// How often it is wired.
    pub wired: u32,
    /// Short-term holds.
    pub held: u32,
    /// `none`, `inactive`, `active`, or the number.
    pub queue: String,
    /// Order of the free block of which it is the first page.
    pub heads_block_of_order: Option<u8>,
    /// Flags by their names.
    #[serde(serialize_with = "page_flags")]
    pub flags: PageFlags,
    /// Flags guarded by the object's lock.
    #[serde(serialize_with = "page_oflags")]
    pub oflags: PageOflags,
    /// Valid 512-byte chunks, one bit each.
    pub valid: Hex,
    /// Dirty ones.
    pub dirty: Hex,
}

/// A virtual address that maps a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MappingReport {
    /// The address that shows the page's first byte.
    pub va: Hex,
    /// Bytes that the page-table entry maps.
    pub span: u64,
    /// What it grants.
    #[serde(serialize_with = "flag_names")]
    pub flags: PteFlags,
    /// Where the page-table entry lies.
    pub pte_at: Hex,
    /// The map with an entry for the address.
    pub map: Option<String>,
    /// That entry.
    pub entry: Option<EntryReport>,
}

/// `inspect page PFN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageReport {
    /// Its number.
    pub pfn: u64,
    /// Its first byte.
    pub phys: Hex,
    /// What it is used for.
    #[serde(rename = "use")]
    pub kind: Use,
    /// Its structure's fields, if it is in the page array.
    pub state: Option<PageState>,
    /// Every virtual address that maps it.
    pub mappings: Vec<MappingReport>,
    /// The number of mappings that are not listed.
    pub left_out: u64,
}

fn page_flags<S: Serializer>(flags: &PageFlags, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(flags.iter_names().map(|(name, _)| name))
}

fn page_oflags<S: Serializer>(flags: &PageOflags, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(flags.iter_names().map(|(name, _)| name))
}

/// The page with number `pfn`, or `None` if it is not RAM.
pub(super) fn page(survey: &Survey<'_, '_>, pfn: u64) -> Option<PageReport> {
    let census = Census::take(survey);
    let kind = census.of(pfn);
    if kind == Use::Hole {
        return None;
    }
    let phys = GuestPhys::from_pfn(pfn);
    let (mut mappings, mut left_out) = (Vec::new(), 0);
    let mut lookup = Lookup::new(survey);
    for leaf in Leaves::all(survey.view).flatten() {
        let Some(offset) =
            phys.get().checked_sub(leaf.phys.get()).filter(|offset| *offset < leaf.span)
        else {
            continue;
        };
        if mappings.len() == MAPPINGS_MAX {
            left_out += 1;
            continue;
        }
        let va = leaf.va.add(offset);
        let (map, entry) = lookup.find(va).map(|(map, entry)| (map.to_string(), entry)).unzip();
        let (va, span, flags) = (va.into(), leaf.span, leaf.flags);
        mappings.push(MappingReport { va, span, flags, pte_at: leaf.at.into(), map, entry });
    }
    Some(PageReport { pfn, phys: phys.into(), kind, state: state(survey, pfn), mappings, left_out })
}

/// What the page array says about page `pfn`.
pub(super) fn state(survey: &Survey<'_, '_>, pfn: u64) -> Option<PageState> {
    let at: KPtr<VmPage> = page_at(survey, pfn)?;
    let page = survey.damage.ok(survey.view.copy("vm_page", at))?;
    let queue = match page.queue.get() {
        0 => "none".to_owned(),
        PQ_INACTIVE => "inactive".to_owned(),
        PQ_ACTIVE => "active".to_owned(),
        other => other.to_string(),
    };
    Some(PageState {
        at: at.into(),
        object: survey.object(page.object.get()),
        pindex: page.pindex.get(),
        wired: page.wire_count.get(),
        held: page.hold_count.get(),
        queue,
        heads_block_of_order: page.block.get().checked_sub(1),
        flags: page.flags.get(),
        oflags: page.oflags.get(),
        valid: Hex(page.valid.get().into()),
        dirty: Hex(page.dirty.get().into()),
    })
}
