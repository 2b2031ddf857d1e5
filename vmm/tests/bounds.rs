//! The cost of inspecting a file is bounded by what the file holds, whatever it claims. The tests
//! count entries, tables and bytes of memory, never time.

mod forge;

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use forge::{Forge, Load, PAGE, PAGES_AT};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tempfile::TempDir;
use vmkern::GuestVirt;
use vmkern::abi::kva::NKPT;
use vmkern::abi::layout::{KernelRoots, VmPhysSeg};
use vmkern::inspect::View;

/// The most memory of an inspection in KiB, including resident pages of the file.
const MOST_KIB: i64 = 256 << 10;
/// The most runs that `pagetable` keeps.
const RUNS: u64 = 1 << 18;
/// The most times that a table is entered.
const VISITS: u64 = 4;

/// The command's output and how it ended.
struct Ended {
    status: ExitStatus,
    /// The most memory that it had resident, in KiB.
    resident: i64,
    /// The file with its output.
    out: PathBuf,
    err: String,
}

/// `vmkern ARGS`, with its output in files below `scratch`.
fn vmkern(scratch: &Scratch, args: &[&str]) -> Ended {
    let (out, err) = (scratch.join("out"), scratch.join("err"));
    let to = |path: &Path| Stdio::from(File::create(path).expect("a file can be made"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    let child = command.args(args).stdin(Stdio::null()).stdout(to(&out)).stderr(to(&err)).spawn();
    let pid =
        i32::try_from(child.expect("the command can be started").id()).expect("it is a process");
    let mut status = 0;
    // SAFETY: all zeros are a `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the results; the child is this test's own, and nothing
    // else waits for it.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!(waited, pid, "the command ends");
    let err = fs::read_to_string(err).expect("it is text");
    Ended { status: ExitStatus::from_raw(status), resident: usage.ru_maxrss, out, err }
}

impl Ended {
    /// Asserts that it ended with one of `statuses`, within the bound.
    #[track_caller]
    fn within(self, statuses: &[i32]) -> Self {
        let status = self.status.code();
        assert!(
            status.is_some_and(|status| statuses.contains(&status)),
            "{:?}: {}",
            self.status,
            self.err
        );
        assert!(self.resident < MOST_KIB, "{} KiB were resident", self.resident);
        self
    }

    /// Its output, valid until the next command.
    fn text(&self) -> String {
        fs::read_to_string(&self.out).expect("it is text")
    }
}

/// A process inherits its parent's high-water mark, so one test runs at a time, and none of them
/// holds much memory.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory for one test at a time.
struct Scratch {
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scratch {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir().expect("a directory can be made"), _alone: alone }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The dump of a guest with this much memory, written by `--save-dump`.
    fn good(&self, memory: &str) -> PathBuf {
        let (script, image) = (self.join("good.kmem"), self.join("good.img"));
        fs::write(&script, "a = kmem_malloc kmem_map 64K NOWAIT\nkmem_alloc kernel_map 1M\n")
            .expect("it is written");
        let args = ["run", "--memory", memory, "--save-dump", path(&image), path(&script)];
        vmkern(self, &args).within(&[0]);
        image
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("it is UTF-8")
}

/// Every command that reads a whole dump, each as a list of words.
fn looks<'a>(image: &'a str, good: &'a str) -> [Vec<&'a str>; 7] {
    [
        vec!["check", image],
        vec!["inspect", image],
        vec!["inspect", image, "pages"],
        vec!["inspect", image, "objects"],
        vec!["inspect", image, "maps"],
        vec!["inspect", image, "pagetable"],
        vec!["inspect", good, "diff", image],
    ]
}

/// Zeros that are not in the file.
fn zeros(start: u64, size: u64) -> Vec<Load> {
    vec![Load { start, size, stored: 0, offset: PAGES_AT }]
}

/// `size` bytes of RAM, in which each `block` maps the same bytes of the file.
fn alias(start: u64, size: u64, block: u64) -> Vec<Load> {
    let piece = |at: u64| {
        let size = block.min(size - at);
        Load { start: start + at, size, stored: size, offset: PAGES_AT / 2 }
    };
    (0..size).step_by(usize::try_from(block).expect("it is small")).map(piece).collect()
}

#[test]
fn a_file_that_shows_its_bytes_twice_or_two_bytes_at_one_place_is_refused_by_everything_that_looks()
{
    let scratch = Scratch::new();
    let good = scratch.good("64G");
    let forge = Forge::of(&good);
    let image = scratch.join("alias.img");
    let mut overlap = forge.loads(zeros);
    let twice = Load { start: overlap[0].start + PAGE, ..overlap[0] };
    overlap.insert(1, twice);
    let block = vec![0xff; 4 << 20];
    for (loads, told) in [
        // 9 MB that pretend to be 64 GiB of page tables.
        (
            forge.loads(|start, size| alias(start, size, 4 << 20)),
            "both show the file's bytes at 0x400000",
        ),
        // Two runs, one of which begins in the middle of the other.
        (shifted(&forge), "both show the file's bytes at 0x401000"),
        (overlap, "both hold physical address 0x1000"),
    ] {
        forge.write(&image, &loads, &[(PAGES_AT / 2, &block)]);
        for args in looks(path(&image), path(&good)) {
            let ended = vmkern(&scratch, &args).within(&[2]);
            assert!(
                ended.err.contains("program headers") && ended.err.contains(told),
                "{args:?}: {}",
                ended.err
            );
        }
    }
}

/// Two runs that share all but a page of the file.
fn shifted(forge: &Forge) -> Vec<Load> {
    let mut loads = forge.loads(zeros);
    let mut places = [PAGES_AT / 2, PAGES_AT / 2 + PAGE].into_iter();
    for load in &mut loads {
        if load.stored == 0
            && load.size >= 8 * PAGE
            && let Some(offset) = places.next()
        {
            (load.stored, load.offset) = (8 * PAGE, offset);
        }
    }
    loads
}

#[test]
fn a_file_of_more_program_headers_than_an_elf_header_counts_is_refused_before_they_are_read() {
    let scratch = Scratch::new();
    let image = scratch.join("many.img");
    let forge = Forge::of(&scratch.good("64M"));
    forge.write(&image, &forge.loads(zeros), &[]);
    // The first section header then holds the number: a thousand million headers of 60 GB in a file
    // without bytes.
    let file = File::options().write(true).open(&image).expect("it is there");
    file.set_len(64 << 30).expect("it can grow");
    let put = |at: u64, bytes: &[u8]| {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).expect("it is written")
    };
    let section = PAGES_AT / 2;
    put(40, &section.to_le_bytes());
    put(56, &u16::MAX.to_le_bytes());
    put(60, &1u16.to_le_bytes());
    put(section + 44, &1_000_000_000u32.to_le_bytes());
    for args in [["inspect", path(&image)], ["check", path(&image)]] {
        let ended = vmkern(&scratch, &args).within(&[2]);
        assert!(ended.err.contains("more than 65534 program headers"), "{}", ended.err);
    }
}

/// Where the last memory segment's mark of its first fresh page lies, and its value when all pages
/// were used.
fn last_fresh_mark(image: &Path) -> (u64, u32) {
    let mut end = 0;
    let at = forge::phys(image, |view: &View<'_>| {
        let roots: KernelRoots = view.copy("roots", view.roots()).expect("the roots can be read");
        let last = roots.vm_phys_nsegs.get() - 1;
        let at = roots.vm_phys_segs.get().addr().get() + last * size_of::<VmPhysSeg>() as u64;
        let segment: VmPhysSeg = view
            .copy("segment", vmkern::abi::addr::KPtr::new(GuestVirt::new(at)))
            .expect("it is one");
        end = segment.end.get();
        GuestVirt::new(at + std::mem::offset_of!(VmPhysSeg, fresh) as u64)
    });
    (at, end)
}

#[test]
fn a_guest_of_64_gib_in_a_small_file_costs_what_its_pages_do_with_zeros_as_holes_or_left_out() {
    let scratch = Scratch::new();
    let good = scratch.good("64G");
    let mut forge = Forge::of(&good);
    // The mark claims that all memory was used: a gigabyte of page structures, none of which the
    // file holds.
    let (mark, end) = last_fresh_mark(&good);
    forge.put(mark, &end.to_le_bytes());
    let (compact, sparse) = (scratch.join("compact.img"), scratch.join("sparse.img"));
    forge.write(&compact, &forge.loads(zeros), &[]);
    let ram = forge.ram.iter().scan(PAGES_AT, |offset, &(start, size)| {
        *offset += size;
        Some(Load { start, size, stored: size, offset: *offset - size })
    });
    forge.write(&sparse, &ram.collect::<Vec<_>>(), &[]);
    assert!(fs::metadata(&sparse).expect("it is there").len() > 64 << 30);
    for (compact, sparse) in
        looks(path(&compact), path(&good)).iter().zip(&looks(path(&sparse), path(&good)))
    {
        let of_compact = vmkern(&scratch, compact).within(&[0, 1]);
        let said = of_compact.text();
        let of_sparse = vmkern(&scratch, sparse).within(&[0, 1]);
        // Only the file's name differs.
        assert_eq!(said.replace("compact", "sparse"), of_sparse.text(), "{sparse:?}");
        assert_eq!(of_compact.status, of_sparse.status);
    }
}

/// The output of `pagetable --json` without the runs themselves.
#[derive(Debug, Deserialize)]
struct PageTable {
    tables: Tables,
    entries: u64,
    runs: Vec<IgnoredAny>,
    left_out: u64,
    damage: Vec<Damage>,
}

#[derive(Debug, Deserialize)]
struct Tables {
    pml4: u64,
    pdpt: u64,
    pd: u64,
    pt: u64,
}

#[derive(Debug, Deserialize)]
struct Damage {
    problem: String,
}

fn page_table(scratch: &Scratch, image: &Path) -> PageTable {
    let ended = vmkern(scratch, &["inspect", "--json", path(image), "pagetable"]).within(&[0]);
    let file = File::open(&ended.out).expect("the report is there");
    serde_json::from_reader(BufReader::new(file)).expect("it is JSON")
}

/// Asserts that the report took no more work than `held` pages of tables and the boot's page tables
/// require (a file does not hold those that are all zero), and that it counts what was left out.
fn assert_bounded(report: &PageTable, held: u64) {
    let tables = held + NKPT as u64;
    let PageTable { tables: Tables { pml4, pdpt, pd, pt }, entries, runs, damage, .. } = report;
    let seen = pml4 + pdpt + pd + pt;
    assert!(seen <= tables, "{seen} of {tables} tables");
    assert!(*entries <= VISITS * 512 * tables, "{entries} entries");
    assert!(runs.len() as u64 <= RUNS, "{} runs", runs.len());
    assert!(
        damage.iter().any(|damage| damage.problem.contains("used again and again")),
        "{damage:?}"
    );
    assert!(damage.len() <= 64, "{damage:?}");
}

#[test]
fn a_root_that_leads_to_itself_in_every_slot_is_looked_into_a_few_times() {
    let scratch = Scratch::new();
    let mut forge = Forge::of(&scratch.good("64M"));
    for slot in 0..510 {
        forge.put(forge.root + slot * 8, &(forge.root | 0x27).to_le_bytes());
    }
    let image = scratch.join("self.img");
    forge.write(&image, &forge.loads(zeros), &[]);
    let held = forge.pages.len() as u64;
    assert_bounded(&page_table(&scratch, &image), held);
    for args in looks(path(&image), path(&image)) {
        vmkern(&scratch, &args).within(&[0, 1]);
    }
}

#[test]
fn a_wide_tree_of_tables_that_lead_to_one_another_costs_a_few_looks_at_each_and_a_bounded_report() {
    const TABLES: u64 = 1024;
    const FIRST: u64 = 32 << 20;
    let scratch = Scratch::new();
    let good = scratch.good("64M");
    let mut forge = Forge::of(&good);
    // Each entry leads to another of the tables; the global bit alternates, so that no two mappings
    // are one run.
    let table = |number: u64| FIRST + number % TABLES * PAGE;
    for number in 0..TABLES {
        for slot in 0..512 {
            let entry = table(number * 31 + slot * 7 + 1) | 0x27 | (slot & 1) << 8;
            forge.put(table(number) + slot * 8, &entry.to_le_bytes());
        }
    }
    (0..256).for_each(|slot| forge.put(forge.root + slot * 8, &(table(slot) | 0x27).to_le_bytes()));
    let image = scratch.join("wide.img");
    forge.write(&image, &forge.loads(zeros), &[]);
    let report = page_table(&scratch, &image);
    assert_bounded(&report, forge.pages.len() as u64);
    assert!(report.left_out > 0, "the tree is wide");
    let text = vmkern(&scratch, &["inspect", path(&image), "pagetable"]).within(&[0]).text();
    assert!(text.contains(&format!("and {} more runs\n", report.left_out)));
    for args in looks(path(&image), path(&good)) {
        vmkern(&scratch, &args).within(&[0, 1]);
    }
}
