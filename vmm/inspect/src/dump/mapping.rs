//! A file mapped for reading.
//!
//! The only place that turns a file's bytes into references, and then into atomics: somebody may
//! write into the file meanwhile. Nobody may cut it: what is missing then is a fault that kills the
//! process (SIGBUS), as with every mapped file. Nothing here does that to a dump: a new one of
//! the same name is a new file.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};
use vmkern_abi::addr::PAGE_SIZE;

use crate::ram::PageWords;

/// The mapping.
#[derive(Debug)]
pub(super) struct Mapping(MmapRaw);

impl Mapping {
    /// Maps the first `len` bytes of `file`, which has as many; not 0.
    pub fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        MmapOptions::new().len(len).map_raw_read_only(file).map(Self)
    }

    /// The page at `offset`, a multiple of the page size; nothing where the file has no whole page.
    pub fn page(&self, offset: u64) -> Option<&PageWords> {
        let end = offset.checked_add(PAGE_SIZE)?;
        let inside = offset.is_multiple_of(PAGE_SIZE) && end <= self.0.len() as u64;
        let start = usize::try_from(offset).ok().filter(|_| inside)?;
        // SAFETY: the page lies inside of the mapping, which lives as long as `self`, and is
        // aligned as the mapping is; relaxed loads of words of 8 bytes are all that is done with
        // it, which 64-bit processors do on read-only memory too.
        Some(unsafe { &*self.0.as_ptr().add(start).cast::<PageWords>() })
    }
}
