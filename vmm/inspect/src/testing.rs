//! Memory for the tests of this crate: RAM without a guest around it.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vmkern_abi::addr::{GuestPhys, KPtr, PAGE_SIZE};
use vmkern_abi::layout::KernelRoots;
use vmkern_abi::paging::Paging;
use vmkern_abi::pte::{Pte, PteFlags};

use crate::cpu::CpuState;
use crate::error::InspectError;
use crate::ram::{NotRam, PAGE_WORDS, PageWords, ram_ranges};
use crate::source::{Anchors, Source};
use crate::view::View;

/// Stands for every page that was never written to.
static ZERO_PAGE: PageWords = [const { AtomicU64::new(0) }; PAGE_WORDS];

/// A guest's RAM. A page is allocated when it is first written to.
pub(crate) struct Ram {
    segments: Vec<Range<GuestPhys>>,
    /// The pages of each segment.
    pages: Vec<Vec<OnceLock<Box<PageWords>>>>,
}

impl Ram {
    /// `size` bytes of zeros, at the addresses of such a guest's RAM.
    pub(crate) fn new(size: u64) -> Self {
        let segments: Vec<_> =
            ram_ranges(size).map(|range| range.start..range.start.add(range.size)).collect();
        let count = |segment: &Range<GuestPhys>| segment.end.since(segment.start) / PAGE_SIZE;
        let pages = segments.iter().map(|s| (0..count(s)).map(|_| OnceLock::new()).collect());
        Self { pages: pages.collect(), segments }
    }

    fn slot(&self, at: GuestPhys) -> Result<&OnceLock<Box<PageWords>>, NotRam> {
        let outside = NotRam { start: at, len: 1 };
        let mut found = self.segments.iter().zip(&self.pages);
        let (segment, pages) = found.find(|(segment, _)| segment.contains(&at)).ok_or(outside)?;
        let index = usize::try_from(at.since(segment.start) / PAGE_SIZE).map_err(|_| outside)?;
        Ok(&pages[index])
    }

    pub(crate) fn segments(&self) -> &[Range<GuestPhys>] {
        &self.segments
    }

    pub(crate) fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        Ok(self.slot(at)?.get().map_or(&ZERO_PAGE, |page| page))
    }

    /// Copies `bytes` in, from `start` on.
    pub(crate) fn write(&self, start: GuestPhys, bytes: &[u8]) -> Result<(), NotRam> {
        for (at, &byte) in (0..).map(|offset| start.add(offset)).zip(bytes) {
            let zeros = || Box::new([const { AtomicU64::new(0) }; PAGE_WORDS]);
            let page = self.slot(at)?.get_or_init(zeros);
            let offset = usize::try_from(at.page_offset()).expect("it is below the page size");
            let word = &page[offset / 8];
            let mut now = word.load(Ordering::Relaxed).to_le_bytes();
            now[offset % 8] = byte;
            word.store(u64::from_le_bytes(now), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The pages that have been written to.
    pub(crate) fn populated(&self) -> Vec<Range<GuestPhys>> {
        let mut parts: Vec<Range<GuestPhys>> = Vec::new();
        for (segment, pages) in self.segments.iter().zip(&self.pages) {
            for (page, at) in pages.iter().zip((0..).map(|n| segment.start.add(n * PAGE_SIZE))) {
                match parts.last_mut() {
                    _ if page.get().is_none() => {}
                    Some(last) if last.end == at => last.end = at.add(PAGE_SIZE),
                    _ => parts.push(at..at.add(PAGE_SIZE)),
                }
            }
        }
        parts
    }
}

/// RAM with page tables, and with the kernel's roots where a test puts them.
pub(crate) struct TestRam {
    ram: Ram,
    roots: KPtr<KernelRoots>,
}

impl TestRam {
    pub(crate) fn with_roots(self, roots: KPtr<KernelRoots>) -> Self {
        Self { roots, ..self }
    }
}

impl std::ops::Deref for TestRam {
    type Target = Ram;

    fn deref(&self) -> &Ram {
        &self.ram
    }
}

impl Source for TestRam {
    fn segments(&self) -> &[Range<GuestPhys>] {
        self.ram.segments()
    }

    fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        self.ram.page(at)
    }

    fn cpus(&self) -> Result<Vec<CpuState>, InspectError> {
        Ok(Vec::new())
    }

    fn anchors(&self) -> Anchors {
        Anchors { control: GuestPhys::new(0), pml4: GuestPhys::from_pfn(16), roots: self.roots }
    }

    fn paging(&self) -> Paging {
        Paging::ANY
    }
}

/// RAM of 8 MiB whose pages 16 to 19 are page tables that map [0x4000_0000, +0x3000) to pages
/// 32, 33 and 40.
pub(crate) fn mapped_ram() -> TestRam {
    let ram = Ram::new(8 << 20);
    let set = |table: u64, index: u64, frame: u64| {
        let pte = Pte::new(GuestPhys::from_pfn(frame), PteFlags::V | PteFlags::RW | PteFlags::A);
        ram.write(GuestPhys::from_pfn(table).add(index * 8), &pte.bits().to_le_bytes())
            .expect("it is RAM");
    };
    set(16, 0, 17);
    set(17, 1, 18);
    set(18, 0, 19);
    for (index, frame) in [32, 33, 40].into_iter().enumerate() {
        set(19, index as u64, frame);
    }
    TestRam { ram, roots: KPtr::NULL }
}

pub(crate) fn view(ram: &TestRam) -> View<'_> {
    View::new(ram).expect("there are page tables")
}
