//! The pages that the driver has given: a bit for each page number below the end of RAM.

/// A set of page numbers.
#[derive(Debug)]
pub(super) struct Given {
    /// Allocated by the first insertion: most guests are never squeezed.
    words: Vec<u64>,
    /// Page numbers from here on are never in the set.
    end: u64,
    count: u64,
}

/// The word and the bit of a page number.
fn place(pfn: u64) -> (usize, u64) {
    (usize::try_from(pfn / 64).unwrap_or(usize::MAX), 1 << (pfn % 64))
}

impl Given {
    /// An empty set. `pages` pages of RAM may have numbers beyond the gap below 4 GiB.
    pub(super) fn new(pages: u64) -> Self {
        let gap = (1 << 30) / 4096;
        Self { words: Vec::new(), end: pages + gap, count: 0 }
    }

    /// The number of pages.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Whether the page is in the set.
    pub(super) fn contains(&self, pfn: u64) -> bool {
        let (word, bit) = place(pfn);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds a page of RAM.
    pub(super) fn insert(&mut self, pfn: u64) {
        if pfn >= self.end || self.contains(pfn) {
            return;
        }
        if self.words.is_empty() {
            self.words = vec![0; place(self.end).0 + 1];
        }
        let (word, bit) = place(pfn);
        self.words[word] |= bit;
        self.count += 1;
    }

    /// Removes a page. Returns whether it was in the set.
    pub(super) fn remove(&mut self, pfn: u64) -> bool {
        let found = self.contains(pfn);
        if found {
            let (word, bit) = place(pfn);
            self.words[word] &= !bit;
            self.count -= 1;
        }
        found
    }

    /// Removes all pages.
    pub(super) fn clear(&mut self) {
        self.words = Vec::new();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_the_set_once_and_leaves_once() {
        let mut given = Given::new(16);
        for pfn in [0, 63, 64, 15] {
            given.insert(pfn);
            given.insert(pfn);
        }
        assert_eq!(given.count(), 4);
        assert!(given.remove(63) && !given.remove(63) && !given.remove(1));
        assert_eq!(given.count(), 3);
        given.clear();
        assert!(!given.contains(64) && given.count() == 0);
    }

    #[test]
    fn numbers_past_the_end_of_memory_take_no_room() {
        let mut given = Given::new(16);
        given.insert(u64::MAX);
        given.insert(1 << 40);
        assert!(given.words.is_empty() && !given.contains(u64::MAX) && !given.remove(1 << 40));
    }
}
