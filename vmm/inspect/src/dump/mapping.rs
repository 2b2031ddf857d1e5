//! A file mapped for reading.
//!
//! The only place that turns a file's bytes into references. They are references to atomics,
//! because another process may write to the file in the meantime. The file must not be truncated:
//! as with every mapped file, an access past its end kills the process (SIGBUS). This program never
//! truncates a dump: a new dump of the same name is a new file.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};
use vmkern_abi::addr::PAGE_SIZE;

use crate::ram::PageWords;

/// The mapping.
#[derive(Debug)]
pub(super) struct Mapping(MmapRaw);

impl Mapping {
    /// Maps the first `len` bytes of `file`, which is at least that long. `len` is not 0.
    pub fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        MmapOptions::new().len(len).map_raw_read_only(file).map(Self)
    }

    /// The page at `offset`, a multiple of the page size; `None` where the file has no whole page.
    pub fn page(&self, offset: u64) -> Option<&PageWords> {
        let end = offset.checked_add(PAGE_SIZE)?;
        let inside = offset.is_multiple_of(PAGE_SIZE) && end <= self.0.len() as u64;
        let start = usize::try_from(offset).ok().filter(|_| inside)?;
        // SAFETY: the page lies inside the mapping, which lives as long as `self`, and is aligned
        // like the mapping. It is only read, by relaxed loads of 8-byte words, which 64-bit
        // processors can do on read-only memory, too.
        Some(unsafe { &*self.0.as_ptr().add(start).cast::<PageWords>() })
    }
}
