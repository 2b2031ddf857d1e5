//! Whether the memory of a page may be discarded.
//!
//! The kernel's own structures are asked, as far as there are any: the page array says whether the
//! balloon's driver has the page. They are hostile like all of guest memory, but a kernel that lies
//! about its pages harms only itself: what is checked here protects a kernel from a mistake of its
//! driver, and from nothing else.

use std::mem::offset_of;
use std::ops::Range;

use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::field::Field;
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::{KernelRoots, PageFlags, VmPage, VmPhysSeg};
use vmkern_abi::seize::Structures as _;

use crate::kvm::memory::GuestRam;

/// More segments than any kernel has.
const SEGMENTS_MAX: u64 = 64;

/// What a driver should not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// A descriptor of the wrong kind or length, or more than one request may hold.
    Malformed,
    /// A page that is not RAM.
    NotRam,
    /// A page of the kernel's image, or of what the loader wrote.
    Image,
    /// A page that the kernel does not manage.
    Unmanaged,
    /// A page that the kernel uses, or that is free.
    InUse,
    /// A page that is in the balloon already.
    GivenTwice,
    /// A page that leaves the balloon and was not in it.
    NotGiven,
}

impl Misuse {
    /// Every kind.
    pub(crate) const ALL: [Self; 7] = [
        Self::Malformed,
        Self::NotRam,
        Self::Image,
        Self::Unmanaged,
        Self::InUse,
        Self::GivenTwice,
        Self::NotGiven,
    ];

    /// What is wrong with the page.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Malformed => "in a descriptor of the wrong kind or length",
            Self::NotRam => "that is not RAM",
            Self::Image => "of the kernel's image or the loader's data",
            Self::Unmanaged => "that the kernel does not manage",
            Self::InUse => "that does not belong to the balloon",
            Self::GivenTwice => "that is in the balloon already",
            Self::NotGiven => "that was not in the balloon",
        }
    }
}

/// What is known of a guest's pages.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    /// Memory that the loader has filled.
    loaded: Vec<Range<GuestPhys>>,
    /// Where the kernel says where its structures are, if it does.
    control: Option<GuestPhys>,
}

impl Judge {
    /// For a guest of which the loader has filled `loaded`, and whose control region is at
    /// `control`.
    pub(crate) fn new(loaded: Vec<Range<GuestPhys>>, control: Option<GuestPhys>) -> Self {
        Self { loaded, control }
    }

    /// Whether the memory of page `pfn` may be discarded. `roots` are the kernel's, if it has
    /// published them.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn page(
        &self,
        ram: &GuestRam,
        roots: Option<&KernelRoots>,
        pfn: u64,
    ) -> Result<(), Misuse> {
        let at = GuestPhys::from_pfn(pfn);
        if !ram.segments().iter().any(|segment| segment.contains(&at)) {
            return Err(Misuse::NotRam);
        }
        if self.loaded.iter().any(|range| range.start.page() <= at && at < range.end) {
            return Err(Misuse::Image);
        }
        let Some(roots) = roots else { return Ok(()) };
        let page = vm_page(ram, roots, pfn).ok_or(Misuse::Unmanaged)?;
        let mine = PageFlags::ALLOCATED | PageFlags::BALLOON;
        if page.flags.get().contains(mine) { Ok(()) } else { Err(Misuse::InUse) }
    }

    /// The kernel's roots, once it has published them.
    pub(super) fn roots<'a>(&self, ram: &'a GuestRam) -> Option<&'a KernelRoots> {
        let at = self.control?.add(offset_of!(ControlRegion, roots) as u64);
        let roots: &Field<KPtr<KernelRoots>> = ram.structure(at)?;
        ram.behind(roots.get().non_null()?)
    }
}

/// The structure of page `pfn`, if the kernel manages the page and has used it.
fn vm_page<'a>(ram: &'a GuestRam, roots: &KernelRoots, pfn: u64) -> Option<&'a VmPage> {
    let element = |array: GuestPhys, index: u64, size: usize| {
        array.get().checked_add(index.checked_mul(size as u64)?).map(GuestPhys::new)
    };
    // 1. In a segment, below its fresh part.
    let segs = dmap_to_phys(roots.vm_phys_segs.get().addr())?;
    let holds = |number: u64| {
        let seg: &VmPhysSeg = ram.structure(element(segs, number, size_of::<VmPhysSeg>())?)?;
        Some((u64::from(seg.start.get())..u64::from(seg.fresh.get())).contains(&pfn))
    };
    let mut numbers = 0..roots.vm_phys_nsegs.get().min(SEGMENTS_MAX);
    numbers.any(|number| holds(number) == Some(true)).then_some(())?;
    // 2. Its element of the page array.
    let array = dmap_to_phys(roots.vm_page_array.get().addr())?;
    let index = pfn.checked_sub(roots.first_page.get())?;
    ram.structure(element(array, index, size_of::<VmPage>())?)
}
