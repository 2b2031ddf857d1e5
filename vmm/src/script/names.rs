//! The names that expressions know without a `$`.

use vmkern_abi::control::MapId;
use vmkern_abi::layout::VmMeter;

use crate::inspect::StallTimes;

/// The properties of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapField {
    /// First address.
    Min,
    /// First address past the map.
    Max,
    /// Bytes in use.
    Size,
    /// Entries.
    Entries,
    /// Bytes of the largest hole.
    MaxFree,
}

impl MapField {
    /// Every field.
    pub const ALL: [Self; 5] = [Self::Min, Self::Max, Self::Size, Self::Entries, Self::MaxFree];

    /// The word after the dot.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Min => "min",
            Self::Max => "max",
            Self::Size => "size",
            Self::Entries => "entries",
            Self::MaxFree => "max_free",
        }
    }

    /// The field with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// The name of a boot-time map; every other is a submap.
#[must_use]
pub fn map_name(map: MapId) -> &'static str {
    MapId::NAMED.iter().find(|&&(_, id)| id == map).map_or("a submap", |&(name, _)| name)
}

/// Pages that the host has seized: not a counter of the kernel, but read in its structures.
pub(super) const SEIZED_PAGES: &str = "seized_pages";

/// Pages in the balloon: read in the kernel's structures as well.
pub(super) const BALLOON_PAGES: &str = "balloon_pages";

/// Counters that are not words of the kernel's meter.
const DERIVED: [&str; 2] = [SEIZED_PAGES, BALLOON_PAGES];

/// Every counter: the kernel's own, and those that are computed from its structures.
fn counters() -> impl Iterator<Item = &'static str> {
    VmMeter::NAMES.iter().copied().chain(DERIVED).chain(StallTimes::NAMES)
}

/// The counter called `name`, under its static name.
#[must_use]
pub fn counter(name: &str) -> Option<&'static str> {
    counters().find(|&counter| counter == name)
}

/// Names of the language whose features the kernel does not have yet.
const LATER: [&str; 3] = ["v_swappgsin", "v_swappgsout", "swap_free"];

/// Whether `name` is one of the language, but not yet of this kernel.
pub(super) fn is_later(name: &str) -> bool {
    LATER.contains(&name)
}

/// Names that are neither counters nor maps.
const OTHERS: [&str; 4] = ["page_size", "rand", "now", "cycles"];

/// Everything that can stand in an expression without a `$`: for suggestions.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    counters().chain(OTHERS).chain(MapId::NAMED.map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_language_is_one_of_the_kernels() {
        let language = "v_page_count v_free_count v_cache_count v_active_count v_inactive_count \
                        v_wire_count v_free_reserved v_free_min v_free_target v_interrupt_free_min \
                        v_faults v_zfod v_swapin v_swapout v_pdwakeups lowmem_events thread_count \
                        ticks hz ncpu stall_vmwait stall_pfault stall_nokva stall_vmmaps \
                        stall_total";
        for name in language.split_whitespace() {
            assert_eq!(counter(name), Some(name));
        }
    }
    #[test]
    fn a_name_that_is_not_there_yet_is_no_counter() {
        for name in LATER {
            assert_eq!(counter(name), None, "{name}: it is there");
        }
    }
}
