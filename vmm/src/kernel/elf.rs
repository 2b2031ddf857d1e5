//! A kernel's ELF file: where its bytes are loaded, and how the kernel is entered.
//!
//! The file is not trusted. It is read once: [`Plan`] holds the content of the headers and the
//! entry notes, each field checked against the file and against memory. The loader follows the plan
//! and does not read the file's headers again.

use std::ops::{Range, RangeInclusive};

use object::elf::{NoteType, PT_LOAD, ProgramHeader64};
use object::read::elf::{ElfFile64, Note, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectKind};
use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::entry::{self, EntryNote};
use zerocopy::FromBytes as _;

use super::KernelFault;

/// The lowest address of the image.
const IMAGE_START: GuestPhys = GuestPhys::new(0x10_0000);
/// Type of the note that names the PVH entry.
const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);
/// The name of that note.
const XEN: &str = "Xen";
/// Type of the note for vmkern's loader.
const VMKERN_ENTRY: NoteType = NoteType(entry::NOTE_TYPE);

/// The limits of a task-state segment: of the smallest one, and the largest limit in bytes.
const TSS_LIMITS: RangeInclusive<u32> = 0x67..=0xf_ffff;
/// Bytes of its descriptor, minus one.
const TSS_DESCRIPTOR_LAST: u16 = 15;

const ENDIAN: LittleEndian = LittleEndian;

type Header = ProgramHeader64<LittleEndian>;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// By PVH, at this address.
    Pvh(GuestPhys),
    /// In long mode, in the state that its note describes.
    Direct(EntryNote),
}

/// A part of the image: the bytes `file` of the file, loaded at `start`, and zeros up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: GuestPhys,
    pub(crate) end: GuestPhys,
    pub(crate) file: Range<usize>,
}

/// The checked content of a kernel's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) segments: Vec<Segment>,
    pub(crate) entry: Entry,
}

impl Plan {
    /// The plan of `file`, for memory that ends at `limit`.
    ///
    /// # Errors
    /// The first rule that the file violates, with the field.
    pub(crate) fn of(file: &[u8], limit: GuestPhys) -> Result<Self, KernelFault> {
        // 1. An executable for this processor.
        let not_elf = |error: object::Error| KernelFault::NotElf(error.to_string());
        let elf = ElfFile64::<LittleEndian>::parse(file).map_err(not_elf)?;
        if elf.architecture() != object::Architecture::X86_64
            || elf.kind() != ObjectKind::Executable
        {
            let found =
                format!("its machine is {:?}, its kind {:?}", elf.architecture(), elf.kind());
            return Err(KernelFault::NotElf(found));
        }
        // 2. Its segments, in order: they must not overlap.
        let headers = elf.elf_program_headers();
        let mut segments: Vec<(usize, Segment)> = Vec::new();
        for (index, header) in
            headers.iter().enumerate().filter(|(_, h)| h.p_type(ENDIAN) == PT_LOAD)
        {
            segments.extend(segment(index, header, file, limit)?.map(|segment| (index, segment)));
        }
        segments.sort_by_key(|(_, segment)| segment.start);
        for pair in segments.windows(2) {
            if let [(first, low), (second, high)] = pair
                && high.start < low.end
            {
                let problem = format!(
                    "p_paddr {:#x} is in the segment of program header {first}",
                    high.start
                );
                return Err(KernelFault::Segment { index: *second, problem });
            }
        }
        let segments: Vec<_> = segments.into_iter().map(|(_, segment)| segment).collect();
        // 3. Its entries, which must lie in segments.
        let holds = |at: &GuestPhys| {
            segments.iter().any(|segment| (segment.start..segment.end).contains(at))
        };
        let (pvh, direct) = entries(headers, file)?;
        if !holds(&pvh) {
            return Err(KernelFault::PvhNote(format!("its entry {pvh} is not in a segment")));
        }
        if let Some(note) = &direct {
            check(note, headers, holds).map_err(KernelFault::EntryNote)?;
        }
        Ok(Self { segments, entry: direct.map_or(Entry::Pvh(pvh), Entry::Direct) })
    }
}

/// The part of the image that a program header describes; `None` if it is empty.
fn segment(
    index: usize,
    header: &Header,
    file: &[u8],
    limit: GuestPhys,
) -> Result<Option<Segment>, KernelFault> {
    let (start, size) = (header.p_paddr(ENDIAN), header.p_memsz(ENDIAN));
    let stored = header.p_filesz(ENDIAN);
    if stored > size {
        let problem = format!("p_filesz {stored:#x} is larger than p_memsz {size:#x}");
        return Err(KernelFault::Segment { index, problem });
    }
    if size == 0 {
        return Ok(None);
    }
    if start < IMAGE_START.get() {
        return Err(KernelFault::TooLow { start, minimum: IMAGE_START.get() });
    }
    let end = start.saturating_add(size);
    if end > limit.get() {
        return Err(KernelFault::DoesNotFit { end, limit: limit.get() });
    }
    let file = in_file(index, header, file)?;
    Ok(Some(Segment { start: GuestPhys::new(start), end: GuestPhys::new(end), file }))
}

/// Where in the file the content of a program header lies.
fn in_file(index: usize, header: &Header, file: &[u8]) -> Result<Range<usize>, KernelFault> {
    let (offset, stored) = (header.p_offset(ENDIAN), header.p_filesz(ENDIAN));
    let end = offset.checked_add(stored).filter(|&end| stored == 0 || end <= file.len() as u64);
    let range = end.and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
    match range {
        Some(_) if stored == 0 => Ok(0..0),
        Some(range) => Ok(range),
        None => {
            let len = file.len();
            let problem = format!(
                "p_offset {offset:#x} and p_filesz {stored:#x} lead past the file's {len:#x} bytes"
            );
            Err(KernelFault::Segment { index, problem })
        }
    }
}

/// The entries in the PVH note and in vmkern's own note; the second may be missing. All notes are
/// read, and a damaged one makes the file invalid.
fn entries(headers: &[Header], file: &[u8]) -> Result<(GuestPhys, Option<EntryNote>), KernelFault> {
    // 1. The notes of each program header that has any.
    let (mut pvh, mut direct) = (None, None);
    let twice = || "there is more than one".to_owned();
    for (index, header) in headers.iter().enumerate() {
        let broken = |error: object::Error| KernelFault::Segment {
            index,
            problem: format!("its notes: {error}"),
        };
        if header.p_type(ENDIAN) != object::elf::PT_NOTE {
            continue;
        }
        in_file(index, header, file)?;
        let Some(mut notes) = header.notes(ENDIAN, file).map_err(broken)? else { continue };
        while let Some(note) = notes.next().map_err(broken)? {
            // 2. The two entry notes, each at most once.
            let is =
                |kind, name: &str| note.n_type(ENDIAN) == kind && note.name() == name.as_bytes();
            if is(XEN_ELFNOTE_PHYS32_ENTRY, XEN) {
                let entry = pvh_entry(&note).map_err(KernelFault::PvhNote)?;
                if pvh.replace(entry).is_some() {
                    return Err(KernelFault::PvhNote(twice()));
                }
            }
            if is(VMKERN_ENTRY, entry::NOTE_NAME) {
                let entry = direct_entry(&note).map_err(KernelFault::EntryNote)?;
                if direct.replace(entry).is_some() {
                    return Err(KernelFault::EntryNote(twice()));
                }
            }
        }
    }
    // 3. Only the PVH note is required.
    Ok((pvh.ok_or(KernelFault::NoPvhNote)?, direct.flatten()))
}

type ElfNote<'a> = Note<'a, object::elf::FileHeader64<LittleEndian>>;

fn check_name(note: &ElfNote<'_>, name: &str) -> Result<(), String> {
    let (found, wanted) = (note.name_bytes().len(), name.len() + 1);
    if found == wanted {
        return Ok(());
    }
    Err(format!("its name has {found} bytes, expected {wanted}: \"{name}\" and a zero"))
}

fn pvh_entry(note: &ElfNote<'_>) -> Result<GuestPhys, String> {
    check_name(note, XEN)?;
    // The protocol says four bytes; 64-bit kernels write eight.
    match *note.desc() {
        [a, b, c, d] => Ok(GuestPhys::new(u32::from_le_bytes([a, b, c, d]).into())),
        [a, b, c, d, e, f, g, h] => {
            Ok(GuestPhys::new(u64::from_le_bytes([a, b, c, d, e, f, g, h])))
        }
        ref other => Err(format!("its content has {} bytes, expected 4 or 8", other.len())),
    }
}

/// The content of vmkern's note; `None` if it has another version.
fn direct_entry(note: &ElfNote<'_>) -> Result<Option<EntryNote>, String> {
    check_name(note, entry::NOTE_NAME)?;
    let content = note.desc();
    let wrong_size =
        || format!("its content has {} bytes, expected {}", content.len(), EntryNote::LEN);
    let (version, _) = u32::read_from_prefix(content).map_err(|_| wrong_size())?;
    if version != entry::VERSION {
        log::debug!(
            "the kernel's entry note is of version {version}, which is unknown here: it is entered \
             by PVH"
        );
        return Ok(None);
    }
    EntryNote::read_from_bytes(content).map(Some).map_err(|_| wrong_size())
}

/// Checks that a vCPU can be set to the state that `note` describes, and finds code there. `holds`
/// says whether the image contains an address.
fn check(
    note: &EntryNote,
    headers: &[Header],
    holds: impl Fn(&GuestPhys) -> bool,
) -> Result<(), String> {
    // 1. Addresses must be canonical, and lie in the image.
    let EntryNote { tss_limit, tss_selector, gdt_limit, reserved, .. } = *note;
    let addresses = [
        ("rip", note.rip),
        ("rsp", note.rsp),
        ("gdt_base", note.gdt_base),
        ("idt_base", note.idt_base),
        ("tss_base", note.tss_base),
        ("gs_base", note.gs_base),
    ];
    if let Some((field, address)) = addresses.iter().find(|(_, address)| !address.is_canonical()) {
        return Err(format!("its {field} {address} is not canonical"));
    }
    if !headers.iter().any(|header| executes(header, note.rip)) {
        return Err(format!("its rip {} is not in an executable segment", note.rip));
    }
    if !note.cr3.is_page_aligned() || !holds(&note.cr3) {
        return Err(format!("its cr3 {} is not the start of a page in a segment", note.cr3));
    }
    // 2. The TSS's descriptor must lie within the GDT, and its limit must be valid.
    if tss_selector & 7 != 0 || tss_selector <= entry::CS {
        return Err(format!(
            "its tss_selector {tss_selector:#x} does not name a descriptor of its own in the GDT"
        ));
    }
    if tss_selector.checked_add(TSS_DESCRIPTOR_LAST).is_none_or(|last| last > gdt_limit) {
        return Err(format!(
            "its gdt_limit {gdt_limit:#x} does not reach the end of descriptor {tss_selector:#x}"
        ));
    }
    if !TSS_LIMITS.contains(&tss_limit) {
        let (least, most) = TSS_LIMITS.into_inner();
        return Err(format!("its tss_limit {tss_limit:#x} is not in {least:#x} to {most:#x}"));
    }
    // 3. Fields reserved for later versions must be 0.
    if reserved != 0 {
        return Err(format!("its reserved field is {reserved:#x}"));
    }
    Ok(())
}

/// Whether the segment of `header` has code at `rip`, by its virtual addresses.
fn executes(header: &Header, rip: GuestVirt) -> bool {
    let start = header.p_vaddr(ENDIAN);
    let offset = rip.get().checked_sub(start);
    header.p_type(ENDIAN) == PT_LOAD
        && header.p_flags(ENDIAN).0 & object::elf::PF_X.0 != 0
        && offset.is_some_and(|offset| offset < header.p_memsz(ENDIAN))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::kernel::KernelImage;

    const LIMIT: GuestPhys = GuestPhys::new(64 << 20);

    /// The built-in kernel's file with `bytes` at `at`.
    fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = KernelImage::embedded().bytes().to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }

    /// The index and file offset of the first program header of type `kind` that is not empty.
    fn header(kind: object::elf::ProgramType) -> (usize, usize) {
        let image = KernelImage::embedded();
        let elf = ElfFile64::<LittleEndian>::parse(image.bytes()).expect("it is an ELF file");
        let is = |header: &Header| header.p_type(ENDIAN) == kind && header.p_filesz(ENDIAN) > 0;
        let index = elf.elf_program_headers().iter().position(is).expect("there is one");
        (index, 64 + 56 * index)
    }

    fn fault(file: &[u8]) -> String {
        Plan::of(file, LIMIT).expect_err("the file contradicts itself").to_string()
    }

    fn word(at: usize) -> u64 {
        let image = KernelImage::embedded();
        u64::from_le_bytes(image.bytes()[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn the_built_in_kernel_is_planned_with_its_entry_inside() {
        let image = KernelImage::embedded();
        let plan = Plan::of(image.bytes(), LIMIT).expect("it is bootable");
        assert!(matches!(plan.entry, Entry::Direct(_)), "it has vmkern's note");
        assert!(plan.segments.iter().all(|s| s.file.len() as u64 <= s.end.since(s.start)));
    }

    #[test]
    fn a_segment_whose_sizes_or_place_lie_is_refused_with_the_field() {
        let (index, at) = header(PT_LOAD);
        let size = word(at + 40);
        for (field, value, told) in [
            (32, size + 1, "p_filesz"),
            (32, u64::MAX, "p_filesz"),
            (8, u64::MAX, "p_offset"),
            (8, u64::MAX - 0xfff, "p_offset"),
            (8, KernelImage::embedded().bytes().len() as u64 - 1, "p_offset"),
        ] {
            let text = fault(&patched(at + field, &value.to_le_bytes()));
            assert!(text.contains(&format!("program header {index}: {told}")), "{text}");
        }
        assert!(fault(&patched(at + 40, &u64::MAX.to_le_bytes())).contains("must end below"));
    }

    #[test]
    fn segments_over_one_another_are_refused() {
        let (_, at) = header(PT_LOAD);
        let second = word(at + 56 + 24);
        assert_eq!(
            KernelImage::embedded().bytes()[at + 56],
            1,
            "the next header is a PT_LOAD, too"
        );
        let text = fault(&patched(at + 24, &second.to_le_bytes()));
        assert!(
            text.contains("p_paddr") && text.contains("is in the segment of program header"),
            "{text}"
        );
    }

    #[test]
    fn a_pvh_note_without_a_usable_entry_is_refused_with_what_it_says() {
        let (index, at) = header(object::elf::PT_NOTE);
        let note = usize::try_from(word(at + 8)).expect("it is an offset");
        let length = u32::from_le_bytes(
            KernelImage::embedded().bytes()[note + 4..note + 8].try_into().expect("four"),
        );
        assert!(matches!(length, 4 | 8), "the first note is the PVH entry");
        for (bytes, told) in [
            (patched(note, &3u32.to_le_bytes()), "its name has 3 bytes"),
            (patched(note + 4, &0u32.to_le_bytes()), "its content has 0 bytes"),
            (patched(note + 4, &1u32.to_le_bytes()), "its content has 1 bytes"),
            (patched(note + 16, &[0; 4]), "is not in a segment"),
            (patched(note + 16, &[0xff; 4]), "is not in a segment"),
            (patched(note + 8, &1u32.to_le_bytes()), "has no PVH entry point"),
            (
                patched(note + 4, &u32::MAX.to_le_bytes()),
                &format!("program header {index}: its notes"),
            ),
            (
                patched(at + 8, &u64::MAX.to_le_bytes()),
                &format!("program header {index}: p_offset"),
            ),
        ] {
            let text = fault(&bytes);
            assert!(text.contains(told), "`{told}` is not in: {text}");
        }
    }

    /// Where vmkern's note and its content begin in the built-in kernel's file.
    fn entry_note() -> (usize, usize) {
        let len = u32::try_from(EntryNote::LEN).expect("it is short");
        let mut head: Vec<u8> =
            [7, len, entry::NOTE_TYPE].iter().flat_map(|word| word.to_le_bytes()).collect();
        head.extend(b"vmkern\0\0");
        let image = KernelImage::embedded();
        let at = image
            .bytes()
            .windows(head.len())
            .position(|bytes| bytes == head)
            .expect("the kernel has the note");
        (at, at + head.len())
    }

    #[test]
    fn a_kernel_whose_entry_note_is_unknown_is_entered_by_pvh() {
        let (note, content) = entry_note();
        let renamed = patched(note + 12, b"Vmkern");
        let other_type = patched(note + 8, &2u32.to_le_bytes());
        let later = patched(content, &(entry::VERSION + 1).to_le_bytes());
        for file in [renamed, other_type, later] {
            let plan = Plan::of(&file, LIMIT).expect("it is bootable");
            assert!(matches!(plan.entry, Entry::Pvh(_)), "{:?}", plan.entry);
        }
    }

    #[test]
    fn an_entry_note_of_another_size_is_refused_with_what_it_says() {
        let (note, _) = entry_note();
        for (at, value, told) in [
            (note, 6, "its name has 6 bytes"),
            (note + 4, 0, "its content has 0 bytes"),
            (note + 4, 3, "its content has 3 bytes"),
            (note + 4, 71, "its content has 71 bytes, expected 72"),
            (note + 4, 73, "its content has 73 bytes, expected 72"),
            (note + 4, u32::MAX, "its notes"),
        ] {
            let text = fault(&patched(at, &value.to_le_bytes()));
            assert!(text.contains(told), "`{told}` is not in: {text}");
        }
    }

    #[test]
    fn an_entry_note_with_an_impossible_address_is_refused_with_the_field() {
        let (_, at) = entry_note();
        let note = built_in_note();
        for (field, value, told) in [
            (offset_of!(EntryNote, rip), 1 << 47, "rip 0x800000000000 is not canonical"),
            (offset_of!(EntryNote, rip), 0x1000, "rip 0x1000 is not in an executable segment"),
            (offset_of!(EntryNote, rip), note.cr3.get(), "is not in an executable segment"),
            (offset_of!(EntryNote, rip), note.gdt_base.get(), "is not in an executable segment"),
            (offset_of!(EntryNote, rip), u64::MAX, "is not in an executable segment"),
            (offset_of!(EntryNote, rsp), 1 << 47, "rsp"),
            (offset_of!(EntryNote, cr3), 0, "cr3 0x0 is not the start of a page in a segment"),
            (offset_of!(EntryNote, cr3), note.cr3.get() + 8, "cr3"),
            (offset_of!(EntryNote, cr3), LIMIT.get(), "cr3"),
            (offset_of!(EntryNote, cr3), !0xfff, "cr3"),
            (offset_of!(EntryNote, cr3), 1 << 63 | note.cr3.get(), "cr3"),
            (offset_of!(EntryNote, gdt_base), 1 << 63, "gdt_base"),
            (offset_of!(EntryNote, idt_base), 1 << 63, "idt_base"),
            (offset_of!(EntryNote, tss_base), 1 << 63, "tss_base"),
            (offset_of!(EntryNote, tss_base), 0x7fff << 48, "tss_base"),
            (offset_of!(EntryNote, gs_base), 1 << 63, "gs_base"),
            (offset_of!(EntryNote, gs_base), 0x7fff_8000_0000_0000, "gs_base"),
        ] {
            expect_fault(&patched(at + field, &u64::to_le_bytes(value)), told);
        }
    }

    #[test]
    fn an_entry_note_with_an_impossible_limit_or_selector_is_refused_with_the_field() {
        let (_, at) = entry_note();
        for (field, value, told) in [
            (offset_of!(EntryNote, tss_selector), 0, "tss_selector"),
            (offset_of!(EntryNote, tss_selector), 8, "tss_selector"),
            (offset_of!(EntryNote, tss_selector), 0x33, "tss_selector 0x33"),
            (offset_of!(EntryNote, tss_selector), 0x34, "tss_selector 0x34"),
            (offset_of!(EntryNote, tss_selector), 0x38, "gdt_limit 0x3f does not reach"),
            (offset_of!(EntryNote, tss_selector), 0xfff8, "gdt_limit"),
            (offset_of!(EntryNote, gdt_limit), 0x3e, "gdt_limit"),
            (offset_of!(EntryNote, gdt_limit), 0, "gdt_limit"),
            (offset_of!(EntryNote, reserved), 1, "reserved"),
        ] {
            expect_fault(&patched(at + field, &u16::to_le_bytes(value)), told);
        }
        for value in [0, 0x66, 0x10_0000, u32::MAX] {
            let file = patched(at + offset_of!(EntryNote, tss_limit), &value.to_le_bytes());
            expect_fault(&file, &format!("tss_limit {value:#x}"));
        }
    }

    fn expect_fault(file: &[u8], told: &str) {
        let text = fault(file);
        assert!(
            text.contains("bad vmkern entry note") && text.contains(told),
            "`{told}` is not in: {text}"
        );
    }

    /// The built-in kernel's note.
    fn built_in_note() -> EntryNote {
        match Plan::of(KernelImage::embedded().bytes(), LIMIT).expect("it is bootable").entry {
            Entry::Direct(note) => note,
            Entry::Pvh(_) => panic!("it has the note"),
        }
    }

    #[test]
    fn two_entry_notes_are_refused() {
        let (note, content) = entry_note();
        let (_, load) = header(PT_LOAD);
        // The second PT_LOAD becomes a second PT_NOTE with only this note.
        let at = load + 56;
        let len = (content + EntryNote::LEN - note) as u64;
        let mut file = patched(at, &object::elf::PT_NOTE.0.to_le_bytes());
        for (field, value) in [(8, note as u64), (32, len), (48, 4)] {
            file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
        expect_fault(&file, "there is more than one");
    }
}
