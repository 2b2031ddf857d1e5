//! The content and the statistics of the CPUs' caches of free pages.

use serde::Serialize;

use super::survey::Survey;
use super::threads::CPUS_MAX;

/// A CPU's cache of free pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageCacheReport {
    /// The CPU's number.
    pub cpu: u32,
    /// Pages in it, by its own count.
    pub pages: u64,
    /// Pages allocated from it since the boot.
    pub allocs: u64,
    /// Pages freed to it.
    pub frees: u64,
    /// Times that it was filled from the buddy lists.
    pub refills: u64,
    /// Times that it returned a batch to the buddy lists.
    pub spills: u64,
    /// Pages taken from it by CPUs that found the buddy lists empty.
    pub drained: u64,
}

/// The caches of all CPUs, in the order of the kernel's list.
pub(super) fn page_caches(survey: &Survey<'_, '_>) -> Vec<PageCacheReport> {
    let first = survey.roots().map(|roots| roots.cpuhead.get()).unwrap_or_default();
    let list = survey.view.list("pcpu", first, |cpu| cpu.allcpu_next.get()).at_most(CPUS_MAX);
    let report = |(_, cpu): (_, vmkern_abi::layout::Pcpu)| PageCacheReport {
        cpu: cpu.cpuid.get(),
        pages: cpu.page_cache.pages.count.get(),
        allocs: cpu.page_cache.allocs.get(),
        frees: cpu.page_cache.frees.get(),
        refills: cpu.page_cache.refills.get(),
        spills: cpu.page_cache.spills.get(),
        drained: cpu.page_cache.drained.get(),
    };
    list.map_while(|item| survey.damage.ok(item)).map(report).collect()
}
