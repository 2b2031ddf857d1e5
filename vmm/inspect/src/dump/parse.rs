//! Reading the headers and notes of a dump. The file is hostile.

use std::fs::File;

use object::elf::{self, FileHeader64, NoteType as ElfNoteType, ProgramHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, ReadRef};
use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::kva::phys_in_dmap;
use zerocopy::FromBytes;

use super::Run;
use super::fault::OpenFault;
use super::format::{CORE, CpuNote, FORMAT, GuestNote, NoteType, Prstatus, VMKERN};
use crate::cpu::CpuState;
use crate::ram::HOLE_END;
use crate::ram::MEMORY_MAX;
use crate::text::one_line;

/// First physical address past the RAM of the largest guest.
const PHYS_MAX: u64 = HOLE_END + MEMORY_MAX;
/// The most bytes of notes that are read.
const NOTES_MAX: u64 = 16 << 20;
/// The most CPUs of a dump.
const CPUS_MAX: usize = 1024;
/// The most program headers: as many as an ELF header can count.
const HEADERS_MAX: usize = 0xfffe;
/// Longest build ID that is kept: twice that of a SHA-256.
const BUILD_ID_MAX: usize = 64;
/// Longest name of a program.
const PROGRAM_MAX: usize = 4096;

const ENDIAN: LittleEndian = LittleEndian;
const EXPECTED: &str = "a memory dump (an ELF core file for x86_64 with VMKERN notes)";

/// What the headers and notes say, checked.
pub(super) struct Parsed {
    pub runs: Vec<Run>,
    pub guest: GuestNote,
    pub cpus: Vec<CpuState>,
    pub program: String,
    pub build_id: Option<Vec<u8>>,
}

fn other(found: impl Into<String>) -> OpenFault {
    OpenFault::OtherFormat { expected: EXPECTED, found: found.into() }
}

pub(super) fn parse(file: &File, len: u64) -> Result<Parsed, OpenFault> {
    // 1. The headers, as many as a dump of a guest can have.
    let cache = ReadCache::new(file);
    let header = header(&cache)?;
    let count = usize::from(header.e_phnum.get(ENDIAN));
    // One more means that a section header holds the number, which may then be any.
    if count > HEADERS_MAX {
        return Err(other(format!("an ELF core file of more than {HEADERS_MAX} program headers")));
    }
    let segments = header.program_headers(ENDIAN, &cache).map_err(|error| {
        other(format!("an ELF core file whose {count} program headers cannot be read ({error})"))
    })?;
    // 2. The runs of RAM, and the one segment with notes.
    let mut notes = None;
    let mut runs = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        match segment.p_type(ENDIAN) {
            elf::PT_NOTE if notes.is_none() => notes = Some((index, segment)),
            elf::PT_LOAD => runs.extend(run(index, segment, len)?.map(|run| (index, run))),
            _ => {}
        }
    }
    let runs = in_order(runs)?;
    let (index, segment) = notes.ok_or_else(|| other("an ELF core file without notes"))?;
    let size = segment.p_filesz(ENDIAN);
    if size > NOTES_MAX {
        let problem = format!("{size:#x} bytes of notes, expected at most {NOTES_MAX:#x}");
        return Err(OpenFault::Segment { index, problem });
    }
    // 3. The notes.
    let mut found = Found::default();
    let damaged = |error: object::Error| OpenFault::Notes(error.to_string());
    if let Some(mut notes) = segment.notes(ENDIAN, &cache).map_err(damaged)? {
        while let Some(note) = notes.next().map_err(damaged)? {
            found.take(note.name(), note.n_type(ENDIAN), note.desc())?;
        }
    }
    found.finish(runs)
}

/// The ELF header, checked: a core file for x86_64.
fn header<'a, R: ReadRef<'a>>(data: R) -> Result<&'a FileHeader64<LittleEndian>, OpenFault> {
    let ident = data.read_bytes_at(0, 16).map_err(|()| other("a file of fewer than 16 bytes"))?;
    let [0x7f, b'E', b'L', b'F', class, order, ..] = *ident else {
        return Err(other("a file that is not ELF"));
    };
    if class != 2 {
        return Err(other("an ELF file of a class other than 64-bit"));
    }
    if order != 1 {
        return Err(other("a big-endian ELF file"));
    }
    let header = FileHeader64::<LittleEndian>::parse(data)
        .map_err(|error| other(format!("an ELF file: {error}")))?;
    let machine = header.e_machine.get(ENDIAN);
    if machine != elf::EM_X86_64 {
        return Err(other(format!("an ELF file for machine {machine:?}")));
    }
    match header.e_type.get(ENDIAN) {
        elf::ET_CORE => Ok(header),
        elf::ET_EXEC | elf::ET_DYN => {
            Err(other("an ELF executable, which is not a dump of a guest's memory"))
        }
        kind => Err(other(format!("an ELF file of type {kind:?}"))),
    }
}

/// The run of RAM that a program header describes; `None` when it only repeats another one for
/// debuggers.
fn run(
    index: usize,
    segment: &ProgramHeader64<LittleEndian>,
    len: u64,
) -> Result<Option<Run>, OpenFault> {
    // 1. A range of physical addresses, in whole pages.
    let broken = |problem: String| Err(OpenFault::Segment { index, problem });
    let (start, size) = (segment.p_paddr(ENDIAN), segment.p_memsz(ENDIAN));
    let (offset, stored) = (segment.p_offset(ENDIAN), segment.p_filesz(ENDIAN));
    let Some(end) = start.checked_add(size).filter(|&end| end <= PHYS_MAX) else {
        return broken(format!("p_paddr {start:#x} and p_memsz {size:#x} lead past {PHYS_MAX:#x}"));
    };
    if stored > size {
        return broken(format!("p_filesz {stored:#x} is larger than p_memsz {size:#x}"));
    }
    for (name, value) in [("p_paddr", start), ("p_memsz", size), ("p_filesz", stored)] {
        if !value.is_multiple_of(PAGE_SIZE) {
            return broken(format!("{name} {value:#x} is not a whole number of pages"));
        }
    }
    if stored > 0 && !offset.is_multiple_of(PAGE_SIZE) {
        return broken(format!("p_offset {offset:#x} is not a whole number of pages"));
    }
    // 2. All of its bytes are in the file.
    match offset.checked_add(stored) {
        Some(last) if stored == 0 || last <= len => {}
        _ => {
            return broken(format!(
                "its {stored:#x} bytes at {offset:#x} end past the file's {len:#x}: it is cut off"
            ));
        }
    }
    // 3. Only RAM in the direct map: other mappings of it are for debuggers.
    let start = GuestPhys::new(start);
    if size == 0 || phys_in_dmap(start).is_none_or(|va| segment.p_vaddr(ENDIAN) != va.get()) {
        return Ok(None);
    }
    Ok(Some(Run { start, end: GuestPhys::new(end), stored_end: start.add(stored), offset }))
}

fn in_order(mut runs: Vec<(usize, Run)>) -> Result<Vec<Run>, OpenFault> {
    runs.sort_by_key(|(_, run)| run.start);
    for pair in runs.windows(2) {
        if let [(first, low), (second, high)] = *pair
            && high.start < low.end
        {
            return Err(OpenFault::Overlap { first, second, at: high.start });
        }
    }
    if runs.is_empty() {
        return Err(other("an ELF core file without any RAM"));
    }
    apart(&runs)?;
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

/// Checks that each byte of the file stands for one place of memory. Otherwise a small file could
/// claim any amount of memory, and the work on a dump would not be bounded by its size.
fn apart(runs: &[(usize, Run)]) -> Result<(), OpenFault> {
    let stored = |run: &Run| run.stored_end.since(run.start);
    let mut held: Vec<_> = runs.iter().filter(|(_, run)| stored(run) > 0).collect();
    held.sort_by_key(|(_, run)| run.offset);
    for pair in held.windows(2) {
        if let [&(first, low), &(second, high)] = *pair
            && high.offset < low.offset + stored(&low)
        {
            return Err(OpenFault::Shared { first, second, offset: high.offset });
        }
    }
    Ok(())
}

/// The notes so far.
#[derive(Default)]
struct Found {
    guest: Option<GuestNote>,
    statuses: Vec<Prstatus>,
    cpus: Vec<CpuNote>,
    program: String,
    build_id: Option<Vec<u8>>,
}

impl Found {
    fn take(&mut self, name: &[u8], kind: ElfNoteType, content: &[u8]) -> Result<(), OpenFault> {
        let is = |wanted: NoteType| name == VMKERN && kind.0 == wanted as u32;
        if name == CORE && kind == elf::NT_PRSTATUS {
            self.statuses.push(fixed("NT_PRSTATUS", content)?);
        } else if is(NoteType::Guest) {
            let short = || too_short("VMKERN guest", content.len(), GuestNote::LEAST);
            let guest = GuestNote::of(content).ok_or_else(short)?;
            if guest.format != FORMAT {
                let found =
                    format!("one of format {}, but this vmkern reads {FORMAT}", guest.format);
                return Err(other(found));
            }
            if self.guest.replace(guest).is_some() {
                return Err(OpenFault::Notes("more than one VMKERN note of the guest".to_owned()));
            }
        } else if is(NoteType::Cpu) {
            self.cpus.push(fixed("VMKERN cpu", content)?);
        } else if is(NoteType::Program) {
            self.program = one_line(&content[..content.len().min(PROGRAM_MAX)]);
        } else if is(NoteType::BuildId) {
            self.build_id = Some(content[..content.len().min(BUILD_ID_MAX)].to_vec());
        }
        if self.statuses.len().max(self.cpus.len()) > CPUS_MAX {
            return Err(OpenFault::Notes(format!("more than {CPUS_MAX} CPUs")));
        }
        Ok(())
    }

    fn finish(self, runs: Vec<Run>) -> Result<Parsed, OpenFault> {
        // 1. The guest's own note, and equally many of both kinds of CPU notes.
        let guest = self.guest.ok_or_else(|| other("an ELF core file without a VMKERN note"))?;
        let (statuses, notes) = (self.statuses.len(), self.cpus.len());
        if statuses != notes {
            return Err(OpenFault::Notes(format!(
                "{statuses} NT_PRSTATUS and {notes} VMKERN notes of CPUs"
            )));
        }
        // 2. CPU by CPU, in order: both notes must be about the same CPU.
        let mut cpus: Vec<CpuState> = Vec::new();
        for (status, note) in self.statuses.iter().zip(&self.cpus) {
            let (cpu, pid) = (note.cpu, status.pid);
            if pid.checked_sub(1) != Some(cpu) {
                let problem =
                    format!("pr_pid is {pid} for CPU {cpu}, expected {}", u64::from(cpu) + 1);
                return Err(OpenFault::Notes(problem));
            }
            if cpus.last().is_some_and(|last| last.cpu >= cpu) {
                return Err(OpenFault::Notes(format!(
                    "CPU {cpu} comes after CPU {}",
                    cpus[cpus.len() - 1].cpu
                )));
            }
            let unknown =
                || OpenFault::Notes(format!("CPU {} is in state {}", note.cpu, note.state));
            let state = note.state().ok_or_else(unknown)?;
            cpus.push(CpuState {
                cpu: note.cpu,
                state,
                registers: status.registers(note),
                tsc: note.tsc,
            });
        }
        Ok(Parsed { runs, guest, cpus, program: self.program, build_id: self.build_id })
    }
}

/// A note's content as a `T`. A longer note is from a later version, and begins with the known
/// part.
fn fixed<T: FromBytes>(what: &str, content: &[u8]) -> Result<T, OpenFault> {
    let short = |_| too_short(what, content.len(), size_of::<T>());
    T::read_from_prefix(content).map(|(note, _)| note).map_err(short)
}

fn too_short(what: &str, len: usize, least: usize) -> OpenFault {
    OpenFault::Notes(format!("{what} has {len} bytes, but needs at least {least}"))
}
