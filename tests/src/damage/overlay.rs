//! A dump with a few words changed.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vmkern::abi::kva::dmap_to_phys;
use vmkern::abi::paging::Paging;
use vmkern::inspect::{Anchors, CpuState, InspectError, NotRam, PAGE_WORDS, PageWords, Source};
use vmkern::{GuestPhys, GuestVirt};
use zerocopy::{FromBytes, IntoBytes};

/// The memory of `base` with some pages replaced, and a count of reads.
pub struct Overlay<'a> {
    base: &'a dyn Source,
    pages: Vec<(u64, Box<PageWords>)>,
    reads: Cell<u64>,
    most: u64,
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl<'a> Overlay<'a> {
    /// `base`, unchanged.
    #[must_use]
    pub fn new(base: &'a dyn Source) -> Self {
        Self::bounded(base, u64::MAX)
    }

    /// `base`, unchanged, for at most `most` reads of pages or parts of pages.
    #[must_use]
    pub fn bounded(base: &'a dyn Source, most: u64) -> Self {
        Self { base, pages: Vec::new(), reads: Cell::new(0), most }
    }

    /// The number of reads of pages or parts of pages so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Restarts the count at 0.
    pub fn restart(&self) {
        self.reads.set(0);
    }

    /// The word that contains `at`, to be changed.
    ///
    /// # Panics
    /// When it is not RAM.
    pub fn word(&mut self, at: GuestPhys) -> &AtomicU64 {
        let pfn = at.pfn();
        let index = self.pages.iter().position(|(own, _)| *own == pfn).unwrap_or_else(|| {
            let page = self.base.page(at).expect("what is changed is RAM");
            let copy =
                std::array::from_fn(|word| AtomicU64::new(page[word].load(Ordering::Relaxed)));
            self.pages.push((pfn, Box::new(copy)));
            self.pages.len() - 1
        });
        &self.pages[index].1[usize::try_from(at.page_offset() / 8).expect("an offset fits")]
    }

    /// Flips bit `bit`, 0 to 7, of the byte at `at`.
    ///
    /// # Panics
    /// When it is not RAM.
    pub fn flip(&mut self, at: GuestPhys, bit: u32) {
        let shift = u32::try_from(at.get() % 8).expect("it is below 8") * 8 + bit;
        self.word(at).fetch_xor(1 << shift, Ordering::Relaxed);
    }

    /// The structure at address `at` of the direct map.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn get<T: FromBytes + IntoBytes>(&self, at: GuestVirt) -> T {
        let mut value = T::new_zeroed();
        let place = dmap_to_phys(at).expect("structures lie in the direct map");
        self.read(place, value.as_mut_bytes()).expect("structures lie in RAM");
        value
    }

    /// Changes the structure at address `at` of the direct map.
    ///
    /// # Panics
    /// When it is not there.
    pub fn change<T: FromBytes + IntoBytes>(&mut self, at: GuestVirt, change: impl FnOnce(&T)) {
        let mut value: T = self.get(at);
        change(&value);
        let place = dmap_to_phys(at).expect("structures lie in the direct map");
        for (offset, bytes) in (0..).zip(value.as_mut_bytes()) {
            let at = place.add(offset);
            let shift = at.get() % 8 * 8;
            let word = self.word(at);
            let old = word.load(Ordering::Relaxed) & !(0xff << shift);
            word.store(old | u64::from(*bytes) << shift, Ordering::Relaxed);
        }
    }
}

impl Source for Overlay<'_> {
    fn segments(&self) -> &[Range<GuestPhys>] {
        self.base.segments()
    }

    fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        self.reads.set(self.reads.get() + 1);
        assert!(
            self.reads.get() <= self.most,
            "a look reads more than {} pages: it does not end",
            self.most
        );
        let pfn = at.pfn();
        match self.pages.iter().find(|(own, _)| *own == pfn) {
            Some((_, page)) => Ok(page),
            None => self.base.page(at),
        }
    }

    fn cpus(&self) -> Result<Vec<CpuState>, InspectError> {
        self.base.cpus()
    }

    fn anchors(&self) -> Anchors {
        self.base.anchors()
    }

    fn holds(&self, at: GuestPhys) -> bool {
        self.pages.iter().any(|(own, _)| *own == at.pfn()) || self.base.holds(at)
    }

    fn paging(&self) -> Paging {
        self.base.paging()
    }

    fn populated(&self) -> Vec<Range<GuestPhys>> {
        let mut populated = self.base.populated();
        for (pfn, _) in &self.pages {
            let at = GuestPhys::from_pfn(*pfn);
            if !populated.iter().any(|range| range.contains(&at)) {
                populated.push(at..at.add((PAGE_WORDS * 8) as u64));
            }
        }
        populated.sort_by_key(|range| range.start);
        populated
    }
}
