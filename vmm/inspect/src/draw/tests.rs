//! Drawings of fixed data, compared exactly.

use vmkern_abi::layout::{EntryFlags, ObjectFlags, PageFlags, PageOflags, Protection};
use vmkern_abi::pte::PteFlags;

use super::{WIDTH, draw};
use crate::report::{
    Body, CachedPages, CauseReport, Change, Changes, Counted, CounterChange, CpuReport, CpusReport,
    Damage, DiffReport, EntryReport, FailPointReport, FailReport, FireReport, FreeList, Hex,
    Inspection, InterruptReport, LockClassReport, LockCounts, LockReport, LocksReport, MapDiff,
    MapEntriesReport, MapLine, MapReport, MapRoom, MappedReport, MappingReport, MapsReport,
    ObjectBrief, ObjectRef, ObjectReport, ObjectsReport, PageCacheReport, PageChange,
    PageChangeCount, PageReport, PageState, PageTableReport, PagesReport, Picture,
    PressureLineReport, PressureReport, PteChange, PteState, Queues, RamReport, Region,
    RegisterReport, RunReport, SCHEMA, SegmentReport, Share, StalledThread, StepReport, Stretch,
    SummaryReport, Tables, ThreadReport, ThreadsReport, ThresholdReport, TlbReport, Use, UseCount,
    VtopReport,
};

const KVA: u64 = 0xffff_ff80_0000_0000;

/// Checks that the drawing is the one in `golden`.
fn check(golden: &str, body: Body, damage: Vec<Damage>) {
    let inspection =
        Inspection { schema: SCHEMA, source: "test".to_owned(), body, damage, damage_left_out: 0 };
    let text = anstream::adapter::strip_str(&draw(&inspection)).to_string();
    assert!(text.is_ascii() && text.lines().all(|line| line.len() <= WIDTH), "{text}");
    assert_eq!(text, golden, "\n{text}");
}

fn entry(start: u64, pages: u64, object: ObjectRef, flags: EntryFlags) -> EntryReport {
    EntryReport {
        at: Hex(0xffff_ff00_0101_0100),
        start: Hex(KVA + start * 4096),
        end: Hex(KVA + (start + pages) * 4096),
        protection: Protection::READ | Protection::WRITE,
        max_protection: Protection::ALL,
        wired: u32::from(object == ObjectRef::Kmem),
        offset: Hex(start * 4096),
        object,
        flags,
    }
}

fn map(name: &str, depth: u32, bar: Vec<Stretch>) -> MapReport {
    MapReport {
        name: name.into(),
        at: Hex(0xffff_ff00_0100_2000),
        parent: (depth > 0).then(|| "kernel_map".into()),
        depth,
        system: depth == 0,
        locked_by: (depth == 0).then_some(65),
        start: Hex(KVA),
        end: Hex(KVA + (24 << 20)),
        entry_count: 2,
        used_bytes: 6 << 20,
        free_bytes: 18 << 20,
        holes: 2,
        largest_hole: 12 << 20,
        fragmentation: 34,
        bar,
    }
}

fn bar() -> Vec<Stretch> {
    let stretch = |from: u64, to: u64, cells: &str| Stretch {
        start: Hex(KVA + from),
        end: Hex(KVA + to),
        bytes_per_cell: 1 << 20,
        cells: cells.to_owned(),
    };
    vec![
        stretch(0, 8 << 20, "~~##+-.."),
        stretch(8 << 20, 20 << 20, ""),
        stretch(20 << 20, 24 << 20, "-..."),
    ]
}

fn page_state() -> PageState {
    PageState {
        at: Hex(0xffff_ff00_03f4_0cc0),
        object: ObjectRef::Kmem,
        pindex: 3,
        wired: 1,
        held: 0,
        queue: "none".to_owned(),
        heads_block_of_order: None,
        flags: PageFlags::ALLOCATED | PageFlags::UNMANAGED,
        oflags: PageOflags::BUSY,
        valid: Hex(0xff),
        dirty: Hex(0),
    }
}

fn object() -> ObjectBrief {
    ObjectBrief {
        name: ObjectRef::Kmem,
        at: Hex(0xffff_ff00_03f0_2120),
        kind: "phys".to_owned(),
        references: 3,
        resident: 5,
        size: 134_217_727,
        flags: ObjectFlags::empty(),
        locked_by: None,
    }
}

fn pte() -> PteFlags {
    PteFlags::V
        | PteFlags::RW
        | PteFlags::A
        | PteFlags::M
        | PteFlags::G
        | PteFlags::W
        | PteFlags::NX
}

#[test]
fn maps_are_a_tree_of_bars() {
    let maps = vec![map("kernel_map", 0, bar()), map("kmem_map", 1, bar())];
    check(include_str!("golden/maps.txt"), Body::Maps(MapsReport { maps }), Vec::new());
}

#[test]
fn a_maps_entries_are_lines_and_damage_stands_below_them() {
    let anonymous = ObjectRef::Anonymous(Hex(0xffff_ff00_011a_9040));
    let mut moved = entry(90, 4, anonymous, EntryFlags::COW);
    (moved.offset, moved.wired) = (Hex(0x3000), u32::MAX);
    let entries = vec![
        entry(0, 5, ObjectRef::Kmem, EntryFlags::empty()),
        entry(8, 70, ObjectRef::SubMap("exec_map".into()), EntryFlags::IS_SUB_MAP),
        entry(80, 5, ObjectRef::None, EntryFlags::NOFAULT | EntryFlags::IN_TRANSITION),
        moved,
    ];
    let report = MapEntriesReport { map: map("kernel_map", 0, bar()), entries, left_out: 3 };
    let problem =
        "its prev is 0xdeadbeef, but the list came from somewhere else, as far as can be told"
            .to_owned();
    let damage = Damage {
        structure: "vm_map_entry".to_owned(),
        at: Some(Hex(0xffff_ff00_0101_0140)),
        problem,
    };
    check(include_str!("golden/map.txt"), Body::Map(Box::new(report)), vec![damage]);
}

#[test]
fn objects_are_a_table() {
    let other = ObjectBrief {
        name: ObjectRef::Anonymous(Hex(0xffff_ff00_011a_9040)),
        kind: "default".to_owned(),
        flags: ObjectFlags::ONEMAPPING,
        size: 15,
        ..object()
    };
    let objects = vec![
        ObjectReport { object: object(), entries: 2, pages: 5 },
        ObjectReport { object: other, entries: 1, pages: 4 },
    ];
    check(include_str!("golden/objects.txt"), Body::Objects(ObjectsReport { objects }), Vec::new());
}

#[test]
fn pages_are_counted_and_shown_as_a_picture() {
    let counts = [
        (Use::Unmanaged, 512),
        (Use::Fresh, 14_000),
        (Use::Free, 300),
        (Use::PerCpu, 70),
        (Use::Kmem, 1_430),
        (Use::PageTable, 72),
    ];
    let row = |c: char| c.to_string().repeat(64);
    let mut rows = vec![row('='), format!("{}{}", "Mm:t".repeat(8), ".".repeat(32))];
    rows.extend(std::iter::repeat_n(row('.'), 5));
    rows.push(format!("{}{}", "..".repeat(16), "=".repeat(32)));
    let report = PagesReport {
        ram_pages: 16_384,
        segments: vec![SegmentReport { start: 512, end: 16_384, fresh: 2_384, limit: 16_384 }],
        uses: counts.map(|(kind, pages)| UseCount { kind, pages }).to_vec(),
        queues: Queues { wired: 1_572, active: 0, inactive: 0 },
        free_lists: vec![FreeList {
            list: "default",
            blocks: vec![4, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1234, 0, 123_456],
        }],
        page_cache_floor: 812,
        page_caches: vec![
            PageCacheReport {
                cpu: 0,
                pages: 6,
                allocs: 9_000,
                frees: 8_994,
                refills: 31,
                spills: 30,
                drained: 0,
            },
            PageCacheReport {
                cpu: 1,
                pages: 64,
                allocs: 0,
                frees: 64,
                refills: 0,
                spills: 0,
                drained: 0,
            },
        ],
        counters: vec![
            Counted { counter: "v_free_count", says: 14_370, found: 14_370 },
            Counted { counter: "v_wire_count", says: 1_573, found: 1_572 },
        ],
        picture: Picture { pages_per_cell: 32, rows },
    };
    check(include_str!("golden/pages.txt"), Body::Pages(Box::new(report)), Vec::new());
}

#[test]
fn a_page_tells_who_maps_it() {
    let mapping = |va: u64, span: u64, entry: Option<EntryReport>| MappingReport {
        va: Hex(va),
        span,
        flags: pte(),
        pte_at: Hex(0x100_4008),
        map: entry.is_some().then(|| "kmem_map".to_owned()),
        entry,
    };
    let entry = entry(0, 5, ObjectRef::Kmem, EntryFlags::empty());
    let report = PageReport {
        pfn: 0x1041,
        phys: Hex(0x104_1000),
        kind: Use::Kmem,
        state: Some(page_state()),
        mappings: vec![
            mapping(0xffff_ff00_0104_1000, 2 << 20, None),
            mapping(KVA + 0x3000, 4096, Some(entry)),
        ],
        left_out: 0,
    };
    check(include_str!("golden/page.txt"), Body::Page(Box::new(report)), Vec::new());
}

fn step(level: &'static str, index: usize, bits: u64, flags: PteFlags) -> StepReport {
    StepReport {
        level,
        table: Hex(0x13_2000),
        index,
        at: Hex(0x13_2000 + index as u64 * 8),
        bits: Hex(bits),
        leads_to: (bits != 0).then_some(Hex(bits & 0xf_ffff_f000)),
        flags,
    }
}

#[test]
fn a_walk_is_a_staircase() {
    let upper = PteFlags::V | PteFlags::RW | PteFlags::U | PteFlags::A;
    let mut report = VtopReport {
        va: Hex(KVA + 0x3000),
        region: Region::KernelMap,
        canonical: true,
        steps: vec![
            step("PML4", 511, 0x13_3027, upper),
            step("PDPT", 0, 0x100_3067, upper),
            step("PD", 0, 0x100_4067, upper),
            step("PT", 3, 0x8000_0000_0104_1367, pte()),
        ],
        reserved: None,
        unreadable: None,
        mapping: Some(MappedReport { phys: Hex(0x104_1000), span: 4096, flags: pte() }),
        map: Some("kmem_map".to_owned()),
        entry: Some(entry(0, 5, ObjectRef::Kmem, EntryFlags::empty())),
        object: Some(object()),
        pfn: Some(0x1041),
        page: Some(page_state()),
    };
    check(include_str!("golden/vtop.txt"), Body::Vtop(Box::new(report.clone())), Vec::new());
    report.steps.truncate(1);
    report.steps[0] = step("PML4", 8, 0, PteFlags::empty());
    report = VtopReport {
        region: Region::Low,
        canonical: false,
        mapping: None,
        map: None,
        entry: None,
        ..report
    };
    report =
        VtopReport { object: None, pfn: None, page: None, va: Hex(0x8000_0000_0000), ..report };
    check(include_str!("golden/vtop-nothing.txt"), Body::Vtop(Box::new(report)), Vec::new());
}

#[test]
fn a_walk_that_ends_early_shows_the_levels_that_were_read_and_why() {
    let flags = PteFlags::V | PteFlags::RW | PteFlags::A;
    let mut report = VtopReport {
        va: Hex(KVA + 0x3000),
        region: Region::KernelMap,
        canonical: true,
        steps: vec![
            step("PML4", 511, 0x13_3027, flags),
            step("PDPT", 0, 0x20_20e7, flags | PteFlags::PS),
        ],
        reserved: Some(Hex(1 << 13 | 1 << 14 | 1 << 51)),
        unreadable: None,
        mapping: None,
        map: None,
        entry: None,
        object: None,
        pfn: None,
        page: None,
    };
    let text = |report: &VtopReport| {
        let body = Body::Vtop(Box::new(report.clone()));
        let inspection = Inspection {
            schema: SCHEMA,
            source: "test".to_owned(),
            body,
            damage: Vec::new(),
            damage_left_out: 0,
        };
        anstream::adapter::strip_str(&draw(&inspection)).to_string()
    };
    let refused = text(&report);
    assert!(
        refused.contains("PDPT[0]")
            && refused.contains("= the CPU refuses the entry: reserved bits set: 13 to 14, 51"),
        "{refused}"
    );
    (report.reserved, report.unreadable) = (None, Some("page table: no RAM".to_owned()));
    let unread = text(&report);
    assert!(
        unread.contains("PDPT[0]")
            && unread.contains("= the next table cannot be read: page table: no RAM"),
        "{unread}"
    );
}

#[test]
fn page_tables_are_runs_by_region() {
    let run = |start: u64, entries: u64, span: u64, region, contiguous| RunReport {
        start: Hex(start),
        last: Hex(start + (entries * span - 1)),
        span,
        entries,
        phys: Hex(0x104_1000),
        contiguous,
        flags: pte(),
        region,
    };
    let report = PageTableReport {
        root: Hex(0x13_2000),
        start: Hex(0),
        last: Hex(u64::MAX),
        tables: Tables { pml4: 1, pdpt: 2, pd: 3, pt: 41 },
        entries: 32_768 + 6,
        bytes: 64 << 30,
        runs: vec![
            run(0xffff_ff00_0000_0000, 32_768, 2 << 20, Region::DirectMap, true),
            run(KVA, 5, 4096, Region::KernelMap, false),
            run(0xffff_ffff_ffff_f000, 1, 4096, Region::KernelMap, true),
        ],
        left_out: 0,
    };
    check(include_str!("golden/pagetable.txt"), Body::PageTable(Box::new(report)), Vec::new());
}

#[test]
fn threads_tell_their_stacks() {
    let thread = |tid: u32, name: &str, state: &str| ThreadReport {
        at: Hex(0xffff_ff00_0100_0140),
        tid,
        name: name.to_owned(),
        state: state.to_owned(),
        wait_channel: None,
        wait_message: None,
        wakes_at: None,
        priority: 160,
        base_priority: 160,
        sx_held: 0,
        switches: 12,
        stack: None,
        backtrace: vec!["body+0x159b (main.rs:59)".to_owned()],
    };
    let long = "a_function_with_a_name_that_is_longer_than_any_line_can_be+0x2ca \
                (a/file/somewhere.rs:287)";
    let sleeper = ThreadReport {
        wait_channel: Some(Hex(0xffff_ff00_011a_8068)),
        wait_message: Some("vmmaps".to_owned()),
        wakes_at: Some(107),
        priority: 68,
        sx_held: 1,
        stack: Some((Hex(KVA + 0x3000), Hex(KVA + 0x7000))),
        backtrace: vec!["mi_switch+0x2f2 (kern/sched.rs:213)".to_owned(), long.to_owned()],
        ..thread(3, "t3", "sleeping")
    };
    let threads = vec![thread(64, "host", "running"), sleeper];
    check(
        include_str!("golden/threads.txt"),
        Body::Threads(ThreadsReport { ticks: 100, threads }),
        Vec::new(),
    );
}

#[test]
fn cpus_tell_their_registers() {
    let registers = [("rax", 1), ("rcx", KVA), ("rip", 0xffff_ffff_8010_10b7), ("rflags", 0x282)];
    let cpu = CpuReport {
        cpu: 0,
        state: "halted",
        cpl: Some(3),
        thread: Some("host".to_owned()),
        page_cache: Some(CachedPages { pages: 12, max: 64 }),
        registers: registers
            .map(|(name, value)| RegisterReport { name, value: Hex(value) })
            .to_vec(),
        backtrace: vec!["body+0x159b (main.rs:59)".to_owned()],
    };
    check(include_str!("golden/cpus.txt"), Body::Cpus(CpusReport { cpus: vec![cpu] }), Vec::new());
}

#[test]
fn fail_points_are_a_table_with_the_last_failure_below_it() {
    let point = |site, hits, fires, programme: Option<&str>| FailPointReport {
        site,
        armed: programme.is_some(),
        programme: programme.map(str::to_owned).filter(|text| !text.is_empty()),
        hits,
        fires,
        effect: "a page of any class is refused as if the class's floor were reached",
    };
    let long = "12.5%7*off->3*off->2.5%10*return(18446744073709551)";
    let sites = vec![
        point("vm_page_alloc.interrupt", 12_345_678_901, 12, Some(long)),
        point("tsleep", 3, 0, Some("")),
        point("intr_window", 0, 0, None),
    ];
    let last = FireReport {
        site: "vm_page_alloc.interrupt",
        hit: 40,
        thread: Some(7),
        backtrace: vec!["fail_point_eval+0x1b (fail.rs:59)".to_owned(), "body+0x9".to_owned()],
    };
    let report = FailReport { sites, last: Some(last) };
    check(include_str!("golden/fail.txt"), Body::Fail(report.clone()), Vec::new());
    let text = draw(&Inspection {
        schema: SCHEMA,
        source: "test".to_owned(),
        body: Body::Fail(FailReport { last: None, ..report }),
        damage: Vec::new(),
        damage_left_out: 0,
    });
    assert!(text.ends_with("\nnothing has failed there yet\n"), "{text}");
}

#[test]
fn locks_are_summed_and_told_by_cpu() {
    let cpu = |n: u64| LockCounts {
        acquired: 1000 * n,
        contested: n,
        waited_cycles: 300 * n,
        held_cycles: 50_000 * n,
        longest_cycles: 700 * n,
    };
    let total = LockCounts { longest_cycles: 1400, ..cpu(3) };
    let class = |class, kind| LockClassReport { class, kind, total, cpus: vec![cpu(1), cpu(2)] };
    let unused = LockClassReport {
        class: "pmap",
        kind: "mutex",
        total: LockCounts::default(),
        cpus: vec![LockCounts::default(); 2],
    };
    let asked = TlbReport {
        flushes: 40,
        shootdowns: 30,
        asked: 31,
        interrupts: 4,
        skipped: 9,
        answered: 2,
        merged: 1,
        caught_up: 1,
    };
    let report = LocksReport {
        profiling: true,
        classes: vec![class("vm page free queue mutex", "mutex"), unused, class("user map", "sx")],
        tlb: vec![asked, TlbReport::default()],
        cpus: vec![
            InterruptReport { clock_interrupts: 12, longest_pages: 34 },
            InterruptReport::default(),
        ],
    };
    check(include_str!("golden/locks.txt"), Body::Locks(report), Vec::new());
}

#[test]
fn pressure_begins_with_what_hurts() {
    let line = |avg10, avg60, total| PressureLineReport {
        avg10: Share(avg10),
        avg60: Share(avg60),
        total,
    };
    let cause = |cause, sleepers, micros| CauseReport { cause, sleepers, micros };
    let threshold = |name, pages| ThresholdReport { name, pages };
    let room = |name: &str, free_bytes, holes, largest_hole, waiters| MapRoom {
        name: name.to_owned(),
        free_bytes,
        holes,
        largest_hole,
        waiters,
    };
    let thread = |tid: u32, micros, now, map: Option<&str>| StalledThread {
        tid,
        name: format!("t{tid}"),
        micros,
        causes: vec![("vmwait", micros)],
        now,
        for_micros: now.map(|_| 1500),
        map: map.map(str::to_owned),
    };
    let report = PressureReport {
        diagnosis: vec![
            "37 pages free, below v_free_reserved 40: NORMAL allocations fail or wait, SYSTEM \
             ones get a page"
                .to_owned(),
            "kmem_map has 3.1 MiB free in holes of at most 12 KiB: fragmentation, not shortage"
                .to_owned(),
        ],
        now: 12_345_678,
        state: "some",
        some: line(6321, 1535, 10_000_000),
        full: line(0, 9, 1500),
        free_pages: 37,
        pages: 15_797,
        seized_pages: 463,
        balloon_pages: 0,
        thresholds: vec![
            threshold("v_free_target", 800),
            threshold("v_free_min", 200),
            threshold("v_free_reserved", 40),
            threshold("v_interrupt_free_min", 2),
        ],
        pages_wanted: 0,
        causes: vec![cause("vmwait", 1, 9_998_500), cause("nokva", 1, 1500)],
        threads: vec![
            thread(3, 9_998_500, Some("vmwait"), None),
            thread(4, 1500, Some("nokva"), Some("kmem_map")),
            thread(5, 700_000, None, None),
        ],
        maps: vec![
            room("kernel_map", 400 << 20, 12, 399 << 20, 0),
            room("kmem_map", 0x31_a000, 270, 12 << 10, 1),
        ],
    };
    check(include_str!("golden/pressure.txt"), Body::Pressure(Box::new(report)), Vec::new());
}

#[test]
fn a_summary_fits_on_a_screen() {
    let line = |name: &str, depth, used_bytes| MapLine {
        name: name.into(),
        depth,
        bytes: 24 << 20,
        used_bytes,
        entries: 12,
        fragmentation: 3,
    };
    let report = SummaryReport {
        ram: vec![RamReport { start: Hex(0), end: Hex(64 << 20) }],
        abi: Some(2),
        panic: Some(
            "vm_fault: fault on nofault entry, addr: ffffff8001801000, and some more words"
                .to_owned(),
        ),
        cpus: [("ended", 1)].into(),
        threads: [("running".to_owned(), 1), ("sleeping".to_owned(), 3)].into(),
        waits: [("vmmaps".to_owned(), 2), ("psleep".to_owned(), 1)].into(),
        locks: vec![LockReport { lock: "vm_page_queue_free_mtx", thread: 3 }],
        maps: vec![
            line("kernel_map", 0, 24 << 20),
            line("kmem_map", 1, 4096),
            line("0xffffff00011a8000", 1, 0),
        ],
        objects: 3,
        uses: vec![
            UseCount { kind: Use::Fresh, pages: 16_000 },
            UseCount { kind: Use::Kernel, pages: 384 },
        ],
        tables: Tables { pml4: 1, pdpt: 2, pd: 3, pt: 41 },
        counters: [("v_free_count", 15_361), ("v_page_count", 15_797), ("hz", 100), ("ticks", 7)]
            .into(),
    };
    check(include_str!("golden/summary.txt"), Body::Summary(Box::new(report)), Vec::new());
}

#[test]
fn a_diff_shows_what_came_and_what_went() {
    let changes = vec![
        Change { before: Some(entry(0, 5, ObjectRef::Kmem, EntryFlags::empty())), after: None },
        Change { before: None, after: Some(entry(0, 8, ObjectRef::Kmem, EntryFlags::empty())) },
    ];
    let state = |flags| Some(PteState { phys: Hex(0x104_1000), flags });
    let pte_change = |start: u64, before, after| PteChange {
        start: Hex(KVA + start),
        last: Hex(KVA + start + 0xfff),
        span: 4096,
        entries: 1,
        before,
        after,
    };
    let report = DiffReport {
        before: "a.img".to_owned(),
        after: "b.img".to_owned(),
        counters: vec![CounterChange { counter: "v_free_count", before: 15_361, after: 15_358 }],
        maps: vec![MapDiff {
            name: "kmem_map".into(),
            present: "both",
            entries: Changes { changes, left_out: 2 },
        }],
        page_changes: vec![PageChangeCount { before: Use::Fresh, after: Use::Kmem, pages: 3 }],
        pages: Changes {
            changes: vec![PageChange {
                pfn: 0x1043,
                pages: 3,
                before: Use::Fresh,
                after: Use::Kmem,
            }],
            left_out: 0,
        },
        page_table: Changes {
            changes: vec![
                pte_change(0x5000, None, state(pte())),
                pte_change(0x9000, state(pte()), None),
                pte_change(0xa000, state(pte()), state(pte() - PteFlags::W)),
            ],
            left_out: 0,
        },
        accessed_or_modified: 1,
    };
    check(include_str!("golden/diff.txt"), Body::Diff(Box::new(report)), Vec::new());
}
