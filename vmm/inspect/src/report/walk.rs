//! The path from a virtual address to its page, map entry and object.

use serde::{Serialize, Serializer};
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::kva;
use vmkern_abi::pte::{Level, PteFlags};
use vmkern_abi::walk::Step;

use super::entries::{EntryReport, Lookup};
use super::hex::Hex;
use super::objects::ObjectBrief;
use super::page::{PageState, state};
use super::survey::Survey;
use crate::read::leaves::name;

/// A flag of a page-table entry, and the word for it when it is set.
const WORDS: [(PteFlags, &str); 13] = [
    (PteFlags::V, "valid"),
    (PteFlags::RW, "writable"),
    (PteFlags::U, "user"),
    (PteFlags::PWT, "write-through"),
    (PteFlags::PCD, "uncached"),
    (PteFlags::A, "accessed"),
    (PteFlags::M, "modified"),
    (PteFlags::PS, "large"),
    (PteFlags::G, "global"),
    (PteFlags::W, "wired"),
    (PteFlags::MANAGED, "managed"),
    (PteFlags::KENTER, "kenter"),
    (PteFlags::NX, "no-execute"),
];

/// The flags in words.
pub fn words(flags: PteFlags) -> impl Iterator<Item = &'static str> {
    WORDS.into_iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, word)| word)
}

/// Serializes flags as a list of words.
pub(super) fn flag_names<S: Serializer>(
    flags: &PteFlags,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(words(*flags))
}

/// A part of the kernel's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Region {
    /// Below the kernel's part, or in the gap between the halves.
    Low,
    /// The direct map.
    DirectMap,
    /// kernel_map and its submaps.
    KernelMap,
    /// The kernel image's window.
    Image,
}

impl Region {
    /// The region of `va`. `virtual_avail` is the end of the image's window.
    pub(super) fn of(va: GuestVirt, virtual_avail: GuestVirt) -> Self {
        match va {
            va if va < kva::DMAP_MIN => Self::Low,
            va if va < kva::DMAP_MAX => Self::DirectMap,
            va if va >= kva::KERNBASE && va < virtual_avail => Self::Image,
            _ => Self::KernelMap,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "below the kernel",
            Self::DirectMap => "direct map",
            Self::KernelMap => "kernel_map",
            Self::Image => "kernel image",
        }
    }
}

/// A step of a walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// `PML4`, `PDPT`, `PD` or `PT`.
    pub level: &'static str,
    /// The table.
    pub table: Hex,
    /// The entry's index in it.
    pub index: usize,
    /// Where the entry lies.
    pub at: Hex,
    /// All its bits.
    pub bits: Hex,
    /// The table or page that it points to; null if it is not valid.
    pub leads_to: Option<Hex>,
    /// Its flags.
    #[serde(serialize_with = "flag_names")]
    pub flags: PteFlags,
}

/// The mapping of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MappedReport {
    /// The physical address.
    pub phys: Hex,
    /// Bytes that the last entry maps.
    pub span: u64,
    /// What the whole path grants.
    #[serde(serialize_with = "flag_names")]
    pub flags: PteFlags,
}

/// `inspect vtop ADDR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VtopReport {
    /// The address.
    pub va: Hex,
    /// The part of the address space that it lies in.
    pub region: Region,
    /// Whether the address is canonical, so that the CPU accepts it.
    pub canonical: bool,
    /// From the root down.
    pub steps: Vec<StepReport>,
    /// The reserved bits that are set in the last step's entry, for which the CPU refuses it. Null
    /// if there are none.
    pub reserved: Option<Hex>,
    /// Why the table that the last step points to could not be read; null if it could, or if it was
    /// not needed.
    pub unreadable: Option<String>,
    /// Null when nothing is mapped there.
    pub mapping: Option<MappedReport>,
    /// The map whose entry holds the address.
    pub map: Option<String>,
    /// That entry.
    pub entry: Option<EntryReport>,
    /// The entry's object; if no entry holds the address, the page's owner.
    pub object: Option<ObjectBrief>,
    /// The page's number.
    pub pfn: Option<u64>,
    /// The fields of the page's structure, if the page is managed.
    pub page: Option<PageState>,
}

/// The numbers of the set bits, as ranges.
#[must_use]
pub fn bits(mask: u64) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for bit in (0..64).filter(|bit| mask & 1 << bit != 0) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == bit => *last = bit,
            _ => ranges.push((bit, bit)),
        }
    }
    let range = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first} to {last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

pub(super) fn vtop(survey: &Survey<'_, '_>, va: GuestVirt) -> VtopReport {
    // 1. The walk, as far as the tables are readable and valid.
    let (walk, error) = survey.view.walk_as_far(va);
    let unreadable = error.as_ref().map(ToString::to_string);
    error.into_iter().for_each(|error| survey.damage.note(error));
    if walk.reserved != 0 {
        let problem = || {
            format!(
                "the {} entry has reserved bits set: {}",
                name(walk.last().level),
                bits(walk.reserved)
            )
        };
        survey.damage.say("page table", va, problem);
    }
    // 2. What the address refers to: map entry, page, object.
    let steps = walk.steps();
    let steps = steps.map(step_report).collect();
    let mapping = walk.mapping;
    let (map, entry) =
        Lookup::new(survey).find(va).map(|(map, entry)| (map.to_string(), entry)).unzip();
    let pfn = mapping.map(|mapping| mapping.phys.pfn());
    let page = pfn.and_then(|pfn| state(survey, pfn));
    let owner =
        entry.as_ref().map(|entry| &entry.object).or(page.as_ref().map(|page| &page.object));
    let object = owner.and_then(|owner| super::objects::brief(survey, owner));
    let virtual_avail = survey.roots().map_or(kva::KERNBASE, |roots| roots.virtual_avail.get());
    // 3. The report.
    VtopReport {
        va: va.into(),
        region: Region::of(va, virtual_avail),
        canonical: va.is_canonical(),
        steps,
        reserved: (walk.reserved != 0).then_some(Hex(walk.reserved)),
        unreadable,
        mapping: mapping.map(|mapping| MappedReport {
            phys: mapping.phys.into(),
            span: mapping.span,
            flags: mapping.flags,
        }),
        map,
        entry,
        object,
        pfn,
        page,
    }
}

/// One level of the walk.
fn step_report(step: &Step) -> StepReport {
    StepReport {
        level: name(step.level),
        table: step.table.into(),
        index: step.index,
        at: Hex(step.table.page().get() + step.index as u64 * 8),
        bits: Hex(step.pte.bits()),
        leads_to: step.pte.is_valid().then(|| match step.level {
            Level::Pd | Level::Pdpt if step.pte.is_large() => {
                Hex(step.pte.frame().get() & !(step.level.span() - 1))
            }
            _ => step.pte.frame().into(),
        }),
        flags: step.pte.flags(),
    }
}
