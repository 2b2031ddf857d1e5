//! Dumps written, read, and damaged.

use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::ops::{ControlFlow, Range};

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::paging::{Paging, PagingFeatures};

use super::*;
use crate::cpu::{Registers, RunState};
use crate::ram::{HOLE_END, HOLE_START};
use crate::testing::Ram;

/// A file that takes a dump.
struct Out(fs::File);

impl Sink for Out {
    fn write(&mut self, bytes: &[u8], _: &mut dyn FnMut() -> ControlFlow<()>) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn skip(&mut self, bytes: u64, _: &mut dyn FnMut() -> ControlFlow<()>) -> io::Result<()> {
        let at = self.0.stream_position()? + bytes;
        self.0.set_len(at)?;
        self.0.seek(SeekFrom::Start(at)).map(drop)
    }
}

/// Writes a dump to the file at `path`.
fn save(
    source: &dyn Source,
    path: &Path,
    about: &About,
    progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
) -> Result<Saved, SaveError> {
    let file = fs::File::create(path).expect("it can be made");
    super::save(source, &mut Out(file), about, progress)
}

/// Some memory with a CPU.
struct Fake {
    ram: Ram,
    cpus: Vec<CpuState>,
}

impl Fake {
    fn new(size: u64) -> Self {
        let registers = Registers {
            rip: GuestVirt::new(0x1234),
            rflags: 2,
            cr3: 0x5000,
            ..Registers::default()
        };
        let ram = Ram::new(size);
        Self { ram, cpus: vec![CpuState { cpu: 0, state: RunState::Halted, registers, tsc: 5 }] }
    }

    fn put(&self, at: u64, byte: u8) {
        self.ram.write(GuestPhys::new(at), &[byte]).expect("it is RAM");
    }
}

impl Source for Fake {
    fn segments(&self) -> &[Range<GuestPhys>] {
        self.ram.segments()
    }

    fn page(&self, at: GuestPhys) -> Result<&PageWords, NotRam> {
        self.ram.page(at)
    }

    fn cpus(&self) -> Result<Vec<CpuState>, InspectError> {
        Ok(self.cpus.clone())
    }

    fn anchors(&self) -> Anchors {
        let roots = KPtr::new(GuestVirt::new(0xffff_ff00_0020_0000));
        Anchors { control: GuestPhys::new(0x1_0000), pml4: GuestPhys::new(0x5000), roots }
    }

    fn paging(&self) -> Paging {
        Paging::new(39, PagingFeatures::NX)
    }

    fn populated(&self) -> Vec<Range<GuestPhys>> {
        self.ram.populated()
    }
}

fn go_on(_: Saving) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn about() -> About {
    About { program: "a.kmem".to_owned(), build_id: Some(vec![0xab, 0xcd]) }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is a directory for temporary files")
}

fn read(dump: &Dump, at: u64) -> Result<u8, NotRam> {
    let mut byte = [0];
    dump.read(GuestPhys::new(at), &mut byte).map(|()| byte[0])
}

#[test]
fn what_is_saved_is_what_is_read_and_zeros_take_no_room() {
    let fake = Fake::new(HOLE_START + (1 << 20));
    let marks = [
        0,
        0x1_0fff,
        0x10_0000,
        0x10_5000,
        0x12_0000,
        HOLE_START - 1,
        HOLE_END,
        HOLE_END + (1 << 20) - 1,
    ];
    marks.iter().zip(1..).for_each(|(&at, byte)| fake.put(at, byte));
    let directory = directory();
    let path = directory.path().join("guest.img");
    let saved = save(&fake, &path, &about(), &mut go_on).expect("the dump can be written");
    assert_eq!(saved.memory, HOLE_START + (1 << 20));
    assert!(saved.stored < 100 * PAGE_SIZE, "{} bytes", saved.stored);
    let dump = Dump::open(&path).expect("the dump can be read");
    assert_eq!(dump.segments(), fake.segments());
    for (&at, byte) in marks.iter().zip(1..) {
        assert_eq!(read(&dump, at), Ok(byte), "at {at:#x}");
        let neighbour = at ^ 1;
        assert_eq!(read(&dump, neighbour), Ok(0), "at {neighbour:#x}");
    }
    // The file does not hold zeros: a run ends before them, or there is a hole.
    for page in [0x2000, 0x10_1000, 0x2000_0000] {
        assert_eq!(read(&dump, page), Ok(0));
        assert!(!dump.holds(GuestPhys::new(page)), "{page:#x}");
    }
    assert!(marks.iter().all(|&at| dump.holds(GuestPhys::new(at))));
    assert!(read(&dump, HOLE_START).is_err() && read(&dump, HOLE_END + (1 << 20)).is_err());
    assert_eq!(dump.anchors(), fake.anchors());
    assert_eq!(dump.cpus(), Ok(fake.cpus.clone()));
    // EFER.NXE of the CPU is clear.
    assert_eq!(dump.paging(), Paging::new(39, PagingFeatures::empty()));
    assert_eq!((dump.program(), dump.build_id()), ("a.kmem", Some(&[0xab, 0xcd][..])));
    // A dump of a dump is the same dump, after the first copy has left NX out, as the CPU does.
    let (copy, again) = (directory.path().join("copy.img"), directory.path().join("again.img"));
    save(&dump, &copy, &about(), &mut go_on).expect("the dump can be written");
    let copied = Dump::open(&copy).expect("the copy can be read");
    assert_eq!((copied.paging(), copied.segments()), (dump.paging(), dump.segments()));
    save(&copied, &again, &about(), &mut go_on).expect("the dump can be written");
    assert!(fs::read(&again).expect("it is there") == fs::read(&copy).expect("it is there"));
}

/// A good dump's bytes; its notes, headers and first pages are small.
fn good() -> (tempfile::TempDir, Vec<u8>) {
    let (fake, directory) = (Fake::new(8 << 20), directory());
    [0, 0x10_0000, 0x20_0000, 0x7f_f000].iter().for_each(|&at| fake.put(at, 7));
    let path = directory.path().join("guest.img");
    save(&fake, &path, &about(), &mut go_on).expect("the dump can be written");
    let bytes = fs::read(&path).expect("it is there");
    (directory, bytes)
}

/// Opens a file with these bytes. If that succeeds, reading all of it does no harm.
fn open(directory: &tempfile::TempDir, bytes: &[u8]) -> Result<(), String> {
    let path = directory.path().join("damaged.img");
    fs::write(&path, bytes).expect("it can be written");
    let dump = Dump::open(&path).map_err(|error| error.to_string())?;
    for segment in dump.segments().to_vec() {
        for at in [segment.start, GuestPhys::new(segment.end.get() - 1)] {
            assert!(dump.page(at).is_ok());
        }
    }
    for part in dump.populated() {
        for pfn in part.start.pfn()..part.end.pfn() {
            assert!(dump.page(GuestPhys::from_pfn(pfn)).is_ok());
        }
    }
    Ok(())
}

#[test]
fn a_file_that_was_cut_off_is_refused_wherever_it_was_cut() {
    let (directory, bytes) = good();
    for len in (0..600).chain((600..bytes.len()).step_by(509)).chain([bytes.len() - 1]) {
        assert!(open(&directory, &bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
    }
    assert_eq!(open(&directory, &bytes), Ok(()));
}

#[test]
fn a_byte_that_is_wrong_does_no_harm_anywhere_in_headers_and_notes() {
    let (directory, bytes) = good();
    let mut refused = 0;
    for at in 0..1200 {
        let mut damaged = bytes.clone();
        damaged[at] ^= [0x01, 0x80, 0xff][at % 3];
        refused += u32::from(open(&directory, &damaged).is_err());
    }
    assert!(refused > 150, "only {refused} of the damaged headers were refused");
}

#[test]
fn what_is_no_image_is_refused_with_what_was_expected_and_what_was_found() {
    let (directory, bytes) = good();
    let with = |edits: &[(usize, u8)]| {
        let mut damaged = bytes.clone();
        edits.iter().for_each(|&(at, byte)| damaged[at] = byte);
        open(&directory, &damaged).expect_err("it is damaged")
    };
    for (edits, found) in [
        (&[(0, b'x')][..], "not ELF"),
        (&[(4, 1)], "a class other than 64-bit"),
        (&[(5, 2)], "big-endian"),
        (&[(18, 183)], "machine"),
        (&[(16, 2)], "executable"),
        (&[(56, 0xff), (57, 0xff)], "program headers"),
    ] {
        let error = with(edits);
        assert!(error.contains("expected a memory dump") && error.contains(found), "{error}");
    }
    assert!(
        Dump::open(directory.path()).is_err_and(|error| error.to_string().contains("regular file"))
    );
    assert!(
        Dump::open(directory.path().join("none"))
            .is_err_and(|error| error.to_string().contains("none"))
    );
    // The second PT_LOAD over the first.
    let overlap = with(&[(64 + 2 * 56 + 16 + 2, 0), (64 + 2 * 56 + 24 + 2, 0)]);
    assert!(overlap.contains("both hold physical address"), "{overlap}");
}

/// A good dump's bytes with the word at `at` replaced.
fn with_word(bytes: &[u8], at: usize, word: u64) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[at..at + 8].copy_from_slice(&word.to_le_bytes());
    damaged
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where the program headers of RAM lie in the file.
fn loads(bytes: &[u8]) -> Vec<usize> {
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    (1..count).map(|index| 64 + 56 * index).collect()
}

#[test]
fn an_image_that_does_not_hold_all_ram_is_refused_with_the_address_that_is_missing() {
    let (directory, bytes) = good();
    let loads = loads(&bytes);
    let (first, last) = (loads[0], *loads.last().expect("there is RAM"));
    let short = word(&bytes, last + 40) - PAGE_SIZE;
    let moved = word(&bytes, first + 16) + 1;
    for (damaged, missing) in [
        // The last run ends a page too early; its zeros are cut, too.
        (with_word(&with_word(&bytes, last + 40, short), last + 32, 0), "0x7ff000"),
        // Another p_vaddr makes the run a hint for debuggers, so RAM is incomplete.
        (with_word(&bytes, first + 16, moved), "0x0"),
        // As if a reader dropped a program header and continued.
        (with_word(&bytes, loads[1], 0), "0x100000"),
        (with_word(&bytes, loads[1], 6), "0x100000"),
    ] {
        let error = open(&directory, &damaged).expect_err("RAM is missing");
        let told = format!(
            "guest note: bytes of RAM is 0x800000, but no program header holds physical address \
             {missing}"
        );
        assert!(error.contains(&told), "{error}");
    }
    let long = word(&bytes, last + 40) + PAGE_SIZE;
    let error =
        open(&directory, &with_word(&bytes, last + 40, long)).expect_err("there is too much");
    assert!(error.contains("a program header holds physical address 0x800000"), "{error}");
}

#[test]
fn a_guest_note_that_disagrees_is_refused_with_its_field() {
    let (directory, bytes) = good();
    // The note's content: format and ABI version, control region, root, roots, bytes of RAM.
    let note = usize::try_from(word(&bytes, 64 + 8)).expect("it is an offset") + 20;
    for (at, value, told) in [
        (32, 0, "bytes of RAM is 0x0"),
        (32, 1 << 63, "bytes of RAM is 0x8000000000000000"),
        (32, (8 << 20) + 1, "bytes of RAM is 0x800001"),
        (
            32,
            64 << 20,
            "bytes of RAM is 0x4000000, but no program header holds physical address 0x800000",
        ),
        (8, u64::MAX - 7, "control region is 0xfffffffffffffff8, where there is no RAM"),
        (8, 8 << 20, "control region is 0x800000, where there is no RAM"),
        (8, (8 << 20) - PAGE_SIZE, "control region is 0x7ff000, where there is no RAM"),
        (8, 0x1_0008, "control region is 0x10008, which is not the start of a page"),
    ] {
        let error =
            open(&directory, &with_word(&bytes, note + at, value)).expect_err("the note lies");
        assert!(error.contains(&format!("guest note: {told}")), "`{told}` is not in: {error}");
    }
}

#[test]
fn a_note_of_other_anchors_than_the_control_region_says_is_refused() {
    use vmkern_abi::control::{CONTROL_MAGIC, ControlRegion};
    let (fake, directory) = (Fake::new(8 << 20), directory());
    let (control, anchors) = (fake.anchors().control, fake.anchors());
    let put = |offset: usize, word: u64| {
        fake.ram.write(control.add(offset as u64), &word.to_le_bytes()).expect("it is RAM");
    };
    put(core::mem::offset_of!(ControlRegion, magic), CONTROL_MAGIC);
    put(core::mem::offset_of!(ControlRegion, pml4), anchors.pml4.get());
    put(core::mem::offset_of!(ControlRegion, roots), anchors.roots.addr().get());
    let path = directory.path().join("guest.img");
    save(&fake, &path, &about(), &mut go_on).expect("the dump can be written");
    let bytes = fs::read(&path).expect("it is there");
    assert_eq!(open(&directory, &bytes), Ok(()));
    let note = usize::try_from(word(&bytes, 64 + 8)).expect("it is an offset") + 20;
    for (at, told) in [(16, "root page table is 0x1000"), (24, "kernel roots is 0x1000")] {
        let error =
            open(&directory, &with_word(&bytes, note + at, 0x1000)).expect_err("the note lies");
        assert!(
            error.contains(told) && error.contains("but the control region at 0x10000 says"),
            "{error}"
        );
    }
}

#[test]
fn notes_of_cpus_that_do_not_belong_together_are_refused() {
    let (directory, bytes) = good();
    let note = usize::try_from(word(&bytes, 64 + 8)).expect("it is an offset");
    // The guest note, then NT_PRSTATUS: header and name are 20 bytes, pr_pid stands at 32.
    let status = note + 20 + size_of::<super::format::GuestNote>();
    assert_eq!(&bytes[status + 12..status + 16], b"CORE");
    let pid = status + 20 + 32;
    let old = word(&bytes, pid);
    for pid_now in [0, 2, u64::from(u32::MAX)] {
        let error = open(&directory, &with_word(&bytes, pid, old & !0xffff_ffff | pid_now))
            .expect_err("it is another");
        assert!(error.contains("pr_pid"), "{error}");
    }
}
