//! Prepares the guest's memory for its boot: loads the image, and makes the pages present that the
//! boot will touch.
//!
//! With shadow page tables, the first touch of a page is a fault that costs 12 to 26 us, nearly all
//! of it for the exit from the guest and the return. If the seven neighbouring pages are present in
//! the host, KVM fills their entries in the same fault at no cost, and the kernel's layout keeps
//! the pages that its boot touches together. So the host makes those pages present, in bulk, at 1
//! to 2 us each. It first writes them, the image's bytes and the zeros in between, through the file
//! that backs the memory: the host does not clear a page that is overwritten, and the lock of this
//! process's address space, which the creation of the vCPU also needs, is held only while pages are
//! mapped.
//!
//! **Protocol.** The work is divided into pieces, each of which one thread takes. Two threads do
//! so, each while it has nothing better to do: the first vCPU's thread until the VM exists, and the
//! launching thread after that. Both at once are hardly faster than one, because the host adds
//! pages to a file under a lock. The vCPU runs when both threads have finished their pieces and
//! found no other: then all pieces are done.
//!
//! Presence only affects speed. A page that was not foreseen costs a fault; one that was foreseen
//! in vain costs a page of the host's memory; with a host kernel that lacks the call (before 5.14),
//! every page costs a fault.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::layout::PREFETCH;

use super::boot::{LOADER_END, touched_by_boot};
use super::memory::GuestRam;
use crate::kernel::KernelImage;
use crate::kernel::elf::{Plan, Segment};

/// The most bytes of a piece. Between two pieces a thread checks whether it has something better to
/// do.
const PIECE: usize = 64 << 10;
const _: () = assert!((PIECE as u64).is_multiple_of(PREFETCH * PAGE_SIZE));

/// The content of a piece outside the image.
static ZEROS: [u8; PIECE] = [0; PIECE];

/// The work.
#[derive(Debug)]
pub(crate) struct Load {
    ram: Arc<GuestRam>,
    image: KernelImage,
    segments: Vec<Segment>,
    pieces: Vec<Range<GuestPhys>>,
    next: AtomicUsize,
    is_held: AtomicBool,
}

impl Load {
    /// Work that has not begun. `plan` is the plan of `image` for memory of the size of `ram`,
    /// which is all zeros.
    pub(crate) fn new(ram: Arc<GuestRam>, image: KernelImage, plan: &Plan) -> Self {
        let pieces = pieces(&touched_by_boot(plan, ram.size()));
        Self {
            ram,
            image,
            segments: plan.segments.clone(),
            pieces,
            next: AtomicUsize::new(0),
            is_held: AtomicBool::new(false),
        }
    }

    /// Does one piece. Returns false when no piece is left.
    pub(crate) fn work(&self) -> bool {
        let piece = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed));
        piece.inspect(|piece| self.fill(piece)).is_some()
    }

    /// Tells a thread that works here only to pass the time to stop. When KVM receives the guest's
    /// memory, it waits for a grace period of its SRCU, which a worker on the host's first CPU
    /// ends. A thread that works in the host's kernel without a pause delays that worker by up to
    /// 200 us.
    pub(crate) fn hold(&self) {
        self.is_held.store(true, Ordering::Relaxed);
    }

    /// Does one piece to pass the time. Returns false when no piece is left, and after
    /// [`Load::hold`].
    pub(crate) fn pass_time(&self) -> bool {
        !self.is_held.load(Ordering::Relaxed) && self.work()
    }

    /// Does all pieces that no thread has begun.
    pub(crate) fn finish(&self) {
        while self.work() {}
    }

    /// Writes `piece`, which is the image's bytes and zeros outside the image, and makes its pages
    /// present.
    fn fill(&self, piece: &Range<GuestPhys>) {
        // The loader's own area is written at the same time, by others.
        if piece.start >= LOADER_END {
            self.write(piece);
        }
        self.ram.populate(piece);
    }

    /// Writes `piece`.
    fn write(&self, piece: &Range<GuestPhys>) {
        let zeros =
            |from: GuestPhys, to: GuestPhys| &ZEROS[..usize::try_from(to.since(from)).unwrap_or(0)];
        let mut at = piece.start;
        // The segments are sorted, and there may be many.
        let first = self.segments.partition_point(|segment| segment.end <= piece.start);
        for segment in self.segments[first..].iter().take_while(|segment| segment.start < piece.end)
        {
            if let Some((start, file)) = part(segment, piece) {
                let bytes = &self.image.bytes()[file];
                self.put(at, zeros(at, start));
                self.put(start, bytes);
                at = start.add(bytes.len() as u64);
            }
        }
        self.put(at, zeros(at, piece.end));
    }

    fn put(&self, at: GuestPhys, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.ram.write_fresh(at, bytes).expect("the plan keeps to memory");
        }
    }
}

/// The part of `segment`'s bytes that lies in `piece`, and where.
fn part(segment: &Segment, piece: &Range<GuestPhys>) -> Option<(GuestPhys, Range<usize>)> {
    let file = &segment.file;
    let start = segment.start.max(piece.start);
    let end = segment.start.add(file.len() as u64).min(piece.end);
    let len = usize::try_from(end.get().checked_sub(start.get())?).ok().filter(|&len| len > 0)?;
    let first = file.start + usize::try_from(start.since(segment.start)).ok()?;
    Some((start, first..first + len))
}

/// The whole pages of `ranges`, each once, divided into pieces. KVM fills no entry of a group if a
/// page below the touched one is missing; pages above it do not matter.
fn pieces(ranges: &[Range<GuestPhys>]) -> Vec<Range<GuestPhys>> {
    let group = |at: GuestPhys| at.get() & !(PREFETCH * PAGE_SIZE - 1);
    let past = |at: GuestPhys| at.get().next_multiple_of(PAGE_SIZE);
    let mut whole: Vec<_> =
        ranges.iter().map(|range| (group(range.start), past(range.end))).collect();
    whole.sort_unstable();
    let mut pieces = Vec::new();
    let mut done = 0;
    for (start, end) in whole {
        let mut at = start.max(done);
        while at < end {
            let to = end.min(at + PIECE as u64);
            pieces.push(GuestPhys::new(at)..GuestPhys::new(to));
            at = to;
        }
        done = done.max(end);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use vmkern_abi::control::{Context, MallocFlags, MapId, Op};

    use super::*;
    use crate::guest::Guest;

    #[test]
    fn pieces_are_disjoint_and_begin_where_a_group_does() {
        let range = |start: u64, end: u64| GuestPhys::new(start)..GuestPhys::new(end);
        let found =
            pieces(&[range(0x4_1000, 0x4_1001), range(0x8000, 0x9001), range(0x9800, 0x2_5000)]);
        let pages =
            [(0x8000, 0xa000), (0xa000, 0x1_a000), (0x1_a000, 0x2_5000), (0x4_0000, 0x4_2000)];
        assert_eq!(found, pages.map(|(start, end)| range(start, end)));
    }

    #[test]
    fn two_threads_put_the_whole_image_in_place() {
        let kernel = KernelImage::embedded();
        let plan = kernel.plan(8 << 20).expect("it can be loaded");
        let ram = Arc::new(GuestRam::new(8 << 20).expect("address space is there"));
        let load = Load::new(Arc::clone(&ram), kernel.clone(), &plan);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| load.finish());
            }
        });
        assert!(!load.work());
        for segment in &plan.segments {
            let mut found =
                vec![0xa5; usize::try_from(segment.end.since(segment.start)).expect("it is small")];
            ram.read(segment.start, &mut found).expect("it is memory");
            let (bytes, zeros) = found.split_at(segment.file.len());
            assert!(
                bytes == &kernel.bytes()[segment.file.clone()],
                "the segment at {}",
                segment.start
            );
            assert!(
                zeros.iter().all(|&byte| byte == 0),
                "the end of the segment at {}",
                segment.start
            );
        }
    }

    #[test]
    fn memory_may_end_within_what_a_boot_would_touch_of_more() {
        let kernel = KernelImage::embedded();
        let ends = [8 << 20, 16 << 20, 3 << 30].into_iter().flat_map(|end: u64| {
            [0, 1, 2, 3, 15, 16, 17, 19, 20, 21, 63, 64, 65].map(|pages| end + pages * PAGE_SIZE)
        });
        for memory in ends {
            let plan = kernel.plan(memory).expect("it can be loaded");
            let ram = Arc::new(GuestRam::new(memory).expect("address space is there"));
            Load::new(ram, kernel.clone(), &plan).finish();
        }
    }

    /// The built-in kernel, with zeros after its last segment up to `end`.
    fn ending_at(end: GuestPhys) -> (KernelImage, Plan) {
        const LAST_MEMSZ: usize = 64 + 3 * 56 + 40;
        let kernel = KernelImage::embedded();
        let plan = kernel.plan(end.get()).expect("it can be loaded");
        let last = plan.segments.last().expect("it has segments");
        let mut bytes = kernel.bytes().to_vec();
        bytes[LAST_MEMSZ..LAST_MEMSZ + 8].copy_from_slice(&end.since(last.start).to_le_bytes());
        let kernel = KernelImage::from_bytes(bytes);
        let plan = kernel.plan(end.get()).expect("it can be loaded");
        assert_eq!(
            plan.segments.last().map(|last| last.end),
            Some(end),
            "the last program header is its segment's"
        );
        (kernel, plan)
    }

    #[test]
    fn an_image_may_end_where_memory_does_and_zeros_without_end_are_not_foreseen() {
        for memory in [8 << 20, 64 << 20, 3 << 30] {
            for short in [0, 1, 2, 20] {
                let (kernel, plan) = ending_at(GuestPhys::new(memory - short * PAGE_SIZE));
                let ram = Arc::new(GuestRam::new(memory).expect("address space is there"));
                Load::new(Arc::clone(&ram), kernel, &plan).finish();
                let resident = ram.resident();
                assert!(
                    resident < 3 << 20,
                    "{resident} bytes of {memory} are there, {short} pages before the end"
                );
            }
        }
    }

    /// Whether the page of `ram` at `at` holds anything but zeros.
    fn is_written(ram: &GuestRam, at: GuestPhys) -> bool {
        let mut bytes = vec![0; usize::try_from(PAGE_SIZE).expect("it is small")];
        ram.read(at, &mut bytes).expect("it is memory");
        bytes.iter().any(|&byte| byte != 0)
    }

    #[test]
    fn a_boot_and_a_request_write_to_what_was_foreseen_and_the_page_table_of_the_first_stacks() {
        for memory in [8 << 20, 64 << 20] {
            let guest = Guest::builder().memory(memory).launch();
            let mut guest = guest.expect("a guest can be launched");
            let (map, flags) = (MapId::KMEM, MallocFlags::NOWAIT);
            let malloc = Op::KmemMalloc { map, size: PAGE_SIZE, flags };
            guest.call_in(Context::Thread(0), malloc).expect("the guest lives");
            let roots = guest.look(|view| view.copy("kernel roots", view.roots()));
            let roots = roots.expect("they can be read");
            let pageproc = guest.look(|view| view.copy("thread", roots.pageproc.get()));
            let stack = pageproc.expect("it can be read").kstack.get();
            let walk = guest.vtop(stack).expect("the tables can be read");
            let _pause = guest.pause().expect("it can be held");
            let plan = KernelImage::embedded().plan(memory).expect("it can be loaded");
            let image_end = plan.segments.iter().map(|segment| segment.end.pfn()).max();
            let managed = image_end.expect("there are some")..memory / PAGE_SIZE;
            let mut foreseen = touched_by_boot(&plan, memory);
            foreseen.push(walk.last().table..walk.last().table.add(PAGE_SIZE));
            let is_foreseen = |at: &GuestPhys| foreseen.iter().any(|range| range.contains(at));
            let mut other = managed.map(GuestPhys::from_pfn).filter(|at| !is_foreseen(at));
            let found = other.find(|&at| is_written(&guest.hypervisor.ram, at));
            assert_eq!(found, None, "with {memory} bytes");
        }
    }

    #[test]
    fn a_piece_gets_its_part_of_a_segment_and_no_more() {
        let at = GuestPhys::new;
        let segment = Segment { start: at(0x1_0800), end: at(0x3_0000), file: 0x100..0x1_0100 };
        assert_eq!(
            part(&segment, &(at(0x1_0000)..at(0x2_0000))),
            Some((at(0x1_0800), 0x100..0xf900))
        );
        assert_eq!(
            part(&segment, &(at(0x2_0000)..at(0x3_0000))),
            Some((at(0x2_0000), 0xf900..0x1_0100))
        );
        for (start, end) in [(0, 0x1_0800), (0x2_0800, 0x3_0000), (0x4_0000, 0x5_0000)] {
            assert_eq!(part(&segment, &(at(start)..at(end))), None);
        }
    }
}
