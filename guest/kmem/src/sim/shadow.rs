//! Reports to AddressSanitizer about simulated memory: free memory may not be accessed.
//!
//! Memory comes in chunks; a report for a chunk that does not exist yet is stored until it does.
//! Such reports always concern whole pages. `scripts/asan.sh` builds it; see
//! [`crate::machine::PhysMem::mark`].

#![expect(unsafe_code, reason = "the sanitizer's runtime is a C library")]

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};

use crate::machine::Mark;
use crate::num::to_usize;

unsafe extern "C" {
    fn __asan_poison_memory_region(start: *const c_void, bytes: usize);
    fn __asan_unpoison_memory_region(start: *const c_void, bytes: usize);
}

/// Free pages of chunks that do not exist yet, as runs: the state changes where a run begins and
/// where it ends.
#[derive(Debug, Default)]
pub struct Shadow(Mutex<BTreeSet<u64>>);

impl Shadow {
    fn edges(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a mark for memory that does not exist yet.
    pub fn remember(&self, start: GuestPhys, bytes: u64, mark: Mark) {
        let end = start.add(bytes);
        assert!(
            start.is_page_aligned() && end.is_page_aligned(),
            "a mark within a page that was never used: {start}"
        );
        let mut edges = self.edges();
        let is_free = |edges: &BTreeSet<u64>, page: u64| edges.range(..=page).count() % 2 == 1;
        let (first, end) = (start.pfn(), end.pfn());
        let free_after = is_free(&edges, end);
        let inside: Vec<u64> = edges.range(first..=end).copied().collect();
        inside.iter().for_each(|edge| {
            edges.remove(edge);
        });
        let free = mark == Mark::Free;
        if is_free(&edges, first) != free {
            edges.insert(first);
        }
        if free != free_after {
            edges.insert(end);
        }
    }

    /// Applies the stored marks to the chunk of `bytes` bytes at `start`, which now exists at
    /// `base`.
    pub fn apply(&self, start: GuestPhys, bytes: u64, base: NonNull<u8>) {
        let edges = self.edges();
        let mut free = edges.range(..=start.pfn()).count() % 2 == 1;
        let mut at = start.pfn();
        let end = start.add(bytes).pfn();
        for edge in edges.range(start.pfn() + 1..end).copied().chain([end]) {
            if free {
                // SAFETY: the pages from `at` to `edge` lie in the chunk, which begins at `base`.
                let from = unsafe { base.add(to_usize((at - start.pfn()) * PAGE_SIZE)) };
                mark_at(from, (edge - at) * PAGE_SIZE, Mark::Free);
            }
            (free, at) = (!free, edge);
        }
    }
}

/// Reports `bytes` bytes at `start` to the sanitizer.
pub fn mark_at(start: NonNull<u8>, bytes: u64, mark: Mark) {
    let (start, bytes) = (start.as_ptr().cast_const().cast(), to_usize(bytes));
    // SAFETY: the runtime only records the state, and a wrong report only makes it end the process.
    unsafe {
        match mark {
            Mark::Used => __asan_unpoison_memory_region(start, bytes),
            Mark::Free => __asan_poison_memory_region(start, bytes),
        }
    }
}
