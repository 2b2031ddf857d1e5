//! Builds dumps, program header by program header, from the pages of a good one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use vmkern::GuestPhys;
use vmkern::abi::kva::phys_to_dmap;
use vmkern::dump::Dump;
use vmkern::inspect::Source as _;
use vmkern::inspect::View;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Where pages begin in a forged file: after the maximum number of program headers.
pub const PAGES_AT: u64 = 8 << 20;

const EHDR: usize = 64;
const PHDR: usize = 56;

/// A run of RAM: its address, its bytes, and how many of them are in the file, and where.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub start: u64,
    pub size: u64,
    pub stored: u64,
    pub offset: u64,
}

/// The parts of a dump.
pub struct Forge {
    notes: Vec<u8>,
    /// The pages that the file holds, by address.
    pub pages: BTreeMap<u64, Vec<u8>>,
    /// RAM: start and size of each range.
    pub ram: Vec<(u64, u64)>,
    /// The root page table.
    pub root: u64,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("it is an offset")
}

impl Forge {
    /// The parts of the good dump at `path`.
    pub fn of(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the image is there");
        let headers = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
        let header = |number: usize| EHDR + PHDR * number;
        let (notes_at, notes_len) =
            (index(word(&bytes, header(0) + 8)), index(word(&bytes, header(0) + 32)));
        let mut pages = BTreeMap::new();
        for at in (1..headers).map(header) {
            let (offset, start, stored) =
                (word(&bytes, at + 8), word(&bytes, at + 24), word(&bytes, at + 32));
            for page in (0..stored).step_by(4096) {
                let from = index(offset + page);
                pages.insert(start + page, bytes[from..from + 4096].to_vec());
            }
        }
        let image = Dump::open(path).expect("the image is good");
        let ram = image
            .segments()
            .iter()
            .map(|range| (range.start.get(), range.end.since(range.start)))
            .collect();
        let notes = bytes[notes_at..notes_at + notes_len].to_vec();
        Self { notes, pages, ram, root: image.anchors().pml4.get() }
    }

    /// Stores a word of memory.
    pub fn put(&mut self, at: u64, word: &[u8]) {
        let page = self.pages.entry(at / PAGE * PAGE).or_insert_with(|| vec![0; 4096]);
        let within = index(at % PAGE);
        page[within..within + word.len()].copy_from_slice(word);
    }

    /// All RAM as runs of a compact file: each page that exists, and the zeros after it.
    /// `elsewhere` returns the runs for each stretch of RAM without pages.
    pub fn loads(&self, elsewhere: impl Fn(u64, u64) -> Vec<Load>) -> Vec<Load> {
        let mut loads = Vec::new();
        let mut offset = PAGES_AT;
        for &(start, size) in &self.ram {
            let (mut at, end) = (start, start + size);
            for &page in self.pages.range(start..end).map(|(page, _)| page) {
                if at < page {
                    loads.extend(elsewhere(at, page - at));
                }
                loads.push(Load { start: page, size: PAGE, stored: PAGE, offset });
                offset += PAGE;
                at = page + PAGE;
            }
            if at < end {
                loads.extend(elsewhere(at, end - at));
            }
        }
        merged(loads)
    }

    /// Writes a dump of `loads` to `path`, with each page where they place it. Everything else that
    /// they claim to be in the file is a hole, or what `extra` puts there.
    pub fn write(&self, path: &Path, loads: &[Load], extra: &[(u64, &[u8])]) {
        let mut file = File::create(path).expect("the image can be made");
        let mut put = |at: u64, bytes: &[u8]| {
            file.seek(SeekFrom::Start(at)).expect("it is a file");
            file.write_all(bytes).expect("the image can be written");
        };
        put(0, &headers(loads, self.notes.len()));
        put((EHDR + PHDR * (loads.len() + 1)) as u64, &self.notes);
        for load in loads {
            for (&page, bytes) in self.pages.range(load.start..load.start + load.stored) {
                put(load.offset + page - load.start, bytes);
            }
        }
        extra.iter().for_each(|&(at, bytes)| put(at, bytes));
        let end = loads.iter().map(|load| load.offset + load.stored).max().unwrap_or(0);
        if file.metadata().expect("it is open").len() < end {
            file.set_len(end).expect("the image can grow");
        }
    }
}

/// Merges runs that are adjacent in memory and in the file.
fn merged(loads: Vec<Load>) -> Vec<Load> {
    let mut merged: Vec<Load> = Vec::new();
    for load in loads {
        match merged.last_mut() {
            Some(last)
                if last.start + last.size == load.start
                    && last.stored == last.size
                    && load.stored > 0 =>
            {
                if last.offset + last.stored == load.offset {
                    last.size += load.size;
                    last.stored += load.stored;
                } else {
                    merged.push(load);
                }
            }
            Some(last) if last.start + last.size == load.start && load.stored == 0 => {
                last.size += load.size
            }
            _ => merged.push(load),
        }
    }
    merged
}

/// The ELF header and the program headers of a dump with these runs, with notes after the headers.
fn headers(loads: &[Load], notes: usize) -> Vec<u8> {
    let count = loads.len() + 1;
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    [4u16, 62].iter().for_each(|half| bytes.extend(half.to_le_bytes()));
    bytes.extend(1u32.to_le_bytes());
    [0, EHDR as u64, 0].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.extend(0u32.to_le_bytes());
    let count_now = u16::try_from(count).expect("they are few");
    [64, 56, count_now, 64, 0, 0].iter().for_each(|half| bytes.extend(half.to_le_bytes()));
    let mut header = |kind: u32, words: [u64; 6]| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    };
    header(4, [(EHDR + PHDR * count) as u64, 0, 0, notes as u64, 0, 4]);
    for load in loads {
        let virt = phys_to_dmap(GuestPhys::new(load.start)).get();
        header(1, [load.offset, virt, load.start, load.stored, load.size, PAGE]);
    }
    bytes
}

/// The physical address behind the pointer that `pointer` finds in the dump at `path`.
pub fn phys(path: &Path, pointer: impl FnOnce(&View<'_>) -> vmkern::GuestVirt) -> u64 {
    let image = Dump::open(path).expect("the image is good");
    let view = View::new(&image).expect("its kernel has page tables");
    let at = pointer(&view);
    view.walk(at).expect("its tables are RAM").mapping.expect("it is mapped").phys.get()
}
