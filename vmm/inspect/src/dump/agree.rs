//! Whether the guest note agrees with the rest of a dump.
//!
//! A dump that lacks a part of RAM, or whose note contradicts the control region, would be shown as
//! a guest that never existed. It is refused, and the error names the field that disagrees.

use std::mem::offset_of;
use std::ops::Range;

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::control::{CONTROL_MAGIC, ControlRegion};

use super::fault::OpenFault;
use super::format::GuestNote;
use crate::ram::ram_ranges;
use crate::ram::{MEMORY_MAX, MEMORY_MIN};
use crate::source::Source;

fn disagrees<T>(field: &'static str, problem: String) -> Result<T, OpenFault> {
    Err(OpenFault::Note { field, problem })
}

/// Checks that `segments`, ascending and none touching the next, hold exactly the RAM of a guest of
/// the note's size.
pub(super) fn ram(note: &GuestNote, segments: &[Range<GuestPhys>]) -> Result<(), OpenFault> {
    // 1. The size is valid for a guest.
    const FIELD: &str = "bytes of RAM";
    let memory = note.memory;
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) || !memory.is_multiple_of(PAGE_SIZE) {
        let problem =
            format!("{memory:#x}, expected {MEMORY_MIN:#x} to {MEMORY_MAX:#x} in whole pages");
        return disagrees(FIELD, problem);
    }
    // 2. Each range of such a guest's RAM is a segment of the dump.
    let mut held = segments.iter();
    for range in ram_ranges(memory) {
        let (start, end) = (range.start, range.start.add(range.size));
        let segment = held.next().cloned().unwrap_or(end..end);
        let missing = match segment {
            _ if segment == (start..end) => continue,
            _ if segment.start > start => start,
            _ if segment.start == start && segment.end < end => segment.end,
            _ => {
                return disagrees(
                    FIELD,
                    surplus(memory, if segment.start < start { segment.start } else { end }),
                );
            }
        };
        let problem = format!(
            "{memory:#x}, but no program header holds physical address {missing}: RAM is incomplete"
        );
        return disagrees(FIELD, problem);
    }
    // 3. No segment is left over.
    held.next().map_or(Ok(()), |segment| disagrees(FIELD, surplus(memory, segment.start)))
}

fn surplus(memory: u64, at: GuestPhys) -> String {
    format!(
        "{memory:#x}, but a program header holds physical address {at}, which is not RAM of such a \
         guest"
    )
}

/// Checks that the control region lies in RAM and agrees with the note.
pub(super) fn control(note: &GuestNote, source: &dyn Source) -> Result<(), OpenFault> {
    // 1. It is a whole page of RAM.
    const FIELD: &str = "control region";
    let at = GuestPhys::new(note.control);
    let end = at.checked_add(size_of::<ControlRegion>() as u64);
    let inside = |segment: &Range<GuestPhys>| {
        segment.start <= at && end.is_some_and(|end| end <= segment.end)
    };
    if !source.segments().iter().any(inside) {
        return disagrees(FIELD, format!("{at}, where there is no RAM"));
    }
    if !at.is_page_aligned() {
        return disagrees(FIELD, format!("{at}, which is not the start of a page"));
    }
    // 2. Its words agree with the note.
    let word = |offset: usize| source.load(at.add(offset as u64)).unwrap_or(0);
    if word(offset_of!(ControlRegion, magic)) != CONTROL_MAGIC {
        // Nothing left to compare: the region was never written, or the guest has overwritten it.
        return Ok(());
    }
    let words = [
        ("root page table", offset_of!(ControlRegion, pml4), note.pml4),
        ("kernel roots", offset_of!(ControlRegion, roots), note.roots),
    ];
    for (field, offset, noted) in words {
        let said = word(offset);
        if said != noted {
            return disagrees(
                field,
                format!("{noted:#x}, but the control region at {at} says {said:#x}"),
            );
        }
    }
    Ok(())
}
