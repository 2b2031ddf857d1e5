//! Pages of guest memory that a boot is going to touch, made present before it does.
//!
//! Where KVM shadows page tables, the first touch of a page is a fault that costs 26 us, nearly all of it the way out of the
//! guest and back. KVM fills the entries of the seven pages beside it at no cost when the host has them present, and the
//! kernel is laid out so that what its boot touches lies side by side. So the host makes those pages present, in bulk, at
//! 1 to 2 us each, and beside other work: the thread that will run the first CPU does so until there is a VM for it, and the
//! launching thread does what is left while the vCPU is being made.
//!
//! It is a matter of speed alone: a page that was not foreseen costs its fault, one that was foreseen in vain a page of
//! the host's memory, and a kernel of the host that cannot do it (before 5.14) leaves everything to faults.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};

use super::memory::GuestRam;

/// Pages whose shadow entries KVM fills together (`PTE_PREFETCH_NUM`).
const PREFETCH: u64 = 8;
/// Bytes that are made present by one call. Between two calls a thread looks whether there is something better to do.
const PIECE: u64 = 2 * PREFETCH * PAGE_SIZE;

/// The work, for any number of threads.
#[derive(Debug)]
pub(crate) struct Prefault {
    ram: Arc<GuestRam>,
    pieces: Vec<Range<GuestPhys>>,
    next: AtomicUsize,
}

impl Prefault {
    /// Nothing is done yet of `ranges`, each widened to pages that are prefetched together.
    pub(crate) fn new(ram: Arc<GuestRam>, ranges: &[Range<GuestPhys>]) -> Self {
        Self { ram, pieces: pieces(ranges), next: AtomicUsize::new(0) }
    }

    /// Does a piece of it. False when there is nothing left to begin.
    pub(crate) fn work(&self) -> bool {
        let piece = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed));
        piece.inspect(|piece| self.ram.populate(piece)).is_some()
    }

    /// Does all that nobody has begun.
    pub(crate) fn finish(&self) {
        while self.work() {}
    }
}

fn pieces(ranges: &[Range<GuestPhys>]) -> Vec<Range<GuestPhys>> {
    const GROUP: u64 = PREFETCH * PAGE_SIZE;
    let mut wide: Vec<(u64, u64)> = ranges
        .iter()
        .map(|range| (range.start.get() & !(GROUP - 1), range.end.get().next_multiple_of(GROUP)))
        .collect();
    wide.sort_unstable();
    let mut pieces: Vec<Range<GuestPhys>> = Vec::new();
    let mut done = 0;
    for (start, end) in wide {
        let mut at = start.max(done);
        while at < end {
            let to = end.min(at + PIECE);
            pieces.push(GuestPhys::new(at)..GuestPhys::new(to));
            at = to;
        }
        done = done.max(end);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_groups_and_disjoint() {
        let range = |start: u64, end: u64| GuestPhys::new(start)..GuestPhys::new(end);
        let found = pieces(&[range(0x4_1000, 0x4_2000), range(0x8000, 0x9001), range(0xa000, 0x2_5000)]);
        let groups = [(0x8000, 0x1_0000), (0x1_0000, 0x2_0000), (0x2_0000, 0x2_8000), (0x4_0000, 0x4_8000)];
        assert_eq!(found, groups.map(|(start, end)| range(start, end)));
    }

    #[test]
    fn any_number_of_threads_does_each_piece_once() {
        let ram = Arc::new(GuestRam::new(8 << 20).expect("address space is there"));
        let end = GuestPhys::new(1 << 20);
        let work = Prefault::new(Arc::clone(&ram), &[GuestPhys::new(0)..end]);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| work.finish());
            }
        });
        assert!(!work.work());
        assert_eq!(ram.resident(), end.get());
    }
}
