//! Sparse physical memory, in chunks that are allocated when they are first used.

#![expect(unsafe_code, reason = "simulated memory is raw memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};

#[cfg(asan)]
use super::shadow::{self, Shadow};
#[cfg(asan)]
use crate::machine::Mark;
use crate::num::to_usize;
use crate::vm::{PhysRange, Zeroed};

const CHUNK: u64 = 64 << 10;
/// The value of a byte of memory that was never zeroed.
const GARBAGE: u8 = 0xa5;

const LAYOUT: Layout = match Layout::from_size_align(to_usize(CHUNK), to_usize(PAGE_SIZE)) {
    Ok(layout) => layout,
    Err(_) => panic!("the chunk's layout is wrong"),
};

/// Physical memory.
#[derive(Debug)]
pub struct Memory {
    ranges: Vec<PhysRange>,
    chunks: Vec<AtomicPtr<u8>>,
    touched: Vec<AtomicU64>,
    zeroed: Zeroed,
    #[cfg(asan)]
    shadow: Shadow,
}

impl Memory {
    pub fn new(ranges: &[PhysRange], zeroed: Zeroed) -> Self {
        let end = ranges.iter().map(|range| range.end.get()).max().unwrap_or(0);
        let pages = to_usize(end / PAGE_SIZE);
        let chunks = to_usize(end.div_ceil(CHUNK));
        Self {
            ranges: ranges.to_vec(),
            chunks: (0..chunks).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            touched: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            zeroed,
            #[cfg(asan)]
            shadow: Shadow::default(),
        }
    }

    /// The byte at `pa`; valid, with the rest of its chunk, as long as the memory lives.
    pub fn frame(&self, pa: GuestPhys) -> NonNull<u8> {
        let is_ram = self.ranges.iter().any(|range| pa >= range.start && pa < range.end);
        assert!(is_ram, "there is no memory at physical address {pa:#x}");
        let page = to_usize(pa.pfn());
        let word = &self.touched[page / 64];
        word.store(word.load(Ordering::Relaxed) | 1 << (page % 64), Ordering::Relaxed);
        let chunk = &self.chunks[to_usize(pa.get() / CHUNK)];
        let base = NonNull::new(chunk.load(Ordering::Acquire)).unwrap_or_else(|| self.allocate(pa));
        // SAFETY: the offset is smaller than the chunk that `base` points to.
        unsafe { base.add(to_usize(pa.get() % CHUNK)) }
    }

    /// Allocates the chunk of `pa`, unless another thread has just done so.
    fn allocate(&self, pa: GuestPhys) -> NonNull<u8> {
        let chunk = &self.chunks[to_usize(pa.get() / CHUNK)];
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(LAYOUT) })
            .unwrap_or_else(|| handle_alloc_error(LAYOUT));
        if self.zeroed == Zeroed::No {
            // SAFETY: the chunk was just allocated with this size, and nothing else uses it.
            unsafe { base.write_bytes(GARBAGE, to_usize(CHUNK)) };
        }
        match chunk.compare_exchange(
            ptr::null_mut(),
            base.as_ptr(),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => {
                #[cfg(asan)]
                self.shadow.apply(GuestPhys::new(pa.get() / CHUNK * CHUNK), CHUNK, base);
                base
            }
            Err(first) => {
                // SAFETY: allocated above with this layout, and nothing else uses it.
                unsafe { dealloc(base.as_ptr(), LAYOUT) };
                NonNull::new(first).unwrap_or(base)
            }
        }
    }

    /// Reports the new state of `bytes` bytes at `start` to the sanitizer.
    #[cfg(asan)]
    pub fn mark(&self, start: GuestPhys, bytes: u64, mark: Mark) {
        let (mut at, end) = (start.get(), start.add(bytes).get());
        while at < end {
            let stop = (at + CHUNK - at % CHUNK).min(end);
            match NonNull::new(self.chunks[to_usize(at / CHUNK)].load(Ordering::Acquire)) {
                // SAFETY: the offset is smaller than the chunk that `base` points to.
                Some(base) => {
                    shadow::mark_at(unsafe { base.add(to_usize(at % CHUNK)) }, stop - at, mark)
                }
                None => self.shadow.remember(GuestPhys::new(at), stop - at, mark),
            }
            at = stop;
        }
    }

    /// The pages that were ever looked at, by number.
    pub fn touched_pages(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..).zip(&self.touched).flat_map(|(word, bits)| {
            let bits = bits.load(Ordering::Relaxed);
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit)
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            if let Some(base) = NonNull::new(*chunk.get_mut()) {
                // SAFETY: allocated by `allocate` with this layout, once, and nothing can use it
                // any more.
                unsafe { dealloc(base.as_ptr(), LAYOUT) };
            }
        }
    }
}
