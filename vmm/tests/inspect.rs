//! The reports of `inspect` agree with the guest's own counts, for a dump as well as for the guest.

use std::fs;

use serde_json::Value;
use vmkern::dump::Dump;
use vmkern::guest::{Allocator, Workload};
use vmkern::inspect::draw::{WIDTH, draw};
use vmkern::inspect::report::{Body, LockCounts, LocksReport, ObjectRef, TlbReport, Use};
use vmkern::inspect::{Inspection, Symbols, View, What};
use vmkern::{Guest, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome, ThreadId, TimeMode};

const PAGE: u64 = 4096;

/// A guest with a bit of everything: blocks and holes in kmem_map, a submap with a thread that
/// waits for room, pages of an anonymous object, a kernel stack.
struct Busy {
    guest: Guest,
    /// A block of 2 pages in kmem_map.
    block: GuestVirt,
    /// 15 pages of a pageable map, 5 of them touched.
    pageable: GuestVirt,
    submap: MapId,
}

fn call(guest: &mut Guest, thread: u16, op: Op) -> Outcome {
    let thread = ThreadId::try_from(thread).expect("it exists");
    guest.call(thread, op).unwrap_or_else(|error| panic!("{op:?}: {error}")).outcome
}

fn value(guest: &mut Guest, op: Op) -> u64 {
    match call(guest, 0, op) {
        Outcome::Value(value) => value,
        other => panic!("{op:?} gave {other:?}"),
    }
}

fn malloc(guest: &mut Guest, pages: u64) -> GuestVirt {
    GuestVirt::new(value(
        guest,
        Op::KmemMalloc { map: MapId::KMEM, size: pages * PAGE, flags: MallocFlags::NOWAIT },
    ))
}

fn busy() -> Busy {
    let mut guest = Guest::builder()
        .memory(16 << 20)
        .launch()
        .unwrap_or_else(|error| panic!("no guest: {error}"));
    let blocks: Vec<_> =
        (0..30).map(|number| (malloc(&mut guest, 1 + number % 4), 1 + number % 4)).collect();
    for (addr, pages) in blocks.iter().step_by(3) {
        let op = Op::KmemFree { map: MapId::KMEM, addr: *addr, size: pages * PAGE };
        assert_eq!(call(&mut guest, 0, op), Outcome::Ok);
    }
    value(&mut guest, Op::KmemAlloc { map: MapId::KERNEL, size: 64 * PAGE });
    let kind = MapKind::User;
    let submap =
        MapId(value(&mut guest, Op::KmemSuballoc { parent: MapId::KERNEL, size: 16 * PAGE, kind }));
    let pageable =
        GuestVirt::new(value(&mut guest, Op::KmemAllocWait { map: submap, size: 15 * PAGE }));
    assert_eq!(call(&mut guest, 0, Op::Touch { addr: pageable, size: 5 * PAGE }), Outcome::Ok);
    let waits = call(&mut guest, 3, Op::KmemAllocWait { map: submap, size: 2 * PAGE });
    assert!(matches!(waits, Outcome::Blocked { .. }), "{waits:?}");
    Busy { guest, block: blocks[1].0, pageable, submap }
}

/// Every kind of report.
fn everything(busy: &Busy) -> Vec<What> {
    let text = format!(
        "summary;maps;map kernel_map;map kmem_map;map {:#x};objects;pages;page 3;page 0x400;vtop \
         {};vtop {};vtop 0x1000;pagetable;pagetable {}..{};threads;cpus;locks;fail;\
         pressure",
        busy.submap.0, busy.block, busy.pageable, busy.block, busy.pageable,
    );
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    text.split(';')
        .map(|text| What::parse(&words(text)).unwrap_or_else(|error| panic!("{text}: {error}")))
        .collect()
}

fn sound(guest: &Guest, what: &What) -> Body {
    let inspection = guest.inspect("test", what).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(inspection.damage, [], "{what}");
    inspection.body
}

macro_rules! look {
    ($guest:expr, $what:expr, $body:path) => {
        match sound(&$guest, &$what) {
            $body(report) => report,
            other => panic!("{other:?}"),
        }
    };
}

#[test]
fn summary_has_the_kernels_own_counters_and_every_page_once() {
    let busy = busy();
    let report = look!(busy.guest, What::Summary, Body::Summary);
    let meter = busy.guest.meter().expect("the counters can be read");
    for (name, value) in &report.counters {
        assert_eq!(Some(*value), meter.by_name(name).map(vmkern::abi::field::Field::get), "{name}");
    }
    let pages: u64 =
        report.uses.iter().filter(|count| count.kind != Use::Hole).map(|count| count.pages).sum();
    assert_eq!(pages, (16 << 20) / PAGE);
    assert_eq!(report.threads.values().sum::<u64>(), meter.thread_count.get());
    assert_eq!((report.waits.get("vmmaps"), report.panic), (Some(&1), None));
}

#[test]
fn maps_have_the_figures_that_the_maps_have_themselves() {
    let busy = busy();
    let report = look!(busy.guest, What::Maps, Body::Maps);
    let named = MapId::NAMED.map(|(name, id)| (name.to_owned(), id));
    for (name, id) in named.into_iter().chain([(format!("{:#x}", busy.submap.0), busy.submap)]) {
        let stats = busy.guest.map_stats(id).expect("the map can be read");
        let map = report
            .maps
            .iter()
            .find(|map| *map.name == *name)
            .unwrap_or_else(|| panic!("no {name}"));
        let found = (map.start.0, map.end.0, map.used_bytes, map.entry_count, map.largest_hole);
        assert_eq!(
            found,
            (stats.min.get(), stats.max.get(), stats.size, stats.entries, stats.max_free),
            "{name}"
        );
        let parent = if id == MapId::KERNEL { None } else { Some("kernel_map") };
        if ![MapId::BUFFER, MapId::PAGER].contains(&id) {
            assert_eq!(map.parent.as_deref(), parent, "{name}");
        }
    }
    let names: Vec<_> = report.maps.iter().map(|map| (&*map.name, map.depth)).collect();
    assert_eq!(names[..3], [("kernel_map", 0), ("kmem_map", 1), ("clean_map", 1)]);
}

#[test]
fn a_map_has_the_entries_that_its_list_has() {
    let busy = busy();
    for (what, id) in [("kmem_map", MapId::KMEM), ("kernel_map", MapId::KERNEL)] {
        let what = What::Map(vmkern::inspect::report::MapName::Named(what.to_owned()));
        let report = look!(busy.guest, what, Body::Map);
        let entries = busy.guest.map_entries(id).expect("the map can be read");
        let told: Vec<_> =
            report.entries.iter().map(|e| (e.start.0, e.end.0, e.wired, e.flags)).collect();
        let listed: Vec<_> =
            entries.iter().map(|e| (e.start.get(), e.end.get(), e.wired, e.eflags)).collect();
        assert_eq!(told, listed);
        assert!(entries.len() > 3);
    }
}

#[test]
fn objects_have_their_references_and_pages_counted() {
    let busy = busy();
    let report = look!(busy.guest, What::Objects, Body::Objects);
    let size = |id| busy.guest.map_stats(id).expect("the map can be read").size;
    assert_eq!(report.objects.len(), 3);
    for object in &report.objects {
        assert_eq!(object.object.resident, object.pages, "{object:?}");
        // Each entry holds one reference; the kernel's own two objects have one more.
        let own = u64::from(!matches!(object.object.name, ObjectRef::Anonymous(_)));
        assert_eq!(u64::from(object.object.references), object.entries + own, "{object:?}");
    }
    let pages: Vec<_> = report.objects.iter().map(|object| object.pages).collect();
    assert_eq!(pages, [64, size(MapId::KMEM) / PAGE, 5]);
}

#[test]
fn pages_are_counted_as_the_kernel_counts_them() {
    let busy = busy();
    let report = look!(busy.guest, What::Pages, Body::Pages);
    assert!(
        report.counters.iter().all(|counter| counter.says == counter.found),
        "{:?}",
        report.counters
    );
    let meter = busy.guest.meter().expect("the counters can be read");
    let free: u64 =
        report.uses.iter().filter(|count| count.kind.is_free()).map(|count| count.pages).sum();
    assert_eq!(free, meter.v_free_count.get());
    let kmem = busy.guest.map_stats(MapId::KMEM).expect("the map can be read").size;
    assert_eq!((report.count(Use::Kmem), report.count(Use::Kernel)), (kmem / PAGE, 64));
    // Four threads have a stack of four pages.
    assert_eq!((report.count(Use::Anonymous), report.count(Use::Kenter)), (5, 16));
    assert_eq!((report.count(Use::Other), report.count(Use::Unreadable)), (0, 0));
    // All in the blocks of the buddy lists.
    let blocks = report.free_lists.iter().flat_map(|list| list.blocks.iter().enumerate());
    assert_eq!(blocks.map(|(order, blocks)| blocks << order).sum::<u64>(), report.count(Use::Free));
}

#[test]
fn a_page_tells_its_owner_and_every_address_that_maps_it() {
    let mut busy = busy();
    let phys = value(&mut busy.guest, Op::Vtop { addr: busy.block });
    let report = look!(busy.guest, What::Page(phys / PAGE), Body::Page);
    let state = report.state.expect("the page is under management");
    assert_eq!((report.kind, state.object, state.wired), (Use::Kmem, ObjectRef::Kmem, 1));
    assert_eq!(state.pindex, (busy.block.get() - 0xffff_ff80_0000_0000) / PAGE);
    let mapped: Vec<_> = report.mappings.iter().map(|mapping| mapping.va.0).collect();
    assert_eq!(mapped, [0xffff_ff00_0000_0000 + phys, busy.block.get()]);
    let entry = report.mappings[1].entry.as_ref().expect("an entry explains it");
    assert!((entry.start.0..entry.end.0).contains(&busy.block.get()));
    let outside =
        busy.guest.inspect("test", &What::Page(1 << 40)).expect_err("there is no such page");
    assert_eq!(outside.to_string(), "there is no page 0x10000000000: RAM is pages 0x0 to 0xfff");
}

#[test]
fn vtop_finds_what_the_guest_finds() {
    let mut busy = busy();
    for addr in [busy.block, busy.block.add(4097), busy.pageable] {
        let phys = value(&mut busy.guest, Op::Vtop { addr });
        let report = look!(busy.guest, What::Vtop(addr), Body::Vtop);
        let mapping = report.mapping.expect("it is mapped");
        assert_eq!((mapping.phys.0, mapping.span, report.pfn), (phys, PAGE, Some(phys / PAGE)));
        assert_eq!(
            report.steps.iter().map(|step| step.level).collect::<Vec<_>>(),
            ["PML4", "PDPT", "PD", "PT"]
        );
        let (entry, page) =
            (report.entry.expect("an entry has it"), report.page.expect("it is managed"));
        assert_eq!(report.object.map(|object| object.name), Some(entry.object.clone()));
        assert_eq!(page.object, entry.object);
    }
    // The sixth page was never touched.
    let report = look!(busy.guest, What::Vtop(busy.pageable.add(5 * PAGE)), Body::Vtop);
    assert!(report.mapping.is_none() && report.pfn.is_none());
    assert!(matches!(report.object.map(|object| object.name), Some(ObjectRef::Anonymous(_))));
}

#[test]
fn runs_of_the_page_tables_are_what_a_walk_finds() {
    let busy = busy();
    let kmem = busy.guest.map_stats(MapId::KMEM).expect("the map can be read");
    let range = What::page_table(kmem.min.get(), kmem.max.get()).expect("it is not empty");
    let report = look!(busy.guest, range, Body::PageTable);
    assert_eq!((report.bytes, report.entries), (kmem.size, kmem.size / PAGE));
    let walked = busy.guest.page_runs(kmem.min, kmem.max).expect("the tables can be read");
    let walked: Vec<_> = walked
        .iter()
        .map(|run| (run.start.get(), run.end.get() - 1, run.span, run.flags))
        .collect();
    let told: Vec<_> =
        report.runs.iter().map(|run| (run.start.0, run.last.0, run.span, run.flags)).collect();
    assert_eq!(told, walked);
    let all = look!(busy.guest, What::page_tables(), Body::PageTable);
    assert_eq!((all.tables.pml4, all.runs[0].span), (1, 2 << 20));
    assert!(all.entries > report.entries && all.tables.total() > report.tables.total());
}

#[test]
fn threads_tell_what_they_wait_for_and_who_called() {
    let busy = busy();
    let report = look!(busy.guest, What::Threads, Body::Threads);
    let threads = busy.guest.threads().expect("the threads can be read");
    let told: Vec<_> =
        report.threads.iter().map(|thread| (thread.tid, thread.name.clone())).collect();
    assert_eq!(told, threads.iter().map(|thread| (thread.tid, thread.label())).collect::<Vec<_>>());
    let waiting = report.threads.iter().find(|thread| thread.tid == 3).expect("t3 was made");
    assert_eq!(
        (waiting.state.as_str(), waiting.wait_message.as_deref()),
        ("sleeping", Some("vmmaps"))
    );
    let stack = waiting.backtrace.join("\n");
    for function in ["mi_switch+", "kmem_alloc_wait+", "execute+", "fork_exit+"] {
        assert!(stack.contains(function), "{function} is not in:\n{stack}");
    }
    // These two are created asleep: nothing has called them yet.
    let uncalled = ["pagedaemon", "thread taskq"];
    let is_told = |name: &str, frames: usize| uncalled.contains(&name) || frames > 0;
    assert!(
        report.threads.iter().all(|thread| is_told(thread.name.as_ref(), thread.backtrace.len()))
    );
}

#[test]
fn a_backtrace_goes_through_a_trap_to_the_function_that_it_interrupted() {
    let memory = 8 << 20;
    let mut guest = Guest::builder()
        .memory(memory)
        .launch()
        .unwrap_or_else(|error| panic!("no guest: {error}"));
    let Outcome::Value(pageable) =
        call(&mut guest, 5, Op::KmemAllocWait { map: MapId::EXEC, size: PAGE })
    else {
        panic!("no room");
    };
    // t4 takes every page and waits for more, so t5's page fault has to wait.
    let waits = call(&mut guest, 4, Op::KmemAlloc { map: MapId::KERNEL, size: memory });
    assert!(matches!(waits, Outcome::Blocked { .. }), "{waits:?}");
    let waits = call(&mut guest, 5, Op::Touch { addr: GuestVirt::new(pageable), size: PAGE });
    assert!(matches!(waits, Outcome::Blocked { .. }), "{waits:?}");

    let report = look!(guest, What::Threads, Body::Threads);
    let touching = report.threads.iter().find(|thread| thread.tid == 5).expect("t5 was made");
    assert_eq!(touching.wait_message.as_deref(), Some("pfault"));
    let stack = &touching.backtrace;
    let trap = stack
        .iter()
        .position(|frame| frame.starts_with("trap_entry+"))
        .expect("the fault came by a trap");
    assert!(stack[..trap].iter().any(|frame| frame.starts_with("vm_fault+")), "{stack:#?}");
    // The access is inlined into the function that does it, and so has its offset.
    let offset = |frame: &str| frame.split([' ', '+']).nth(1).map(str::to_owned);
    let interrupted = stack.get(trap + 1).and_then(|frame| offset(frame)).expect("the access");
    assert!(
        stack[trap..].iter().any(|frame| frame.starts_with(&format!("touch+{interrupted} "))),
        "{stack:#?}"
    );
    assert!(stack[trap..].iter().any(|frame| frame.starts_with("fork_exit+")), "{stack:#?}");
}

#[test]
fn cpus_tell_what_they_run_and_where() {
    let busy = busy();
    let report = look!(busy.guest, What::Cpus, Body::Cpus);
    assert_eq!(report.cpus.len(), 1);
    let cpu = &report.cpus[0];
    // No other thread can run: the idle thread waits for requests.
    assert_eq!(cpu.thread.as_deref(), Some("host"));
    assert!(cpu.backtrace.iter().any(|frame| frame.starts_with("halt+")), "{:?}", cpu.backtrace);
    assert!(
        cpu.backtrace.last().is_some_and(|frame| frame.starts_with("body+")),
        "{:?}",
        cpu.backtrace
    );
    let register =
        |name: &str| cpu.registers.iter().find(|register| register.name == name).map(|r| r.value.0);
    assert!(register("rip").is_some_and(|rip| rip > 0xffff_ffff_8000_0000));
    assert!(register("cr3").is_some_and(|cr3| cr3 != 0));
}

#[test]
fn a_diff_tells_what_an_operation_did_and_no_more() {
    let mut busy = busy();
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let path = scratch.path().join("before.img");
    busy.guest.save_dump(&path).expect("an image can be written");
    let image = Dump::open(&path).expect("it is an image");
    let before = View::new(&image).expect("it has page tables");
    let diff = |guest: &Guest| {
        let diff = guest.look(|now| Ok(Inspection::diff(("before", &before), ("now", now))));
        match diff.expect("the guest can be read").body {
            Body::Diff(report) => report,
            other => panic!("{other:?}"),
        }
    };
    let same = diff(&busy.guest);
    assert!(same.counters.is_empty() && same.maps.is_empty() && same.pages.changes.is_empty());
    assert!(same.page_table.changes.is_empty());
    let free = busy.guest.meter().expect("the counters can be read").v_free_count.get();
    let addr = malloc(&mut busy.guest, 40);
    let report = diff(&busy.guest);
    let counter = report
        .counters
        .iter()
        .find(|change| change.counter == "v_free_count")
        .expect("it has changed");
    assert_eq!(counter.before, free);
    let taken: u64 = report
        .page_changes
        .iter()
        .filter(|change| change.after == Use::Kmem)
        .map(|c| c.pages)
        .sum();
    assert_eq!(taken, 40);
    assert_eq!(report.maps.iter().map(|map| &*map.name).collect::<Vec<_>>(), ["kmem_map"]);
    let added: Vec<_> =
        report.page_table.changes.iter().filter(|change| change.before.is_none()).collect();
    assert_eq!(added.iter().map(|change| change.entries).sum::<u64>(), 40);
    assert_eq!(added[0].start.0, addr.get());
}

#[test]
fn every_drawing_is_ascii_within_80_columns() {
    let busy = busy();
    for what in everything(&busy) {
        let inspection = busy.guest.inspect("test", &what).expect("it can be shown");
        let text = anstream::adapter::strip_str(&draw(&inspection)).to_string();
        assert!(text.is_ascii() && text.lines().count() > 2, "{what}:\n{text}");
        for line in text.lines() {
            assert!(line.len() <= WIDTH, "{what}: {} columns: {line}", line.len());
        }
    }
}

#[test]
fn json_is_one_object_with_a_schema_and_addresses_as_strings() {
    let busy = busy();
    for what in everything(&busy) {
        let inspection = busy.guest.inspect("test", &what).expect("it can be shown");
        let json = serde_json::to_value(&inspection).expect("it is JSON");
        assert_eq!((&json["schema"], &json["source"]), (&1.into(), &"test".into()));
        let name = what.to_string();
        assert_eq!(json["inspect"].as_str(), name.split(' ').next(), "{what}");
        assert_eq!(json["damage"], Value::Array(Vec::new()), "{what}");
        addresses(&json, &name);
    }
}

/// Checks that no number in `json` is an address: addresses are strings in hexadecimal.
fn addresses(json: &Value, place: &str) {
    match json {
        Value::Number(number) => {
            assert!(number.as_u64().is_none_or(|number| number < 1 << 48), "{place} is {number}");
        }
        Value::Array(items) => items.iter().for_each(|item| addresses(item, place)),
        Value::Object(items) => {
            items.iter().for_each(|(key, item)| addresses(item, &format!("{place}.{key}")))
        }
        _ => {}
    }
}

#[test]
fn an_image_shows_what_the_guest_showed() {
    let busy = busy();
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let path = scratch.path().join("guest.img");
    busy.guest.save_dump(&path).expect("an image can be written");
    let image = Dump::open(&path).expect("it is an image");
    let view = View::new(&image).expect("it has page tables");
    let symbols =
        image.symbols(vmkern::guest::KernelImage::embedded().bytes()).expect("it is this kernel");
    for what in everything(&busy) {
        // The CPU's registers change while it is not held, and its idle loop takes locks.
        if [What::Cpus, What::Summary, What::Threads, What::Locks].contains(&what) {
            continue;
        }
        let of_guest = busy.guest.inspect("test", &what).expect("it can be shown");
        assert_eq!(
            Inspection::of("test", &view, &what, &symbols).as_ref(),
            Ok(&of_guest),
            "{what}"
        );
    }
}

/// Small, fast, and good enough to choose what to damage.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("it is below a usize")
    }
}

/// The lock statistics of a guest.
fn locks(guest: &Guest) -> LocksReport {
    match guest.inspect("guest", &What::Locks).expect("it can be read").body {
        Body::Locks(report) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn locks_are_counted_by_class_as_often_as_they_are_taken() {
    const PAIRS: u64 = 50;
    let mut guest =
        Guest::builder().vcpus(2).launch().unwrap_or_else(|error| panic!("no guest: {error}"));
    let acquired = |report: &LocksReport, class: &str| {
        let class = report
            .classes
            .iter()
            .find(|known| known.class == class)
            .expect("there is such a class");
        assert_eq!(class.total.acquired, class.cpus.iter().map(|cpu| cpu.acquired).sum::<u64>());
        assert_eq!(
            (class.total.held_cycles, class.total.longest_cycles),
            (0, 0),
            "cycles were not requested"
        );
        class.total.acquired
    };
    let pair = |guest: &mut Guest| {
        let addr = malloc(guest, 1);
        assert_eq!(
            call(guest, 0, Op::KmemFree { map: MapId::KMEM, addr, size: PAGE }),
            Outcome::Ok
        );
    };
    pair(&mut guest);
    let before = locks(&guest);
    (0..PAIRS).for_each(|_| pair(&mut guest));
    let after = locks(&guest);
    // kmem_malloc locks the map once, and kmem_free once before it waits for the other CPU and once
    // after; each takes or returns a page of the CPU's cache, and locks the object at most twice.
    for (class, times) in [
        ("system map", 3 * PAIRS),
        ("vm object", 4 * PAIRS),
        ("pcpu page cache", 2 * PAIRS),
        ("vm page free queue mutex", 0),
    ] {
        assert_eq!(acquired(&after, class) - acquired(&before, class), times, "{class}");
    }
    let flushes = |report: &LocksReport| report.tlb.iter().map(|cpu| cpu.flushes).sum::<u64>();
    assert_eq!(flushes(&after) - flushes(&before), PAIRS, "one flush a kmem_free");
    let others = after.tlb.iter().map(|cpu| cpu.asked + cpu.skipped).sum::<u64>();
    assert_eq!(others, flushes(&after), "each flush reaches the other CPU or is put off there");
}

#[test]
fn pairs_flush_once_a_free_and_ask_each_other_cpu_once_at_most() {
    const PAIRS: u64 = 400;
    let builder = Guest::builder().vcpus(2).time(TimeMode::Real);
    let mut guest = builder.launch().unwrap_or_else(|error| panic!("no guest: {error}"));
    let maps: Vec<MapId> = (0..2)
        .map(|_| {
            let op =
                Op::KmemSuballoc { parent: MapId::KERNEL, size: 64 * PAGE, kind: MapKind::System };
            MapId(value(&mut guest, op))
        })
        .collect();
    for allocator in [Allocator::Malloc, Allocator::Alloc] {
        let before = locks(&guest);
        for (thread, &map) in ThreadId::all().zip(&maps) {
            let op = Op::Work(Workload::Pairs { map, size: 9 * PAGE, count: PAIRS, allocator });
            guest.submit(thread, op).expect("the guest lives");
        }
        for _ in &maps {
            assert_eq!(guest.next_response().expect("the guest lives").outcome, Outcome::Ok);
        }
        let after = locks(&guest);
        let sum = |report: &LocksReport, of: fn(&TlbReport) -> u64| {
            report.tlb.iter().map(of).sum::<u64>()
        };
        let more = |of: fn(&TlbReport) -> u64| sum(&after, of) - sum(&before, of);
        // A worker's first request creates its stack, which maps pages but flushes nothing.
        assert_eq!(
            more(|cpu| cpu.flushes),
            2 * PAIRS,
            "{allocator:?}: one flush a free of nine pages"
        );
        assert_eq!(
            more(|cpu| cpu.asked + cpu.skipped),
            2 * PAIRS,
            "{allocator:?}: the other CPU once a flush"
        );
        assert_eq!(
            more(|cpu| cpu.asked),
            more(|cpu| cpu.answered),
            "{allocator:?}: each question has an answer"
        );
        assert!(
            more(|cpu| cpu.merged) <= more(|cpu| cpu.answered),
            "{allocator:?}: only requests are answered by own flushes"
        );
    }
}

#[test]
fn cycles_that_locks_are_held_are_counted_when_asked_for() {
    let mut guest = Guest::builder()
        .tunable("debug.lock.prof.enable", 1)
        .launch()
        .unwrap_or_else(|error| panic!("no guest: {error}"));
    malloc(&mut guest, 1);
    let report = locks(&guest);
    assert!(report.profiling);
    for class in
        report.classes.iter().filter(|class| class.kind == "mutex" && class.total.acquired > 0)
    {
        let LockCounts { acquired, held_cycles, longest_cycles, .. } = class.total;
        assert!(longest_cycles > 0 && longest_cycles <= held_cycles, "{class:?}");
        assert!(
            u128::from(held_cycles) <= u128::from(longest_cycles) * u128::from(acquired),
            "{class:?}"
        );
    }
}

#[test]
fn whatever_is_damaged_each_report_comes_to_an_end() {
    let busy = busy();
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let path = scratch.path().join("guest.img");
    busy.guest.save_dump(&path).expect("an image can be written");
    let good = fs::read(&path).expect("it can be read");
    let whats = everything(&busy);
    let words: Vec<usize> =
        (4096..good.len() - 8).step_by(8).filter(|at| good[*at..at + 8] != [0; 8]).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut damaged = 0;
    for round in 0..120 {
        let mut bytes = good.clone();
        for _ in 0..1 + random.below(200) {
            let at = words[random.below(words.len())];
            let other = words[random.below(words.len())];
            match random.below(4) {
                0 => bytes[at + random.below(8)] ^= 1 << random.below(8),
                1 => bytes[at..at + 8].fill(0),
                2 => bytes[at..at + 8].fill(0xff),
                _ => bytes.copy_within(other..other + 8, at),
            }
        }
        fs::write(&path, &bytes).expect("an image can be written");
        // If the damage hits the description of the ABI, the dump is refused.
        let Ok(image) = Dump::open(&path) else { continue };
        let Ok(view) = View::new(&image) else { continue };
        let what = &whats[round % whats.len()];
        for what in [what, &What::Pages] {
            if let Ok(inspection) = Inspection::of("damaged", &view, what, &Symbols::none()) {
                damaged += usize::from(!inspection.damage.is_empty());
                let text = anstream::adapter::strip_str(&draw(&inspection)).to_string();
                assert!(text.is_ascii(), "{what}:\n{text}");
                serde_json::to_value(&inspection).expect("it is JSON");
            }
        }
    }
    assert!(damaged > 20, "{damaged}");
}
