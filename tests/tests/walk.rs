//! Three walks of the same page tables: ours, the x86_64 crate's, and KVM's own (`KVM_TRANSLATE`).

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmkern::dump::Dump;
use vmkern::inspect::{Source, View};
use vmkern::testing::TestGuest;
use vmkern::{Context, Guest, GuestPhys, GuestVirt, MapId, Op};
use vmkern_abi::kva::{DMAP_MIN, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::pte::{Level, Pte};
use vmkern_tests::{Run as _, guest};
use x86_64::structures::paging::mapper::{MappedPageTable, PageTableFrameMapping, Translate as _};
use x86_64::structures::paging::page_table::PageTableEntry;
use x86_64::structures::paging::{PageTable, PhysFrame};
use x86_64::{PhysAddr, VirtAddr};

/// The number of addresses.
const ADDRESSES: usize = 10_000;

/// The result of a walk for each address.
type Answers = Vec<Option<GuestPhys>>;

/// A guest with large and small blocks, holes, windows of `pmap_qenter` and touched pages, in the
/// middle of its work.
fn busy_guest() -> TestGuest {
    let mut guest = guest();
    let blocks: Vec<_> = (1..64).map(|pages| guest.malloc(pages << 12)).collect();
    for (&addr, pages) in blocks.iter().zip(1..).step_by(3) {
        guest.free(addr, pages << 12);
    }
    let window = guest.address(Op::KmemAllocNofault { map: MapId::KERNEL, size: 1 << 20 });
    guest.ok(Op::PmapQenter { addr: window, count: 37 });
    let lazy = guest.address(Op::KmemAllocWait { map: MapId::EXEC, size: 256 << 10 });
    guest.ok(Op::Touch { addr: lazy, size: 100 << 10 });
    let size = 1 << 20;
    let large = guest.address(Op::KmemAlloc { map: MapId::KERNEL, size });
    for seed in 0..60 {
        let op = if seed % 2 == 0 {
            Op::Fill { addr: large, size, seed }
        } else {
            Op::Verify { addr: large, size, seed: seed - 1 }
        };
        guest.submit_in(Context::Thread(0), op).expect("the guest lives");
    }
    guest
}

/// Mapped addresses, their neighbours, holes, the direct map, random addresses, and non-canonical
/// ones.
fn addresses(guest: &Guest) -> Vec<GuestVirt> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(2008);
    let end = GuestVirt::new(!0xfff);
    let runs = guest.page_runs(DMAP_MIN, end).expect("the page tables are sound");
    let mut draw = |below: u64| random.next_u64() % below;
    let mut addresses = Vec::new();
    while addresses.len() < ADDRESSES {
        let run = &runs[usize::try_from(draw(runs.len() as u64)).expect("it is an index")];
        let length = run.end.since(run.start);
        addresses.push(GuestVirt::new(match draw(20) {
            0..8 => run.start.get() + draw(length),
            8 => run.start.get().wrapping_sub(1 + draw(4096)),
            9 => run.end.get() + draw(4096),
            10..13 => DMAP_MIN.get() + draw(1 << 30),
            13 => DMAP_MIN.get() + draw(1 << 39),
            14..16 => VM_MIN_KERNEL_ADDRESS.get() + draw(1 << 30),
            16 => draw(1 << 47),
            17 => u64::MAX - draw(1 << 47),
            18 => u64::MAX - draw(1 << 31),
            // Not canonical.
            _ => (1 << 47) + draw(u64::MAX - (1 << 48)),
        }));
    }
    addresses
}

/// A copy of a dump's page tables, which is all that the x86_64 crate receives.
struct Tables(HashMap<u64, Box<PageTable>>);

impl Tables {
    fn copy(image: &Dump) -> Self {
        let mut tables = Self(HashMap::new());
        tables.add(image, image.anchors().pml4, Level::Pml4);
        tables
    }

    fn add(&mut self, image: &Dump, at: GuestPhys, level: Level) {
        let Ok(words) = image.page(at) else { return };
        let mut table = Box::new(PageTable::new());
        for (entry, word) in table.iter_mut().zip(words) {
            // SAFETY: an entry is a word of 64 bits, and every value is valid.
            *entry = unsafe {
                core::mem::transmute::<u64, PageTableEntry>(word.load(Ordering::Relaxed))
            };
        }
        self.0.insert(at.get(), table);
        let below = match level {
            Level::Pml4 => Level::Pdpt,
            Level::Pdpt => Level::Pd,
            Level::Pd => Level::Pt,
            Level::Pt => return,
        };
        for word in words {
            let pte = Pte::from_bits(word.load(Ordering::Relaxed));
            if pte.is_valid() && !pte.is_large() && !self.0.contains_key(&pte.frame().get()) {
                self.add(image, pte.frame(), below);
            }
        }
    }
}

// SAFETY: each pointer leads to a table that lives as long as the value and is only read.
unsafe impl PageTableFrameMapping for &Tables {
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        let table = self
            .0
            .get(&frame.start_address().as_u64())
            .expect("every table of the image was copied");
        (&raw const **table).cast_mut()
    }
}

fn by_the_crate(image: &Dump, addresses: &[GuestVirt]) -> Answers {
    let tables = Tables::copy(image);
    let root = PhysFrame::containing_address(PhysAddr::new(image.anchors().pml4.get()));
    let root = (&tables).frame_to_pointer(root);
    // SAFETY: the tables are the test's own copies, complete, and nothing else uses them.
    let mapper = unsafe { MappedPageTable::new(&mut *root, &tables) };
    let translate = |va: &GuestVirt| {
        let va = VirtAddr::try_new(va.get()).ok()?;
        mapper.translate_addr(va).map(|phys| GuestPhys::new(phys.as_u64()))
    };
    addresses.iter().map(translate).collect()
}

/// Asserts that two walks agree about every address.
#[track_caller]
fn agree(addresses: &[GuestVirt], ours: &Answers, theirs: &Answers, whose: &str) {
    assert_eq!(ours.len(), theirs.len());
    for ((va, ours), theirs) in addresses.iter().zip(ours).zip(theirs) {
        assert_eq!(ours, theirs, "our walk and {whose} differ at {va}");
    }
}

#[test]
fn three_walks_agree_on_ten_thousand_addresses_of_a_busy_guest_and_of_its_image() {
    let guest = busy_guest();
    let mut addresses = addresses(&guest);
    // KVM drops the bits that make an address non-canonical before it walks, so it has no result
    // for these.
    let (canonical, others): (Vec<_>, Vec<_>) =
        addresses.drain(..).partition(|va| va.is_canonical());
    assert!(canonical.len() > ADDRESSES * 9 / 10 && others.len() > ADDRESSES / 50);
    let (pause, by_kvm) = guest.pause_and_translate(&canonical).expect("KVM translates");
    assert!(guest.in_flight() > 0, "the guest was busy when it was held");
    let live = |va: &GuestVirt| {
        guest.vtop(*va).expect("its tables are RAM").mapping.map(|mapping| mapping.phys)
    };
    let ours: Answers = canonical.iter().map(live).collect();
    let mapped = ours.iter().flatten().count();
    assert!(
        mapped > ADDRESSES / 3 && mapped < canonical.len() - ADDRESSES / 10,
        "{mapped} of them are mapped"
    );
    agree(&canonical, &ours, &by_kvm, "KVM's");

    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let path = directory.path().join("busy.img");
    guest.save_dump(&path).expect("the image can be written");
    drop(pause);
    let image = Dump::open(&path).expect("the image can be read");
    let view = View::new(&image).expect("the kernel has page tables");
    let walk = |va: &GuestVirt| {
        view.walk(*va).expect("its tables are RAM").mapping.map(|mapping| mapping.phys)
    };
    let in_image: Answers = canonical.iter().map(walk).collect();
    agree(&canonical, &in_image, &by_kvm, "KVM's on the guest that the image came from");
    agree(&canonical, &in_image, &by_the_crate(&image, &canonical), "the x86_64 crate's");
    agree(
        &others,
        &others.iter().map(walk).collect(),
        &by_the_crate(&image, &others),
        "the x86_64 crate's",
    );
    assert!(others.iter().all(|va| walk(va).is_none()), "a non-canonical address is mapped");
}
