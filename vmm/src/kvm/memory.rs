//! Guest RAM: one memfd, mapped once, visible to the guest as one or two ranges.
//!
//! This is the only module that turns guest memory into Rust references, and then only into
//! references to types made of atomic words: the guest may write at any moment. Everything else
//! copies bytes out, bounds-checked.
//!
//! Pages are allocated when they are first touched, so a guest of 64 GiB costs only address space.
//! The mapping is aligned to 2 MiB, like guest physical addresses, so huge pages of the host can
//! back huge pages of the guest.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt as _;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, VolatileSlice,
};
use vmkern_abi::addr::{GuestPhys, NBPDR, PAGE_SIZE};
use vmkern_abi::field::Atomics;
use vmkern_abi::seize::Structures;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};
use zerocopy::FromBytes;

use super::KvmError;
use crate::inspect::{NotRam, PageWords};
use crate::system::limits;
use vmkern_inspect::ram::{HOLE_START, RamRange, ram_ranges};

/// A huge page of the host and of the guest, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// Address space of this process, reserved and released as one piece.
#[derive(Debug)]
struct Reservation {
    base: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the reservation is a pair of numbers; the memory inside is accessed through vm-memory,
// which is thread-safe.
unsafe impl Send for Reservation {}
// SAFETY: as above; the type has no methods that write.
unsafe impl Sync for Reservation {}

impl Reservation {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice affects no existing one.
        let base = unsafe {
            libc::mmap(
                null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => Ok(Self { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Maps `len` bytes of `file` from `offset` on, at `at` bytes into the reservation.
    fn map(&self, at: usize, file: &File, offset: u64, len: usize) -> io::Result<*mut u8> {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "the mapping lies inside the reservation"
        );
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the range lies inside the reservation (asserted), which this value owns, so
        // MAP_FIXED replaces only unused pages.
        let address = unsafe {
            let wanted = self.base.as_ptr().byte_add(at);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
            libc::mmap(
                wanted,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was mapped on the lines above. The call is only a hint; the host's
        // counters show its effect.
        let _ = unsafe { libc::madvise(address, len, libc::MADV_HUGEPAGE) };
        Ok(address.cast())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: this value owns the range, and every user of the memory was dropped before.
        unsafe { libc::munmap(self.base.as_ptr(), self.len) };
    }
}

/// Where a range of RAM is mapped.
#[derive(Clone, Copy, Debug)]
struct FirstPage(NonNull<PageWords>);

// SAFETY: the memory at the pointer consists of atomics and lives as long as the `GuestRam` that
// holds it.
unsafe impl Send for FirstPage {}
// SAFETY: as above.
unsafe impl Sync for FirstPage {}

/// Guest RAM.
#[derive(Debug)]
pub(crate) struct GuestRam {
    // Declared before the reservation, so it is dropped first.
    memory: GuestMemoryMmap,
    size: u64,
    segments: Vec<Range<GuestPhys>>,
    /// The first page of each segment.
    pages: Vec<FirstPage>,
    _reservation: Reservation,
}

impl GuestRam {
    /// `size` bytes of zeroed RAM; a multiple of the page size, not 0.
    pub(crate) fn new(size: u64) -> Result<Self, KvmError> {
        // 1. A file, and address space for its mappings, aligned to a huge page.
        let fail = |operation: &str, error: io::Error| {
            KvmError::io(format!("{operation} for {size:#x} bytes of guest RAM"), &error)
        };
        let file = memfd(size).map_err(|error| fail("making a file in memory", error))?;
        let file = Arc::new(file);
        let bytes = usize::try_from(size + HUGE_PAGE as u64)
            .map_err(|error| fail("mmap", io::Error::other(error)))?;
        let reservation = Reservation::new(bytes).map_err(|error| fail("mmap", error))?;
        let address = reservation.base.as_ptr().addr();
        let mut at = address.next_multiple_of(HUGE_PAGE) - address;
        // 2. A mapping for each range of RAM, one after another.
        let (mut offset, mut regions) = (0, Vec::new());
        let (mut segments, mut pages) = (Vec::new(), Vec::new());
        for range in ram_ranges(size) {
            let len = usize::try_from(range.size)
                .map_err(|error| fail("mmap", io::Error::other(error)))?;
            let pointer =
                reservation.map(at, &file, offset, len).map_err(|error| fail("mmap", error))?;
            // SAFETY: `pointer` starts a mapping of `len` bytes, which lives as long as the
            // reservation, which is dropped after the region.
            let builder = unsafe { MmapRegionBuilder::new(len).with_raw_mmap_pointer(pointer) };
            let region = builder
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
                .build()
                .map_err(|error| fail("mmap", io::Error::other(error)))?;
            let region = GuestRegionMmap::new(region, GuestAddress(range.start.get()));
            regions.push(region.ok_or_else(|| fail("mmap", io::ErrorKind::InvalidInput.into()))?);
            segments.push(range.start..range.start.add(range.size));
            pages.extend(NonNull::new(pointer.cast::<PageWords>()).map(FirstPage));
            (at, offset) = (at + len, offset + range.size);
        }
        // 3. All of them together as the guest's memory.
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| fail("mmap", io::Error::other(error)))?;
        Ok(Self { memory, size, segments, pages, _reservation: reservation })
    }

    /// Bytes of RAM.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The ranges of RAM.
    pub(crate) fn segments(&self) -> &[Range<GuestPhys>] {
        &self.segments
    }

    /// The page that holds `at`, shared with the guest.
    pub(crate) fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        let mut found =
            self.segments.iter().zip(&self.pages).filter(|(segment, _)| segment.contains(&at));
        let outside = NotRam { start: at, len: 1 };
        let (segment, FirstPage(first)) = found.next().ok_or(outside)?;
        let index = usize::try_from(at.since(segment.start) / PAGE_SIZE).map_err(|_| outside)?;
        // SAFETY: `first` starts a page-aligned mapping as long as the segment, which consists of
        // whole pages and lives as long as `self`; the words are atomics, so the guest may write at
        // the same time.
        Ok(unsafe { first.add(index).as_ref() })
    }

    /// The parts of RAM that were ever touched: those for which the file has pages. All of RAM, if
    /// the host's kernel does not report it.
    pub(crate) fn populated(&self) -> Vec<Range<GuestPhys>> {
        let mut found = Vec::new();
        for (segment, region) in self.segments.iter().zip(self.memory.iter()) {
            let Some(file) = region.file_offset() else { return self.segments.clone() };
            let len = segment.end.since(segment.start);
            match data(file.file(), file.start(), file.start() + len) {
                Ok(parts) => {
                    found.extend(parts.into_iter().map(|part| {
                        let at = |offset: u64| segment.start.add(offset - file.start());
                        at(part.start)..at(part.end)
                    }));
                }
                Err(_) => found.push(segment.clone()),
            }
        }
        found
    }

    /// Makes the pages of `range`, which consists of whole pages, present in this process, as far
    /// as they are RAM and the host's kernel supports it.
    pub(crate) fn populate(&self, range: &Range<GuestPhys>) {
        let len = usize::try_from(range.end.since(range.start)).unwrap_or(0);
        if let Ok(slice) = self.memory.get_slice(GuestAddress(range.start.get()), len) {
            // SAFETY: the slice is a mapped part of guest RAM, and its contents do not change. A
            // failure only shows later, as faults. Populating for reading is enough: a shared page
            // may then be written, too, and a read fault also maps neighbouring pages that exist.
            let _ =
                unsafe { libc::madvise(first_byte(&slice).cast(), len, libc::MADV_POPULATE_READ) };
        }
    }

    /// Copies `bytes` in, from `start` on, to memory that was never touched. The host does not
    /// clear a page that is overwritten whole.
    pub(crate) fn write_fresh(&self, start: GuestPhys, bytes: &[u8]) -> Result<(), NotRam> {
        let outside = NotRam { start, len: bytes.len() as u64 };
        let found = self.memory.to_region_addr(GuestAddress(start.get()));
        let (region, at) =
            found.filter(|(region, at)| outside.len <= region.len() - at.0).ok_or(outside)?;
        let written =
            region.file_offset().map(|file| file.file().write_all_at(bytes, file.start() + at.0));
        match written {
            Some(Ok(())) => Ok(()),
            // If the file refuses, write through the mapping.
            _ => self.write(start, bytes),
        }
    }

    /// The memory in the form that rust-vmm's loaders need.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Each range of RAM with its address in this process, for the hypervisor's memory slots.
    pub(crate) fn host_ranges(&self) -> impl Iterator<Item = (RamRange, u64)> {
        ram_ranges(self.size).map(|range| {
            let host = self.memory.get_host_address(GuestAddress(range.start.get()));
            (range, host.expect("every range of RAM is mapped").addr() as u64)
        })
    }

    /// Copies `buffer.len()` bytes out, from `start` on.
    pub(crate) fn read(&self, start: GuestPhys, buffer: &mut [u8]) -> Result<(), NotRam> {
        let len = buffer.len() as u64;
        self.memory.read_slice(buffer, GuestAddress(start.get())).map_err(|_| NotRam { start, len })
    }

    /// Copies `bytes` in, from `start` on.
    pub(crate) fn write(&self, start: GuestPhys, bytes: &[u8]) -> Result<(), NotRam> {
        let len = bytes.len() as u64;
        self.memory.write_slice(bytes, GuestAddress(start.get())).map_err(|_| NotRam { start, len })
    }

    /// Bytes of RAM that were ever touched, by the guest or by this process, in whole pages. The
    /// rest takes no memory of the host.
    pub(crate) fn resident(&self) -> u64 {
        let region = self.memory.iter().next();
        let file = region.and_then(|region| region.file_offset()).expect("guest RAM is a file");
        // On failure, report that no memory is known to be resident.
        file.file().metadata().map_or(0, |file| std::os::unix::fs::MetadataExt::blocks(&file) * 512)
    }

    /// Gives the memory behind `ranges`, which consist of whole pages and do not overlap, back to
    /// the host: it reads as zeros afterwards, and takes memory again when it is touched. Ranges
    /// that touch are discarded together, and parts that take no memory are passed over. What is
    /// not RAM is ignored.
    ///
    /// # Errors
    /// When the host refuses it; some of the ranges may be discarded then.
    pub(crate) fn discard(&self, ranges: &[Range<GuestPhys>]) -> io::Result<()> {
        let mut ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, before| {
            let touches = before.end >= next.start;
            if touches {
                before.end = before.end.max(next.end);
            }
            touches
        });
        for (segment, region) in self.segments.iter().zip(self.memory.iter()) {
            let Some(file) = region.file_offset() else { continue };
            for range in &ranges {
                let (start, end) = (range.start.max(segment.start), range.end.min(segment.end));
                if start < end {
                    let offset = |at: GuestPhys| file.start() + at.since(segment.start);
                    punch(file.file(), offset(start), offset(end))?;
                }
            }
        }
        Ok(())
    }

    /// Where a `T` lies that begins at `at`: aligned, and all of it in mapped RAM.
    fn pointer<T>(&self, at: GuestPhys) -> Option<NonNull<T>> {
        let slice: VolatileSlice<'_, _> =
            self.memory.get_slice(GuestAddress(at.get()), size_of::<T>()).ok()?;
        NonNull::new(first_byte(&slice).cast::<T>()).filter(|pointer| pointer.is_aligned())
    }

    /// Reads an aligned 8-byte word.
    pub(crate) fn load(&self, at: GuestPhys) -> Result<u64, NotRam> {
        self.memory
            .load(GuestAddress(at.get()), Ordering::Relaxed)
            .map_err(|_| NotRam { start: at, len: 8 })
    }

    /// The structure of type `T` at `at`, shared with the guest for as long as the value lives. Its
    /// pages become resident as they are touched.
    ///
    /// `T` consists only of atomic words, as its bound guarantees.
    pub(crate) fn shared<T: FromBytes + Atomics>(
        self: &Arc<Self>,
        at: GuestPhys,
    ) -> Result<Shared<T>, NotRam> {
        let outside = NotRam { start: at, len: size_of::<T>() as u64 };
        let pointer = self.pointer(at).ok_or(outside)?;
        Ok(Shared { pointer, _ram: Arc::clone(self) })
    }
}

impl Structures for GuestRam {
    fn structure<T: FromBytes + Atomics>(&self, at: GuestPhys) -> Option<&T> {
        let pointer = self.pointer(at)?;
        // SAFETY: the pointer is aligned and points to `size_of::<T>()` bytes of guest RAM, which
        // stay mapped as long as `self` lives; any bytes are a `T` (`FromBytes`), and all of its
        // words are atomics (`Atomics`), so the guest may write at the same time.
        Some(unsafe { pointer.as_ref() })
    }
}

fn first_byte<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> *mut u8 {
    slice.ptr_guard_mut().as_ptr()
}

fn memfd(size: u64) -> io::Result<File> {
    // 1. A file in memory, which child processes do not inherit.
    // SAFETY: the name is a C string, and the flags are memfd_create's own.
    let fd = unsafe {
        libc::memfd_create(
            c"vmkern-guest-ram".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened on the line above, and nothing else uses it.
    let file = unsafe { File::from_raw_fd(fd) };
    // Past the limit the system would kill the process by a signal instead of returning an error.
    if limits::current(libc::RLIMIT_FSIZE).is_some_and(|most| most < size) {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    // 2. Its size.
    file.set_len(size)?;
    // 3. Seal the file: if it cannot shrink, an access to the mapping never causes SIGBUS.
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory.
    if unsafe {
        libc::fcntl(
            file.as_raw_fd(),
            libc::F_ADD_SEALS,
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// The parts of `file` between `start` and `end` that are not holes, in whole pages.
fn data(file: &File, start: u64, end: u64) -> io::Result<Vec<Range<u64>>> {
    let (mut parts, mut at) = (Vec::new(), start);
    while at < end
        && let Some(first) = data_from(file, at)?
        && first < end
    {
        let hole = seek(file, SeekFrom::Hole(first))?.next_multiple_of(PAGE_SIZE).min(end);
        if hole <= first {
            return Err(io::ErrorKind::InvalidData.into());
        }
        parts.push(first..hole);
        at = hole;
    }
    Ok(parts)
}

/// Makes the bytes of `file` from `start` to `end` a hole. If they are one already, nothing is
/// changed, which takes the same time for any length.
fn punch(file: &File, start: u64, end: u64) -> io::Result<()> {
    // Where the host's kernel cannot say what is a hole, all of it may not be one.
    let first = match data_from(file, start) {
        Ok(None) => return Ok(()),
        Ok(Some(first)) => first,
        Err(_) => start,
    };
    if first >= end {
        return Ok(());
    }
    fallocate(file, FallocateMode::PunchHole, true, first, end - first)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Where the first page of `file` from `start` on lies that is not a hole, if there is one. This
/// file is never read or written by its position.
fn data_from(file: &File, start: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(start)) {
        Ok(first) => Ok(Some(first - first % PAGE_SIZE)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A structure in guest RAM. Keeps the RAM mapped.
#[derive(Debug)]
pub(crate) struct Shared<T: Atomics> {
    pointer: NonNull<T>,
    _ram: Arc<GuestRam>,
}

// SAFETY: a `Shared` only hands out shared references, to types that consist of atomics.
unsafe impl<T: Atomics + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Atomics + Sync> Sync for Shared<T> {}

impl<T: Atomics> Shared<T> {
    /// The structure, with a lifetime that the compiler cannot check.
    ///
    /// # Safety
    /// The reference, and everything that borrows from it, must be dropped before this value.
    pub(crate) unsafe fn unbound(&self) -> &'static T {
        // SAFETY: as in `deref`, and the caller keeps the reference within this value's lifetime.
        unsafe { self.pointer.as_ref() }
    }
}

impl<T: Atomics> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the pointer is aligned and points to `size_of::<T>()` mapped bytes
        // (`GuestRam::shared`), which `_ram` keeps mapped; any bytes are a `T` (`FromBytes`), and
        // all of its words are atomics (`Atomics`), so the guest may write at the same time.
        unsafe { self.pointer.as_ref() }
    }
}

const _: () = assert!(HUGE_PAGE as u64 == NBPDR && HOLE_START.is_multiple_of(NBPDR));

#[cfg(test)]
mod tests {
    use vmkern_abi::field::Field;

    use super::*;
    use vmkern_inspect::ram::HOLE_END;

    #[test]
    fn ram_leaves_the_device_hole_free() {
        let ranges = |size| ram_ranges(size).map(|r| (r.start.get(), r.size)).collect::<Vec<_>>();
        assert_eq!(ranges(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ranges(HOLE_START), [(0, HOLE_START)]);
        assert_eq!(ranges(HOLE_START + PAGE_SIZE), [(0, HOLE_START), (HOLE_END, PAGE_SIZE)]);
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let ram = Arc::new(GuestRam::new(HOLE_START + PAGE_SIZE).expect("address space is there"));
        let top = GuestPhys::new(HOLE_END + PAGE_SIZE);
        assert!(ram.write(GuestPhys::new(HOLE_END), &[1; 4096]).is_ok());
        assert!(ram.read(GuestPhys::new(HOLE_START - 4), &mut [0; 8]).is_err());
        assert!(ram.read(GuestPhys::new(top.get() - 7), &mut [0; 8]).is_err());
        assert!(ram.read(GuestPhys::new(u64::MAX), &mut [0; 8]).is_err());
        assert_eq!(ram.load(GuestPhys::new(HOLE_END)), Ok(0x0101_0101_0101_0101));
        assert!(ram.load(top).is_err());
        assert!(ram.load(GuestPhys::new(1)).is_err());
        let word =
            |at: u64| ram.page(GuestPhys::new(at)).map(|page| page[511].load(Ordering::Relaxed));
        assert_eq!(word(HOLE_END + 8), Ok(0x0101_0101_0101_0101));
        assert_eq!(word(HOLE_START - 1), Ok(0));
        assert!(word(HOLE_START).is_err() && word(top.get()).is_err() && word(u64::MAX).is_err());
        assert!(ram.shared::<Field<u64>>(GuestPhys::new(3)).is_err());
        assert!(ram.shared::<[Field<u64>; 2]>(GuestPhys::new(top.get() - 8)).is_err());
    }

    #[test]
    fn what_was_never_touched_is_not_populated() {
        let ram = GuestRam::new(HOLE_START + (8 << 20)).expect("address space is there");
        assert_eq!(ram.populated(), []);
        for at in [2 << 30, HOLE_END + 5000] {
            ram.write(GuestPhys::new(at), b"x").expect("it is RAM");
        }
        let holds = |at: u64| {
            ram.populated().iter().filter(|part| part.contains(&GuestPhys::new(at))).count()
        };
        assert_eq!((holds(2 << 30), holds(HOLE_END + 5000), holds(1 << 30)), (1, 1, 0));
        assert!(
            ram.populated()
                .iter()
                .all(|part| part.start.is_page_aligned() && part.end.is_page_aligned())
        );
    }

    #[test]
    fn what_is_discarded_is_zero_and_the_host_has_it_back() {
        let ram = GuestRam::new(HOLE_START + (8 << 20)).expect("address space is there");
        let page = |number: u64| GuestPhys::from_pfn(number);
        let write = |number: u64| ram.write(page(number), &[7; 4096]).expect("it is RAM");
        let high = HOLE_END / PAGE_SIZE;
        [1, 2, 3, 5, 100, high].into_iter().for_each(write);
        let before = ram.resident();
        // Ranges may be in any order, touch, and reach over what is not RAM.
        let ranges = [page(100)..page(high + 1), page(2)..page(3), page(3)..page(5)];
        ram.discard(&ranges).expect("a memfd has holes");
        assert_eq!(before - ram.resident(), 4 * PAGE_SIZE);
        let mut word = [0; 8];
        for (number, byte) in [(1, 7), (2, 0), (3, 0), (5, 7), (100, 0), (high, 0)] {
            ram.read(page(number), &mut word).expect("it is RAM");
            assert_eq!(word, [byte; 8], "page {number:#x}");
        }
        assert!(ram.populated().iter().any(|part| part.contains(&page(2))), "reading fills a hole");
    }

    #[test]
    fn memory_of_64_gib_is_free_until_it_is_touched() {
        let before = resident_pages();
        let ram = GuestRam::new(64 << 30).expect("address space is there");
        ram.write(GuestPhys::new(60 << 30), b"x").expect("it is RAM");
        assert!(resident_pages() - before < 4096, "a guest's untouched memory became resident");
    }

    fn resident_pages() -> i64 {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
        statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .expect("statm has the resident pages")
    }
}
