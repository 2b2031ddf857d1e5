//! Writing a dump.
//!
//! Zero pages take no room: runs of RAM end where zeros begin, and short stretches of zeros inside
//! a run are holes of the file. The bytes are written in order, so the output may be a pipe. The
//! caller decides where they go ([`Sink`]).

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::Ordering;

use object::elf::{self, FileHeader64, ProgramHeader64};
use object::{LittleEndian, U16, U32, U64, pod};
use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::kva::phys_to_dmap;
use zerocopy::IntoBytes;

use super::Run;
use super::fault::SaveError;
use super::format::{CORE, CpuNote, FORMAT, GuestNote, NoteType, Prstatus, VMKERN, push_note};
use crate::error::InspectError;
use crate::ram::NotRam;
use crate::ram::PageWords;
use crate::source::Source;

const ENDIAN: LittleEndian = LittleEndian;

/// The most zero pages in a row that do not end a run.
const GAP: u64 = 16;
/// The most runs: what an ELF header can count, less the program headers that are not runs.
const RUNS_MAX: usize = 0xff00;
/// Pages that are copied and written at a time.
const CHUNK: usize = 256;

/// Where a dump goes: bytes in order, and stretches of zeros. While the sink has no room, it calls
/// `go_on` from time to time to learn whether to keep waiting.
pub trait Sink {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When they cannot be written, or `go_on` ends the wait.
    fn write(&mut self, bytes: &[u8], go_on: &mut dyn FnMut() -> ControlFlow<()>)
    -> io::Result<()>;

    /// Writes `bytes` zeros: as a hole, if the sink supports holes.
    ///
    /// # Errors
    /// As for [`Sink::write`].
    fn skip(&mut self, bytes: u64, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> io::Result<()>;
}

/// What a dump records besides memory and registers.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// What the guest ran: the name of a script.
    pub program: String,
    /// The GNU build ID of its kernel.
    pub build_id: Option<Vec<u8>>,
}

/// Progress of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saving {
    /// Bytes of memory read so far. Memory is read twice: to find the pages that are not zero, and
    /// to write them.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A dump that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// Bytes of RAM.
    pub memory: u64,
    /// Bytes that the file takes on the disk.
    pub stored: u64,
}

/// Writes a dump of `source` to `to`. It reports to `progress` from time to time, which may end it.
///
/// # Errors
/// See [`SaveError`].
pub fn save(
    source: &dyn Source,
    to: &mut dyn Sink,
    about: &About,
    progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
) -> Result<Saved, SaveError> {
    let mut plan = Plan::make(source, progress)?;
    let notes = notes(source, about)?;
    let head = plan.head(&notes);
    let stored = plan.stored + head.len() as u64;
    let mut out = Out { to, at: 0, done: plan.searched, total: plan.searched * 2, progress };
    write_dump(source, &plan, &head, &mut out).map_err(|error| match error {
        WriteError::Io(source) => {
            let is_full = source.kind() == io::ErrorKind::StorageFull;
            SaveError::Write { needed: is_full.then_some(stored), source }
        }
        WriteError::Other(error) => error,
    })?;
    Ok(Saved { memory: source.ram_size(), stored })
}

/// What is written where.
struct Plan {
    runs: Vec<Run>,
    /// Bytes of pages that are not zero.
    stored: u64,
    file_len: u64,
    /// Bytes of memory that were read to make the plan.
    searched: u64,
}

impl Plan {
    fn make(
        source: &dyn Source,
        progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
    ) -> Result<Self, SaveError> {
        // 1. Find the pages that are not zero, in runs that small gaps do not break.
        let populated = source.populated();
        let searched: u64 = populated.iter().map(|range| range.end.since(range.start)).sum();
        let mut used: Vec<Range<u64>> = Vec::new();
        let (mut stored, mut done) = (0, 0);
        for range in &populated {
            for pfn in range.start.pfn()..range.end.pfn() {
                if done % (CHUNK as u64 * PAGE_SIZE) == 0 {
                    step(progress, done, searched * 2)?;
                }
                done += PAGE_SIZE;
                if is_zero(source.page(GuestPhys::from_pfn(pfn)).map_err(not_ram)?) {
                    continue;
                }
                stored += PAGE_SIZE;
                match used.last_mut() {
                    Some(last)
                        if pfn - last.end <= GAP && in_one_segment(source, last.start, pfn) =>
                    {
                        last.end = pfn + 1
                    }
                    _ => used.push(pfn..pfn + 1),
                }
            }
        }
        // 2. If a dump cannot have so many runs, merge runs across larger gaps.
        let mut gap = GAP;
        while used.len() > RUNS_MAX {
            gap *= 2;
            used = join(source, &used, gap);
        }
        Ok(Self { runs: cover(source, &used), stored, file_len: 0, searched })
    }

    /// Builds everything before the pages, and places the pages in the file.
    fn head(&mut self, notes: &[u8]) -> Vec<u8> {
        let headers = (1 + self.runs.len()) * size_of::<ProgramHeader64<LittleEndian>>();
        let notes_at = size_of::<FileHeader64<LittleEndian>>() + headers;
        let mut offset = ((notes_at + notes.len()) as u64).next_multiple_of(PAGE_SIZE);
        let mut head = pod::bytes_of(&file_header(1 + self.runs.len())).to_vec();
        head.extend_from_slice(pod::bytes_of(&notes_header(notes_at as u64, notes.len() as u64)));
        for run in &mut self.runs {
            run.offset = offset;
            offset += run.stored_end.since(run.start);
            head.extend_from_slice(pod::bytes_of(&load_header(run, phys_to_dmap(run.start))));
        }
        self.file_len = offset;
        head.extend_from_slice(notes);
        head
    }
}

/// Reports progress; fails if the caller ends the dump.
fn step(
    progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
    done: u64,
    total: u64,
) -> Result<(), SaveError> {
    match progress(Saving { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SaveError::Interrupted),
    }
}

fn not_ram(source: NotRam) -> SaveError {
    InspectError::NotRam { what: "memory", source }.into()
}

fn is_zero(page: &PageWords) -> bool {
    page.iter().all(|word| word.load(Ordering::Relaxed) == 0)
}

fn in_one_segment(source: &dyn Source, first: u64, last: u64) -> bool {
    let (first, last) = (GuestPhys::from_pfn(first), GuestPhys::from_pfn(last));
    source.segments().iter().any(|segment| segment.contains(&first) && segment.contains(&last))
}

/// The same ranges of pages, merged across gaps of up to `gap` pages.
fn join(source: &dyn Source, used: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in used {
        match joined.last_mut() {
            Some(last)
                if range.start - last.end <= gap
                    && in_one_segment(source, last.start, range.start) =>
            {
                last.end = range.end;
            }
            _ => joined.push(range.clone()),
        }
    }
    joined
}

/// Runs that together make up all RAM, each with the zeros that follow it.
fn cover(source: &dyn Source, used: &[Range<u64>]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut used = used.iter().peekable();
    for segment in source.segments() {
        let mut start = segment.start;
        let mut stored_end = start;
        while let Some(range) = used.next_if(|range| GuestPhys::from_pfn(range.start) < segment.end)
        {
            let from = GuestPhys::from_pfn(range.start);
            if from > start {
                runs.push(Run { start, end: from, stored_end, offset: 0 });
                start = from;
            }
            stored_end = GuestPhys::from_pfn(range.end);
        }
        runs.push(Run { start, end: segment.end, stored_end, offset: 0 });
    }
    runs
}

fn file_header(headers: usize) -> FileHeader64<LittleEndian> {
    let word = |value: usize| {
        U16::new(ENDIAN, u16::try_from(value).expect("the number of headers was bounded"))
    };
    FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(ENDIAN, elf::ET_CORE),
        e_machine: U16::new(ENDIAN, elf::EM_X86_64),
        e_version: U32::new(ENDIAN, elf::EV_CURRENT.0.into()),
        e_entry: U64::new(ENDIAN, 0),
        e_phoff: U64::new(ENDIAN, size_of::<FileHeader64<LittleEndian>>() as u64),
        e_shoff: U64::new(ENDIAN, 0),
        e_flags: U32::new(ENDIAN, elf::FileFlags(0)),
        e_ehsize: word(size_of::<FileHeader64<LittleEndian>>()),
        e_phentsize: word(size_of::<ProgramHeader64<LittleEndian>>()),
        e_phnum: word(headers),
        e_shentsize: word(0),
        e_shnum: word(0),
        e_shstrndx: U16::new(ENDIAN, elf::SymbolSection(0)),
    }
}

fn notes_header(offset: u64, size: u64) -> ProgramHeader64<LittleEndian> {
    ProgramHeader64 {
        p_type: U32::new(ENDIAN, elf::PT_NOTE),
        p_flags: U32::new(ENDIAN, elf::PF_R),
        p_offset: U64::new(ENDIAN, offset),
        p_vaddr: U64::new(ENDIAN, 0),
        p_paddr: U64::new(ENDIAN, 0),
        p_filesz: U64::new(ENDIAN, size),
        p_memsz: U64::new(ENDIAN, 0),
        p_align: U64::new(ENDIAN, 4),
    }
}

fn load_header(run: &Run, at: GuestVirt) -> ProgramHeader64<LittleEndian> {
    ProgramHeader64 {
        p_type: U32::new(ENDIAN, elf::PT_LOAD),
        p_flags: U32::new(ENDIAN, elf::PF_R | elf::PF_W | elf::PF_X),
        p_offset: U64::new(ENDIAN, run.offset),
        p_vaddr: U64::new(ENDIAN, at.get()),
        p_paddr: U64::new(ENDIAN, run.start.get()),
        p_filesz: U64::new(ENDIAN, run.stored_end.since(run.start)),
        p_memsz: U64::new(ENDIAN, run.end.since(run.start)),
        p_align: U64::new(ENDIAN, PAGE_SIZE),
    }
}

fn notes(source: &dyn Source, about: &About) -> Result<Vec<u8>, InspectError> {
    let anchors = source.anchors();
    let guest = GuestNote {
        format: FORMAT,
        abi_version: vmkern_abi::ABI_VERSION,
        control: anchors.control.get(),
        pml4: anchors.pml4.get(),
        roots: anchors.roots.addr().get(),
        memory: source.ram_size(),
        paging: source.paging().word(),
        zero: 0,
    };
    let mut notes = Vec::new();
    push_note(&mut notes, VMKERN, NoteType::Guest as u32, guest.as_bytes());
    let cpus = match source.cpus() {
        // A vCPU that never ran has no registers. A dump of memory alone is still useful.
        Err(InspectError::NotReady(_)) => Vec::new(),
        cpus => cpus?,
    };
    for cpu in &cpus {
        push_note(&mut notes, CORE, elf::NT_PRSTATUS.0, Prstatus::of(cpu).as_bytes());
        push_note(&mut notes, VMKERN, NoteType::Cpu as u32, CpuNote::of(cpu).as_bytes());
    }
    push_note(&mut notes, VMKERN, NoteType::Program as u32, about.program.as_bytes());
    if let Some(build_id) = &about.build_id {
        push_note(&mut notes, VMKERN, NoteType::BuildId as u32, build_id);
    }
    Ok(notes)
}

/// What can go wrong while a dump is written.
enum WriteError {
    Io(io::Error),
    Other(SaveError),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SaveError> for WriteError {
    fn from(error: SaveError) -> Self {
        Self::Other(error)
    }
}

/// The output, with its progress.
struct Out<'a> {
    to: &'a mut dyn Sink,
    /// Bytes written so far, holes included.
    at: u64,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Saving) -> ControlFlow<()>,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.at += bytes.len() as u64;
        self.hand_over(|to, go_on| to.write(bytes, go_on))
    }

    /// Fills up to byte number `to` with zeros.
    fn skip_to(&mut self, to: u64) -> Result<(), WriteError> {
        let zeros = to.saturating_sub(self.at);
        self.at = to;
        self.hand_over(|to, go_on| to.skip(zeros, go_on))
    }

    /// Calls `put` with the sink. While the sink has no room, the receiver of the progress may end
    /// the wait.
    fn hand_over(
        &mut self,
        put: impl FnOnce(&mut dyn Sink, &mut dyn FnMut() -> ControlFlow<()>) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let (now, mut stopped) = (Saving { done: self.done, total: self.total }, false);
        let mut go_on = || {
            let flow = (self.progress)(now);
            stopped |= flow.is_break();
            flow
        };
        let put = put(self.to, &mut go_on);
        if stopped { Err(SaveError::Interrupted.into()) } else { Ok(put?) }
    }

    /// Reports `bytes` more of memory as done.
    fn step(&mut self, bytes: u64) -> Result<(), SaveError> {
        self.done = (self.done + bytes).min(self.total);
        step(self.progress, self.done, self.total)
    }
}

fn write_dump(
    source: &dyn Source,
    plan: &Plan,
    head: &[u8],
    out: &mut Out<'_>,
) -> Result<(), WriteError> {
    // 1. The headers and notes.
    const PAGE: usize = size_of::<PageWords>();
    let mut buffer = vec![0; CHUNK * PAGE];
    out.write(head)?;
    // 2. The runs, a chunk at a time.
    for run in &plan.runs {
        let (mut at, mut offset) = (run.start, run.offset);
        while at < run.stored_end {
            let pages = run.stored_end.since(at) / PAGE_SIZE;
            let len = usize::try_from(pages).map_or(CHUNK, |pages| pages.min(CHUNK)) * PAGE;
            read_held(source, at, &mut buffer[..len]).map_err(not_ram)?;
            let mut rest = &buffer[..len];
            // 3. Pages of zeros become holes of the file.
            while !rest.is_empty() {
                let is_blank = blank(&rest[..PAGE]);
                let pages = rest.chunks(PAGE).take_while(|page| blank(page) == is_blank).count();
                let (same, others) = rest.split_at(pages * PAGE);
                if !is_blank {
                    out.skip_to(offset + (len - rest.len()) as u64)?;
                    out.write(same)?;
                }
                rest = others;
            }
            out.step(len as u64)?;
            (at, offset) = (at.add(len as u64), offset + len as u64);
        }
    }
    // 4. The file ends with its last page, stored or not.
    out.skip_to(plan.file_len)
}

/// Copies whole pages out, from `at` on. What the source does not hold is zero, and is not touched:
/// the host would have to find memory for it.
fn read_held(source: &dyn Source, mut at: GuestPhys, pages: &mut [u8]) -> Result<(), NotRam> {
    for page in pages.chunks_mut(size_of::<PageWords>()) {
        if source.holds(at) {
            source.read(at, page)?;
        } else {
            page.fill(0);
        }
        at = at.add(page.len() as u64);
    }
    Ok(())
}

fn blank(page: &[u8]) -> bool {
    page.iter().all(|&byte| byte == 0)
}
