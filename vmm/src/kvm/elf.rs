//! A kernel's ELF file: which of its bytes go where, and where it wants to be entered.
//!
//! The file is hostile. It is read once: [`Plan`] is what the headers and the PVH note say, each field checked against the
//! file and against memory, and the loader does what the plan says without looking at the file's headers again.

use std::ops::Range;

use object::elf::{NoteType, PT_LOAD, ProgramHeader64};
use object::read::elf::{ElfFile64, Note, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectKind};
use vmkern_abi::addr::GuestPhys;

use crate::image::ImageFault;

/// The image starts here or above.
const IMAGE_START: GuestPhys = GuestPhys::new(0x10_0000);
/// Type of the note that names the PVH entry.
const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);
/// The name of that note.
const XEN: &[u8] = b"Xen\0";

const ENDIAN: LittleEndian = LittleEndian;

type Header = ProgramHeader64<LittleEndian>;

/// Where the image wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) GuestPhys);

/// A part of the image: what is at `file` in its file from `start` on, and zeros up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(super) start: GuestPhys,
    pub(super) end: GuestPhys,
    pub(crate) file: Range<usize>,
}

/// What a kernel's file says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) segments: Vec<Segment>,
    pub(crate) entry: Entry,
}

impl Plan {
    /// The plan of `file`, for memory that ends at `limit`.
    ///
    /// # Errors
    /// The first rule that the file breaks, with the field.
    pub(crate) fn of(file: &[u8], limit: GuestPhys) -> Result<Self, ImageFault> {
        let not_elf = |error: object::Error| ImageFault::NotElf(error.to_string());
        let elf = ElfFile64::<LittleEndian>::parse(file).map_err(not_elf)?;
        if elf.architecture() != object::Architecture::X86_64 || elf.kind() != ObjectKind::Executable {
            let found = format!("it is for {:?}, {:?}", elf.architecture(), elf.kind());
            return Err(ImageFault::NotElf(found));
        }
        let headers = elf.elf_program_headers();
        let mut segments: Vec<(usize, Segment)> = Vec::new();
        for (index, header) in headers.iter().enumerate().filter(|(_, h)| h.p_type(ENDIAN) == PT_LOAD) {
            segments.extend(segment(index, header, file, limit)?.map(|segment| (index, segment)));
        }
        segments.sort_by_key(|(_, segment)| segment.start);
        for pair in segments.windows(2) {
            if let [(first, low), (second, high)] = pair
                && high.start < low.end
            {
                let problem = format!("p_paddr {:#x} lies in the segment of program header {first}", high.start);
                return Err(ImageFault::Segment { index: *second, problem });
            }
        }
        let segments: Vec<_> = segments.into_iter().map(|(_, segment)| segment).collect();
        let entry = entry(headers, file)?;
        if !segments.iter().any(|segment| (segment.start..segment.end).contains(&entry.0)) {
            return Err(ImageFault::PvhNote(format!("its entry {} lies in no segment", entry.0)));
        }
        Ok(Self { segments, entry })
    }
}

/// The part of the image that a program header describes; nothing when that is empty.
fn segment(index: usize, header: &Header, file: &[u8], limit: GuestPhys) -> Result<Option<Segment>, ImageFault> {
    let (start, size) = (header.p_paddr(ENDIAN), header.p_memsz(ENDIAN));
    let stored = header.p_filesz(ENDIAN);
    if stored > size {
        let problem = format!("p_filesz {stored:#x} is larger than p_memsz {size:#x}");
        return Err(ImageFault::Segment { index, problem });
    }
    if size == 0 {
        return Ok(None);
    }
    if start < IMAGE_START.get() {
        return Err(ImageFault::TooLow { start, minimum: IMAGE_START.get() });
    }
    let end = start.saturating_add(size);
    if end > limit.get() {
        return Err(ImageFault::DoesNotFit { end, limit: limit.get() });
    }
    let file = in_file(index, header, file)?;
    Ok(Some(Segment { start: GuestPhys::new(start), end: GuestPhys::new(end), file }))
}

/// Where in the file the content of a program header lies.
fn in_file(index: usize, header: &Header, file: &[u8]) -> Result<Range<usize>, ImageFault> {
    let (offset, stored) = (header.p_offset(ENDIAN), header.p_filesz(ENDIAN));
    let end = offset.checked_add(stored).filter(|&end| stored == 0 || end <= file.len() as u64);
    let range = end.and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
    match range {
        Some(_) if stored == 0 => Ok(0..0),
        Some(range) => Ok(range),
        None => {
            let len = file.len();
            let problem = format!("p_offset {offset:#x} and p_filesz {stored:#x} lead past the file's {len:#x} bytes");
            Err(ImageFault::Segment { index, problem })
        }
    }
}

/// The entry that the PVH note names. All notes are read: one that is broken makes the file a broken one.
fn entry(headers: &[Header], file: &[u8]) -> Result<Entry, ImageFault> {
    let mut found = None;
    for (index, header) in headers.iter().enumerate() {
        let broken = |error: object::Error| ImageFault::Segment { index, problem: format!("its notes: {error}") };
        if header.p_type(ENDIAN) != object::elf::PT_NOTE {
            continue;
        }
        in_file(index, header, file)?;
        let Some(mut notes) = header.notes(ENDIAN, file).map_err(broken)? else { continue };
        while let Some(note) = notes.next().map_err(broken)? {
            let is_entry = note.n_type(ENDIAN) == XEN_ELFNOTE_PHYS32_ENTRY && note.name() == &XEN[..3];
            if is_entry && found.replace(pvh_entry(&note)?).is_some() {
                return Err(ImageFault::PvhNote("there is more than one".to_owned()));
            }
        }
    }
    found.ok_or(ImageFault::NoPvhNote)
}

fn pvh_entry(note: &Note<'_, object::elf::FileHeader64<LittleEndian>>) -> Result<Entry, ImageFault> {
    let wrong = |problem: String| Err(ImageFault::PvhNote(problem));
    if note.name_bytes() != XEN {
        return wrong(format!("its name has {} bytes, and should have 4: \"Xen\" and a zero", note.name_bytes().len()));
    }
    // Four bytes by the protocol; kernels of 64 bits write eight.
    let entry = match *note.desc() {
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        ref other => return wrong(format!("its content has {} bytes, and should have 4 or 8", other.len())),
    };
    Ok(Entry(GuestPhys::new(entry)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::KernelImage;

    const LIMIT: GuestPhys = GuestPhys::new(64 << 20);

    /// The built-in kernel's file with `bytes` at `at`.
    fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = KernelImage::embedded().bytes().to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }

    /// Where the program header is that `kind` says, the first of them with anything in it.
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
        assert!(plan.segments.iter().any(|s| (s.start..s.end).contains(&plan.entry.0)));
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
        assert_eq!(KernelImage::embedded().bytes()[at + 56], 1, "the next header is a PT_LOAD, too");
        let text = fault(&patched(at + 24, &second.to_le_bytes()));
        assert!(text.contains("p_paddr") && text.contains("lies in the segment of program header"), "{text}");
    }

    #[test]
    fn a_pvh_note_without_a_usable_entry_is_refused_with_what_it_says() {
        let (index, at) = header(object::elf::PT_NOTE);
        let note = usize::try_from(word(at + 8)).expect("it is an offset");
        let length = u32::from_le_bytes(KernelImage::embedded().bytes()[note + 4..note + 8].try_into().expect("four"));
        assert!(matches!(length, 4 | 8), "the first note is the PVH entry");
        for (bytes, told) in [
            (patched(note, &3u32.to_le_bytes()), "its name has 3 bytes"),
            (patched(note + 4, &0u32.to_le_bytes()), "its content has 0 bytes"),
            (patched(note + 4, &1u32.to_le_bytes()), "its content has 1 bytes"),
            (patched(note + 16, &[0; 4]), "lies in no segment"),
            (patched(note + 16, &[0xff; 4]), "lies in no segment"),
            (patched(note + 8, &1u32.to_le_bytes()), "has no PVH entry point"),
            (patched(note + 4, &u32::MAX.to_le_bytes()), &format!("program header {index}: its notes")),
            (patched(at + 8, &u64::MAX.to_le_bytes()), &format!("program header {index}: p_offset")),
        ] {
            let text = fault(&bytes);
            assert!(text.contains(told), "`{told}` is not in: {text}");
        }
    }
}
