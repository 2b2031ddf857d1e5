//! Taking pages away from a kernel and giving them back, from outside: what the host does to the
//! kernel's structures.
//!
//! A seizure does what allocations of class INTERRUPT on another CPU would do under the free
//! queue's lock, and a return what frees would do, but no instruction of the kernel runs for it.
//! Nobody is woken. The caller holds all CPUs of the guest for the time of a call; a guest that is
//! dead stands still anyway.
//!
//! **Protocol.** A frame goes through four states, and only the host moves it on:
//!
//! 1. free: in a segment's fresh part, in a block of a free list, or in a CPU's cache of pages;
//! 2. seized: [`Seize::take`] has recorded it, in one of the two forms below. From here on neither
//!    the kernel nor a look from outside uses it;
//! 3. discarded, perhaps: the host gives the memory behind it back, and its contents are zeros.
//!    This needs no hold of the guest, and the frame must have been recorded before;
//! 4. free again: [`Seize::give_back`], which is told what is known of the contents. The discard
//!    has ended before.
//!
//! **Records.** What is seized of a segment's fresh part is [`VmPhysSeg::end`] to
//! [`VmPhysSeg::limit`]: two words change, whatever the amount. Other frames are in blocks as on
//! the free lists, headed by a page with [`PageFlags::SEIZED`] on the list of the block's order in
//! [`KernelRoots::vm_seized_queues`]; `private` of that page is the order plus 1. `block`, by which
//! the kernel recognises a buddy that it may merge, is 0. Other words of the pages keep their
//! values, so it costs the same to seize a block of any order, unless the kernel knows pages to be
//! zero ([`KernelRoots::vm_page_zero_count`]), which are then counted.
//!
//! **Locks.** If the free queue's lock or that of a cache is owned, its owner may be in the middle
//! of a change, and nothing is done. The host never waits for a lock of the guest.
//!
//! **Trust.** The structures are the guest's and may be damaged. Each number is checked before it
//! is used, each walk is bounded, and no loop depends on a list's end.

mod give;
mod lists;
mod take;

use core::fmt;
use core::ops::Range;

use zerocopy::FromBytes;

use crate::addr::{GuestPhys, GuestVirt, KPtr};
use crate::field::Atomics;
use crate::kva::dmap_to_phys;
use crate::layout::{KernelRoots, Mtx, PageFlags, Pcpu, VmPage, VmPhysSeg};

/// Physical memory with the kernel's structures in it.
pub trait Structures {
    /// The `T` at `at`, or `None` if it is misaligned or not all of it is memory.
    fn structure<T: FromBytes + Atomics>(&self, at: GuestPhys) -> Option<&T>;

    /// The `T` to which `pointer` leads through the direct map, or `None` as above.
    fn behind<T: FromBytes + Atomics>(&self, pointer: KPtr<T>) -> Option<&T> {
        self.structure(dmap_to_phys(pointer.addr())?)
    }
}

/// Frames in a row, by page number.
pub type Frames = Range<u64>;

/// What is known of the memory behind frames that are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// It was discarded: zeros.
    Discarded,
    /// It was not, and nobody has written to it: as it was.
    Kept,
}

/// The most CPUs that are looked for.
const MAX_CPUS: usize = 256;
/// The most segments that are looked at.
const MAX_SEGMENTS: u64 = 1024;

/// A lock whose owner may be in the middle of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnedLock {
    /// The free queue's (`vm_page_queue_free_mtx`).
    FreeQueue,
    /// That of the cache of pages of the CPU with this number.
    PageCache(u32),
}

impl fmt::Display for OwnedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FreeQueue => f.write_str("the free queue's lock"),
            Self::PageCache(cpu) => write!(f, "the lock of CPU {cpu}'s cache of pages"),
        }
    }
}

/// Why nothing more was taken or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A lock is owned by the thread with this number.
    Locked {
        /// The lock.
        lock: OwnedLock,
        /// The number of the thread that owns it.
        owner: u32,
    },
    /// A structure makes no sense.
    Damaged {
        /// The kind of structure.
        structure: &'static str,
        /// Where it lies.
        at: GuestVirt,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { lock, owner } => {
                write!(f, "thread {owner} owns {lock}, so the free lists may be half changed")
            }
            Self::Damaged { structure, at } => write!(f, "the {structure} at {at} is damaged"),
        }
    }
}

/// A kernel whose pages are taken and given back.
#[derive(Debug)]
pub struct Seize<'a, S> {
    memory: &'a S,
    roots: &'a KernelRoots,
}

impl<'a, S: Structures> Seize<'a, S> {
    /// The kernel whose roots are at `roots`, in `memory`. All its CPUs stand still.
    ///
    /// # Errors
    /// [`Refused::Damaged`] when there are no roots; [`Refused::Locked`].
    pub fn new(memory: &'a S, roots: KPtr<KernelRoots>) -> Result<Self, Refused> {
        let damaged = Refused::Damaged { structure: "kernel roots", at: roots.addr() };
        let seize = Self { memory, roots: memory.behind(roots).ok_or(damaged)? };
        seize.nothing_is_owned()?;
        Ok(seize)
    }

    /// Pages that are seized, in the fresh parts of segments and in blocks.
    ///
    /// # Errors
    /// [`Refused::Damaged`].
    pub fn seized(&self) -> Result<u64, Refused> {
        let mut pages = 0;
        for number in 0..self.segments()? {
            let seg = self.segment(number)?;
            pages += u64::from(seg.limit.get() - seg.end.get());
        }
        Ok(self.roots.seized_in_blocks().saturating_add(pages))
    }

    /// Pages that are free (`v_free_count`), including those in CPUs' caches.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.roots.meter.v_free_count.get()
    }

    /// That no lock is owned which guards what is changed here.
    fn nothing_is_owned(&self) -> Result<(), Refused> {
        let is_free = |lock: OwnedLock, mtx: &Mtx| match mtx.owner.get() & 0xffff {
            0 => Ok(()),
            owner => Err(Refused::Locked { lock, owner: owner - 1 }),
        };
        is_free(OwnedLock::FreeQueue, &self.roots.vm_page_queue_free_mtx)?;
        self.each_cpu(|cpu| is_free(OwnedLock::PageCache(cpu.cpuid.get()), &cpu.page_cache.lock))
    }

    /// Calls `f` with each CPU, in the order of the list.
    fn each_cpu(&self, mut f: impl FnMut(&'a Pcpu) -> Result<(), Refused>) -> Result<(), Refused> {
        let mut next = self.roots.cpuhead.get();
        for _ in 0..MAX_CPUS {
            if next.is_null() {
                return Ok(());
            }
            let cpu: &Pcpu = self.get("pcpu", next)?;
            f(cpu)?;
            next = cpu.allcpu_next.get();
        }
        Err(Refused::Damaged { structure: "pcpu", at: next.addr() })
    }

    /// The structure at `pointer`.
    fn get<T: FromBytes + Atomics>(
        &self,
        structure: &'static str,
        pointer: KPtr<T>,
    ) -> Result<&'a T, Refused> {
        let memory: &'a S = self.memory;
        memory.behind(pointer).ok_or(Refused::Damaged { structure, at: pointer.addr() })
    }

    /// The number of segments.
    fn segments(&self) -> Result<u64, Refused> {
        let number = self.roots.vm_phys_nsegs.get();
        let at = self.roots.vm_phys_segs.get().addr();
        if number <= MAX_SEGMENTS {
            Ok(number)
        } else {
            Err(Refused::Damaged { structure: "list of segments", at })
        }
    }

    /// The segment with this number, whose bounds make sense.
    fn segment(&self, number: u64) -> Result<&'a VmPhysSeg, Refused> {
        let first = self.roots.vm_phys_segs.get().addr();
        let at = first.checked_add(number * size_of::<VmPhysSeg>() as u64).unwrap_or(first);
        if number >= self.segments()? {
            return Err(Refused::Damaged { structure: "number of a segment", at });
        }
        let seg: &VmPhysSeg = self.get("vm_phys_seg", KPtr::new(at))?;
        let ascending = [seg.start.get(), seg.fresh.get(), seg.end.get(), seg.limit.get()];
        let first_page = self.roots.first_page.get();
        let array = first_page..=first_page.saturating_add(self.roots.vm_page_array_size.get());
        let is_sound = ascending.is_sorted()
            && array.contains(&ascending[0].into())
            && array.contains(&ascending[3].into());
        if is_sound { Ok(seg) } else { Err(Refused::Damaged { structure: "vm_phys_seg", at }) }
    }

    /// Where page number `pfn` is described.
    fn page_at(&self, pfn: u32) -> GuestVirt {
        let array = self.roots.vm_page_array.get().addr();
        let index = u64::from(pfn).wrapping_sub(self.roots.first_page.get());
        let bytes = index.checked_mul(size_of::<VmPage>() as u64);
        bytes.and_then(|bytes| array.checked_add(bytes)).unwrap_or(GuestVirt::new(u64::MAX))
    }

    /// The page with number `pfn`, which the page array describes.
    fn page(&self, pfn: u32) -> Result<&'a VmPage, Refused> {
        let index = u64::from(pfn).checked_sub(self.roots.first_page.get());
        let at = self.page_at(pfn);
        match index {
            Some(index) if index < self.roots.vm_page_array_size.get() => {
                self.get("vm_page", KPtr::new(at))
            }
            _ => Err(Refused::Damaged { structure: "link of a page", at }),
        }
    }

    /// Whether the kernel takes a free page with `flags` for zeros.
    fn is_zero(&self, flags: PageFlags) -> bool {
        flags.contains(PageFlags::ZERO)
            || (!flags.contains(PageFlags::TOUCHED) && self.roots.boot_zeroed.is_set())
    }

    /// Whether pages of the fresh parts are zeros.
    fn fresh_is_zero(&self) -> bool {
        self.roots.boot_zeroed.is_set()
    }
}
