//! Dumps that appear complete or not at all, and the symbols of their kernel.

use std::fs;
use std::ops::{ControlFlow, Range};

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::paging::{Paging, PagingFeatures};

use super::*;
use crate::dump::Dump;
use crate::dump::OtherKernel;
use crate::inspect::{Anchors, CpuState, NotRam, PageWords, Registers, RunState};
use crate::kernel::KernelImage;
use crate::kvm::memory::GuestRam;

/// Writes a dump to the file at `path`.
fn save(
    source: &dyn Source,
    path: &Path,
    about: &About,
    progress: &mut dyn FnMut(Saving) -> ControlFlow<()>,
) -> Result<Saved, SaveError> {
    super::save(source, Destination::of_bytes(path)?, about, progress)
}

/// Some memory with a CPU.
struct Fake {
    ram: GuestRam,
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
        let ram = GuestRam::new(size).expect("address space is there");
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

#[test]
fn an_interrupted_image_leaves_nothing_and_the_old_one_as_it_was() {
    let (fake, directory) = (Fake::new(8 << 20), directory());
    (0..8 << 20).step_by(4096).for_each(|at| fake.put(at, 1));
    let path = directory.path().join("guest.img");
    fs::write(&path, "old").expect("it can be written");
    let total = 2 * (8 << 20);
    for after in [0, total / 2, total - 1] {
        let mut stop = |saving: Saving| {
            assert_eq!(saving.total, total);
            if saving.done >= after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert!(matches!(save(&fake, &path, &about(), &mut stop), Err(SaveError::Interrupted)));
        assert_eq!(fs::read(&path).expect("it is there"), b"old");
        assert_eq!(fs::read_dir(directory.path()).expect("it is a directory").count(), 1);
    }
    save(&fake, &path, &about(), &mut go_on).expect("the dump can be written");
    assert!(Dump::open(&path).is_ok());
    assert_eq!(fs::read_dir(directory.path()).expect("it is a directory").count(), 1);
}

#[test]
fn what_cannot_be_written_is_told_with_its_name() {
    let fake = Fake::new(8 << 20);
    let directory = directory();
    let missing = directory.path().join("no/such/file");
    let error = save(&fake, &missing, &about(), &mut go_on).expect_err("there is no directory");
    assert!(error.to_string().contains("no/such/file"), "{error}");
    let error = save(&fake, directory.path(), &about(), &mut go_on).expect_err("it is a directory");
    assert!(error.to_string().contains("directory"), "{error}");
    // As on a full disk.
    let full = SaveError::Io {
        path: "x".into(),
        operation: "write it",
        needed: Some(5 << 20),
        source: std::io::Error::from_raw_os_error(libc::ENOSPC),
    };
    assert!(
        full.to_string().contains("No space left on device") && full.to_string().contains("5 MiB"),
        "{full}"
    );
}

#[test]
fn the_kernel_itself_is_refused_as_a_dump() {
    let directory = directory();
    let path = directory.path().join("damaged.img");
    fs::write(&path, KernelImage::embedded().bytes()).expect("it can be written");
    let kernel = Dump::open(&path).map(drop).map_err(|error| error.to_string());
    let kernel = kernel.expect_err("it is the kernel's executable");
    assert!(kernel.contains("executable"), "{kernel}");
}

#[test]
fn symbols_are_those_of_the_very_kernel_or_none() {
    let directory = directory();
    let path = directory.path().join("guest.img");
    save(&Fake::new(8 << 20), &path, &about(), &mut go_on).expect("the dump can be written");
    let dump = Dump::open(directory.path().join("guest.img")).expect("the dump can be read");
    let error = dump.symbols(KernelImage::embedded().bytes()).expect_err("it is another kernel");
    let ours = KernelImage::embedded().build_id().expect("the kernel has a build ID");
    assert_eq!(error, OtherKernel { dump: Some(vec![0xab, 0xcd]), kernel: Some(ours.clone()) });
    assert!(error.to_string().contains("abcd"), "{error}");
    let path = directory.path().join("same.img");
    let same = About { build_id: Some(ours), ..About::default() };
    save(&Fake::new(8 << 20), &path, &same, &mut go_on).expect("the dump can be written");
    let dump = Dump::open(&path).expect("the dump can be read");
    assert!(
        dump.symbols(KernelImage::embedded().bytes())
            .expect("it is the same")
            .address("pvh_entry")
            .is_some()
    );
}
