//! Reading what a driver has put into a chain of descriptors: page numbers, or whole buffers.
//!
//! The crate that walks a chain ends it after as many descriptors as the ring has. Here the lengths
//! are bounded, too: a descriptor may claim 4 GiB.

use std::ops::Range;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryMmap};
use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::virtio::balloon::PFN_BYTES;

use super::Misuse;

/// The most page numbers that are read of one chain: 256 MiB. The rest is left, as a misuse.
const NUMBERS_MAX: u64 = 1 << 16;
/// The most pages that the buffers of one chain may hold: 64 GiB.
const REPORTED_MAX: u64 = 1 << 24;
/// Bytes that are read at a time.
const CHUNK: usize = 4096;

/// A chain of descriptors in guest memory.
type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// Pages as ranges of addresses, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ranges: Vec<Range<GuestPhys>>,
    count: u64,
    malformed: u64,
    outside: u64,
}

impl Ranges {
    /// Adds page `pfn`.
    pub(super) fn push(&mut self, pfn: u64) {
        let (start, end) = (GuestPhys::from_pfn(pfn), GuestPhys::from_pfn(pfn + 1));
        match self.ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.ranges.push(start..end),
        }
        self.count += 1;
    }

    /// The ranges.
    pub(super) fn as_slice(&self) -> &[Range<GuestPhys>] {
        &self.ranges
    }

    /// The number of pages.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The pages by number.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|range| range.start.pfn()..range.end.pfn())
    }

    /// What is wrong with the chain itself, with how often.
    pub(super) fn misuse(&self) -> [(Misuse, u64); 2] {
        [(Misuse::Malformed, self.malformed), (Misuse::NotRam, self.outside)]
    }
}

/// Reads at most `most` bytes of the readable part of `chain`. A part outside of RAM ends it.
pub(super) fn read_bytes(chain: &Chain<'_>, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for descriptor in chain.clone().readable() {
        let start = bytes.len();
        let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX).min(most - start);
        bytes.resize(start + len, 0);
        if chain.memory().read_slice(&mut bytes[start..], descriptor.addr()).is_err() {
            bytes.truncate(start);
            break;
        }
    }
    bytes
}

/// Reads the page numbers in `chain`.
pub(super) fn read_numbers(chain: &Chain<'_>, ranges: &mut Ranges) {
    for descriptor in chain.clone() {
        // 1. The device only reads page numbers.
        let len = u64::from(descriptor.len());
        if descriptor.is_write_only() || len % PFN_BYTES as u64 != 0 {
            ranges.malformed += 1;
            continue;
        }
        // 2. In pieces, so that a length costs nothing before it has proved to be memory.
        let (mut done, mut chunk) = (0, [0; CHUNK]);
        while done < len {
            if ranges.count >= NUMBERS_MAX {
                ranges.malformed += 1;
                return;
            }
            let part = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            let at = descriptor.addr().0.checked_add(done).map(vm_memory::GuestAddress);
            let read = at.map(|at| chain.memory().read_slice(&mut chunk[..part], at));
            if !matches!(read, Some(Ok(()))) {
                ranges.outside += 1;
                break;
            }
            for number in chunk[..part].as_chunks::<PFN_BYTES>().0 {
                ranges.push(u32::from_le_bytes(*number).into());
            }
            done += part as u64;
        }
    }
}

/// Takes the buffers of `chain` themselves as pages: whole pages that the device may write.
pub(super) fn read_buffers(chain: &Chain<'_>, ranges: &mut Ranges) {
    for descriptor in chain.clone() {
        let (start, len) = (descriptor.addr(), u64::from(descriptor.len()));
        let is_whole = start.0.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        if !descriptor.is_write_only() || !is_whole || ranges.count + len / PAGE_SIZE > REPORTED_MAX
        {
            ranges.malformed += 1;
        } else if !chain.memory().check_range(start, bytes) {
            ranges.outside += 1;
        } else {
            let first = start.0 / PAGE_SIZE;
            (first..first + len / PAGE_SIZE).for_each(|pfn| ranges.push(pfn));
        }
    }
}
