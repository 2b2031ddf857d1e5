//! The naive model: sets of ranges, searched from the lowest, and the pages that have memory behind
//! them.
//!
//! It has no entries, objects, page tables or free lists, and shares no code with the code that it
//! judges.

use std::collections::BTreeMap;

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::{MapId, MapKind};

/// The kind of a range of address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It exists since boot, or belongs to a thread: it is never freed.
    Fixed,
    /// A map of its own.
    Submap,
    /// `kmem_alloc`'s.
    Kernel,
    /// `kmem_malloc`'s.
    Kmem,
    /// `kmem_alloc_nofault`'s.
    Nofault,
    /// `kmem_alloc_wait`'s.
    Pageable,
}

/// The accesses that are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allows {
    /// None.
    Nothing,
    /// Reads.
    Read,
    /// Reads and writes, since a protection.
    ReadWrite,
    /// Everything: it was never protected.
    All,
}

impl Allows {
    pub const fn reads(self) -> bool {
        !matches!(self, Self::Nothing)
    }

    pub const fn writes(self) -> bool {
        matches!(self, Self::ReadWrite | Self::All)
    }
}

/// A range. Its first byte is the key under which it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Bytes, whole pages.
    pub bytes: u64,
    /// Its kind.
    pub what: What,
    /// What it allows.
    pub allows: Allows,
}

impl Range {
    /// A range of this kind that was never protected.
    pub const fn new(bytes: u64, what: What) -> Self {
        Self { bytes, what, allows: Allows::All }
    }

    /// Whether it and `other`, its neighbour, can be one entry.
    pub fn continues(&self, other: &Self) -> bool {
        // The stacks of threads are windows too.
        let kind = |what| if what == What::Fixed { What::Nofault } else { what };
        kind(self.what) == kind(other.what)
            && self.allows == other.allows
            && self.what != What::Submap
    }
}

/// The contents of a page of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Anything.
    Unknown,
    /// Zeros.
    Zero,
    /// A pattern of this seed.
    Pattern(u64),
}

/// A page of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its contents.
    pub content: Content,
    /// The range to which it belongs.
    pub what: What,
    /// What its range allows; of a page that was entered in a window, what its mapping does.
    pub allows: Allows,
}

/// A map.
#[derive(Clone, Debug)]
pub struct NaiveMap {
    pub id: MapId,
    pub min: u64,
    pub max: u64,
    pub kind: MapKind,
    pub ranges: BTreeMap<u64, Range>,
}

/// All maps, and all pages behind their ranges by address.
#[derive(Clone, Debug, Default)]
pub struct Naive {
    pub maps: Vec<NaiveMap>,
    pub memory: BTreeMap<u64, Memory>,
}

/// `size` rounded up to pages, unless that is 0 or too large.
pub fn rounded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(PAGE_SIZE).filter(|&size| size > 0)
}

/// The pages that `[addr, addr + size)` touches; none if the range wraps.
pub fn touched(addr: u64, size: u64) -> Option<(u64, u64)> {
    Some((
        addr / PAGE_SIZE * PAGE_SIZE,
        addr.checked_add(size)?.checked_next_multiple_of(PAGE_SIZE)?,
    ))
}

/// Addresses of the pages of `bytes` bytes from `start` on.
pub fn pages(start: u64, bytes: u64) -> impl Iterator<Item = u64> {
    (0..bytes / PAGE_SIZE).map(move |page| start + page * PAGE_SIZE)
}

impl NaiveMap {
    /// The lowest hole of `bytes` bytes.
    pub fn hole(&self, bytes: u64) -> Option<u64> {
        let mut start = self.min;
        for (&at, range) in &self.ranges {
            if at - start >= bytes {
                return Some(start);
            }
            start = at + range.bytes;
        }
        (self.max - start >= bytes).then_some(start)
    }

    /// Bytes in use.
    pub fn size(&self) -> u64 {
        self.ranges.values().map(|range| range.bytes).sum()
    }

    /// Fewest and most entries that could represent the ranges: neighbours of one kind may or may
    /// not share an entry.
    pub fn entries(&self) -> (u64, u64) {
        let (mut runs, mut last) = (0, None);
        for (&at, range) in &self.ranges {
            let same = |&(end, low): &(u64, &Range)| end == at && low.continues(range);
            runs += u64::from(!last.as_ref().is_some_and(same));
            last = Some((at + range.bytes, range));
        }
        (runs, self.ranges.len() as u64)
    }

    /// The ranges that meet at `at`, below and above it; `None` unless two do.
    pub fn around(&self, at: u64) -> Option<(&Range, &Range)> {
        let high = self.ranges.get(&at)?;
        let (start, low) = self.ranges.range(..at).next_back()?;
        (start + low.bytes == at).then_some((low, high))
    }

    /// The ranges that `[start, end)` overlaps.
    pub fn overlapping(&self, start: u64, end: u64) -> Vec<(u64, Range)> {
        let all = self.ranges.range(..end).filter(|&(&at, range)| at + range.bytes > start);
        all.map(|(&at, &range)| (at, range)).collect()
    }

    /// Takes a hole.
    pub fn put(&mut self, start: u64, bytes: u64, what: What) {
        assert!(self.overlapping(start, start + bytes).is_empty(), "{start:#x} is taken");
        self.ranges.insert(start, Range::new(bytes, what));
    }

    /// Frees the ranges in `[start, end)`, and returns them.
    pub fn free(&mut self, start: u64, end: u64) -> Vec<(u64, Range)> {
        let (start, end) = (start.max(self.min), end.min(self.max));
        if start > end {
            return Vec::new();
        }
        self.cut(start);
        self.cut(end);
        let gone: Vec<(u64, Range)> =
            self.ranges.range(start..end).map(|(&at, &range)| (at, range)).collect();
        for (at, _) in &gone {
            self.ranges.remove(at);
        }
        gone
    }

    /// Makes the ranges in `[start, end)` allow this.
    pub fn protect(&mut self, start: u64, end: u64, allows: Allows) {
        self.cut(start);
        self.cut(end);
        for (_, range) in self.ranges.range_mut(start..end) {
            range.allows = allows;
        }
    }

    /// Cuts the range that contains `at` in two.
    fn cut(&mut self, at: u64) {
        let Some((&start, &range)) = self.ranges.range(..at).next_back() else { return };
        if start + range.bytes > at {
            self.ranges.insert(start, Range { bytes: at - start, ..range });
            self.ranges.insert(at, Range { bytes: start + range.bytes - at, ..range });
        }
    }
}

impl Naive {
    /// Takes a hole of a map.
    pub fn take(&mut self, map: usize, start: u64, bytes: u64, what: What) {
        self.maps[map].put(start, bytes, what);
    }

    /// Puts memory behind a range.
    pub fn back(&mut self, start: u64, bytes: u64, what: What, content: Content) {
        self.memory.extend(
            pages(start, bytes).map(|va| (va, Memory { content, what, allows: Allows::All })),
        );
    }

    /// Makes the ranges in `[start, end)` of a map allow this, and the memory behind them. What is
    /// entered in a window loses permissions, and gains none.
    pub fn protect(&mut self, map: usize, start: u64, end: u64, allows: Allows) {
        self.maps[map].protect(start, end, allows);
        for (_, memory) in self.memory.range_mut(start..end) {
            memory.allows =
                if memory.what == What::Nofault { memory.allows.min(allows) } else { allows };
        }
    }

    /// Frees the ranges in `[start, end)` of a map, with the memory behind them.
    pub fn free(&mut self, map: usize, start: u64, end: u64) {
        for (at, range) in self.maps[map].free(start, end) {
            for va in pages(at, range.bytes) {
                self.memory.remove(&va);
            }
        }
    }

    /// What the range of `va`, in any map, allows.
    pub fn allows(&self, va: u64) -> Allows {
        let found = self.maps.iter().find_map(|m| {
            let (start, range) = m.ranges.range(..=va).next_back()?;
            (va - start < range.bytes && range.what != What::Submap).then_some(range.allows)
        });
        found.unwrap_or(Allows::Nothing)
    }

    /// Pages behind ranges of this kind.
    pub fn pages_of(&self, what: What) -> u64 {
        self.memory.values().filter(|memory| memory.what == what).count() as u64
    }
}
