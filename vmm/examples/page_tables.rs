//! Scans every page table of a guest, and compares the speed with a plain read of the same bytes.
//!
//! `cargo run --release --example page_tables`

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmkern::abi::pte::{Level, Pte, PteFlags};
use vmkern::dump::Dump;
use vmkern::inspect::{InspectError, PAGE_WORDS, Source, View};
use vmkern::{Guest, GuestPhys, MapId, Op, ThreadId};

/// Memory of the guest.
const MEMORY: u64 = 1 << 30;
/// What is allocated in it, page by page.
const ALLOCATED: u64 = 900 << 20;
/// Rounds of each way; the fastest counts.
const ROUNDS: usize = 50;

/// The result of a pass over the tables: the numbers of mappings and of writable ones.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    tables: Vec<GuestPhys>,
    mapped: u64,
    writable: u64,
}

/// One table and all below it.
fn scan(view: &View<'_>, at: GuestPhys, level: Level, seen: &mut Seen) -> Result<(), InspectError> {
    seen.tables.push(at);
    let below = match level {
        Level::Pml4 => Level::Pdpt,
        Level::Pdpt => Level::Pd,
        Level::Pd => Level::Pt,
        Level::Pt => {
            let mut entries = [0; PAGE_WORDS];
            view.copy_table(at, &mut entries)?;
            let count = |flag: PteFlags| {
                entries.iter().map(|entry| u64::from(entry & flag.bits() != 0)).sum::<u64>()
            };
            seen.mapped += count(PteFlags::V);
            seen.writable += count(PteFlags::RW);
            return Ok(());
        }
    };
    for word in view.table(at)? {
        let pte = Pte::from_bits(word.load(Ordering::Relaxed));
        if pte.is_valid() && !pte.is_large() {
            scan(view, pte.frame(), below, seen)?;
        }
    }
    Ok(())
}

fn fastest(mut f: impl FnMut()) -> Duration {
    let mut one = || {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    (0..ROUNDS).map(|_| one()).min().unwrap_or_default()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut guest = Guest::builder().memory(MEMORY).launch()?;
    guest.call(ThreadId::MAIN, Op::KmemAlloc { map: MapId::KERNEL, size: ALLOCATED })?;
    let path = std::env::temp_dir().join(format!("vmkern-page-tables-{}.img", std::process::id()));
    let start = Instant::now();
    let saved = guest.save_dump(&path)?;
    println!(
        "image: {} MiB stored, saved in {:.1} ms",
        saved.stored >> 20,
        start.elapsed().as_secs_f64() * 1e3
    );
    let start = Instant::now();
    let image = Dump::open(&path)?;
    println!("image: opened in {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    std::fs::remove_file(&path)?;

    let view = View::new(&image)?;
    let mut seen = Seen::default();
    scan(&view, view.pml4(), Level::Pml4, &mut seen)?;
    let bytes = seen.tables.len() * 4096;
    let scanned = fastest(|| {
        let mut again = Seen { tables: Vec::with_capacity(seen.tables.len()), ..Seen::default() };
        black_box(scan(&view, view.pml4(), Level::Pml4, &mut again)).unwrap_or_default();
        assert_eq!(again.mapped, seen.mapped);
    });
    let mut buffer = [0; 4096];
    let read = fastest(|| {
        for &table in &seen.tables {
            black_box(image.read(table, &mut buffer)).unwrap_or_default();
            black_box(&buffer);
        }
    });
    let rate = |took: Duration| bytes as f64 / took.as_secs_f64() / 1e9;
    println!("{} tables, {} mappings, {} writable", seen.tables.len(), seen.mapped, seen.writable);
    println!("read of the tables: {:.1} GB/s; scan: {:.1} GB/s", rate(read), rate(scanned));
    println!("scan / read: {:.0} %", 100.0 * read.as_secs_f64() / scanned.as_secs_f64());
    Ok(())
}
