//! What is inspected: a guest's physical memory and its CPUs' registers.
//!
//! All of inspection is generic over [`Source`], so it works on a running guest, on a dead guest,
//! and on a dump in a file. A source only guarantees bounds: the content was written by a guest,
//! which may be damaged or hostile, so every reader checks it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use vmkern_abi::addr::{GuestPhys, KPtr};
use vmkern_abi::control::ControlRegion;
use vmkern_abi::layout::KernelRoots;
use vmkern_abi::paging::Paging;

use crate::InspectError;
use crate::cpu::{CpuState, Standing};
use crate::ram::{NotRam, PAGE_WORDS, PageWords};

/// Where the kernel's structures begin, according to the control region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Anchors {
    /// The control region ([`ControlRegion`]).
    pub control: GuestPhys,
    /// The root page table; 0 while the kernel has published none.
    pub pml4: GuestPhys,
    /// The kernel's table of roots; null while it has published none.
    pub roots: KPtr<KernelRoots>,
}

impl Anchors {
    /// The anchors that `region`, which lies at `control`, names now.
    #[must_use]
    pub fn of(control: GuestPhys, region: &ControlRegion) -> Self {
        Self { control, pml4: region.pml4.get(), roots: region.roots.get() }
    }
}

/// A guest's physical memory and its CPUs.
pub trait Source {
    /// RAM: ranges of whole pages, ascending, none touching the next.
    fn segments(&self) -> &[Range<GuestPhys>];

    /// The page that holds `at`, in place.
    ///
    /// # Errors
    /// [`NotRam`] when there is no RAM.
    fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam>;

    /// The CPUs, by number. A running guest is held during this call.
    ///
    /// # Errors
    /// [`InspectError::Unstoppable`] when a vCPU cannot be held, [`InspectError::NotReady`]
    /// when it has no registers yet.
    fn cpus(&self) -> Result<Vec<CpuState>, InspectError>;

    /// Where the kernel's structures begin.
    fn anchors(&self) -> Anchors;

    /// What its CPUs require of page-table entries.
    fn paging(&self) -> Paging;

    /// Where its CPUs stand, as far as that is known: [`Standing::Anywhere`] if one of them was
    /// held before it reached a quiescent point, so it may be anywhere in the kernel, with or
    /// without a mutex.
    fn standing(&self) -> Standing {
        Standing::Quiescent
    }

    /// Copies `buffer.len()` bytes out, from `start` on. Each aligned word is read in one access.
    ///
    /// # Errors
    /// [`NotRam`] when a part is not RAM; the buffer's content is then unspecified.
    fn read(&self, start: GuestPhys, buffer: &mut [u8]) -> Result<(), NotRam> {
        let outside = NotRam { start, len: buffer.len() as u64 };
        let (mut at, mut rest) = (start, buffer);
        while !rest.is_empty() {
            let page = self.page(at).map_err(|_| outside)?;
            let offset = usize::try_from(at.page_offset()).map_err(|_| outside)?;
            let (now, later) = rest.split_at_mut(rest.len().min(PAGE_WORDS * 8 - offset));
            copy_out(page, offset, now);
            rest = later;
            if !rest.is_empty() {
                at = at.checked_add(now.len() as u64).ok_or(outside)?;
            }
        }
        Ok(())
    }

    /// Reads the aligned word at `at`.
    ///
    /// # Errors
    /// [`NotRam`] when it is not RAM or not aligned.
    fn load(&self, at: GuestPhys) -> Result<u64, NotRam> {
        let outside = NotRam { start: at, len: 8 };
        if !at.get().is_multiple_of(8) {
            return Err(outside);
        }
        let word = usize::try_from(at.page_offset() / 8).map_err(|_| outside)?;
        Ok(self.page(at).map_err(|_| outside)?[word].load(Ordering::Relaxed))
    }

    /// The parts of RAM that may hold anything but zeros, ascending: for readers of all of RAM.
    fn populated(&self) -> Vec<Range<GuestPhys>> {
        self.segments().to_vec()
    }

    /// Whether the page at `at` may hold anything but zeros. A dump knows this of most pages that
    /// it does not hold.
    fn holds(&self, _at: GuestPhys) -> bool {
        true
    }

    /// Bytes of RAM that may hold anything but zeros: a bound for the work of reading, and for the
    /// counts that structures may claim.
    fn held_size(&self) -> u64 {
        self.populated().iter().map(|range| range.end.since(range.start)).sum()
    }

    /// Bytes of RAM.
    fn ram_size(&self) -> u64 {
        self.segments().iter().map(|segment| segment.end.since(segment.start)).sum()
    }
}

/// Copies the bytes at `offset` of `page` into `buffer`, word by word.
fn copy_out(page: &PageWords, offset: usize, buffer: &mut [u8]) {
    let bytes = |word: usize| page[word].load(Ordering::Relaxed).to_le_bytes();
    let (mut word, skip) = (offset / 8, offset % 8);
    let head = if skip == 0 { 0 } else { buffer.len().min(8 - skip) };
    let (head, rest) = buffer.split_at_mut(head);
    if !head.is_empty() {
        head.copy_from_slice(&bytes(word)[skip..skip + head.len()]);
        word += 1;
    }
    let mut words = rest.chunks_exact_mut(8);
    for (chunk, from) in (&mut words).zip(&page[word..]) {
        chunk.copy_from_slice(&from.load(Ordering::Relaxed).to_le_bytes());
        word += 1;
    }
    let tail = words.into_remainder();
    if !tail.is_empty() {
        tail.copy_from_slice(&bytes(word)[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn bytes_are_copied_from_any_offset_and_for_any_length() {
        let page: PageWords = std::array::from_fn(|word| {
            let byte = |at: usize| u8::try_from((word * 8 + at) % 251).expect("it is below 251");
            AtomicU64::new(u64::from_le_bytes(std::array::from_fn(byte)))
        });
        for offset in (0..24).chain(4070..4096) {
            for len in (0..40).filter(|len| offset + len <= 4096) {
                let mut buffer = vec![0; len];
                copy_out(&page, offset, &mut buffer);
                let expected: Vec<_> = (offset..offset + len).map(|at| (at % 251) as u64).collect();
                assert_eq!(
                    buffer.iter().map(|&byte| u64::from(byte)).collect::<Vec<_>>(),
                    expected
                );
            }
        }
    }
}
