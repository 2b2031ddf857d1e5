//! How much of each field of each structure the check covers: all of it, a part, or nothing.
//!
//! Every field of every structure that host and kernel share must be in exactly one of the three
//! tables, or a test fails: a new field needs a row that says what a flipped bit in it must cause.

/// Structures of which the check reads no field, with the reason.
pub const NOT_READ: &[(&str, &str)] = &[
    (
        "MapHome",
        "not a structure of its own: its parts are described and found as maps, entries and nodes",
    ),
    ("LockStats", "statistics: nothing depends on them"),
    ("TlbStats", "statistics: nothing depends on them"),
    ("CrashRecord", "only of a dead kernel: the report of the crash reads and checks it"),
    (
        "ControlRegion",
        "the handshake refuses what differs, and rings and log check the other side's words at \
         every use",
    ),
    ("Sleeper", "part of the control region: at any moment either value is right"),
    ("LogRing", "part of the control region: text"),
    ("ClockBase", "part of the control region: any time is possible"),
    ("Ring", "part of the control region: each side checks the other's counter at every use"),
    ("Counter", "part of a ring"),
    ("FailPoints", "part of the control region: the kernel executes no more than it understands"),
    ("FailPoint", "a site's programme and counts: any programme is possible, and any count"),
    ("FailTerm", "part of a programme: the kernel passes over an action that it does not know"),
    ("FireRecord", "a report for people"),
    ("FailStacks", "any call stack may have failed already"),
];

/// Fields that mean nothing to the check, with the reason.
pub const MEANINGLESS: &[(&str, &str, &str)] = &[
    ("VmObject", "_pad", "padding"),
    ("VmPage", "_pad", "padding"),
    ("VmPhysSeg", "_pad", "padding"),
    ("VmMapEntry", "_pad", "padding"),
    ("MapIndex", "_pad", "padding"),
    ("MapNode", "_pad", "padding"),
    ("PoolPage", "_pad", "padding"),
    ("EventhandlerList", "_pad", "padding"),
    ("StoredOp", "_pad", "padding"),
    ("SleepQueue", "_pad", "padding"),
    ("Scheduler", "_pad", "padding"),
    ("KernelPmap", "_pad", "padding"),
    ("SlabHeader", "_pad", "padding"),
    ("Pcpu", "_pad", "padding"),
    ("Pcpu", "_pad_tlb", "padding"),
    ("Pcpu", "pages", "a statistic: only the times of preemption points depend on it"),
    ("Pcpu", "longest_pages", "a statistic: nothing depends on it"),
    ("Pcpu", "clock_interrupts", "a statistic: nothing depends on it"),
    ("PageCache", "_pad", "padding"),
    ("PageCache", "allocs", "a statistic: nothing depends on it"),
    ("PageCache", "frees", "a statistic: nothing depends on it"),
    ("PageCache", "refills", "a statistic: nothing depends on it"),
    ("PageCache", "spills", "a statistic: nothing depends on it"),
    ("PageCache", "drained", "a statistic: nothing depends on it"),
    ("Pcpu", "lock_prof", "whether statistics are kept"),
    (
        "VmMap",
        "timestamp",
        "counts how often the lock was taken, as a sign for others; only a change means \
         anything",
    ),
    (
        "VmObject",
        "generation",
        "counts changes, as a sign for others; only a change means anything",
    ),
    ("VmPage", "act_count", "a hint for the pagedaemon"),
    ("Thread", "_pad", "padding"),
    ("Thread", "switches", "a statistic: nothing depends on it"),
    ("VmMeter", "v_faults", "a statistic: nothing depends on it"),
    ("VmMeter", "v_pdwakeups", "a statistic: nothing depends on it"),
    ("VmMeter", "lowmem_events", "a statistic: nothing depends on it"),
    ("VmMeter", "lowmem_failures", "a statistic: nothing depends on it"),
    ("KernelRoots", "cnt_prezero", "a statistic: nothing depends on it"),
    ("KernelRoots", "zeroidle_cursor", "where pagezero looks first: a hint"),
    (
        "Scheduler",
        "idle_passes",
        "counts time-outs without a waiter; any number below a limit is valid",
    ),
    ("KernelRoots", "vm_pageout_deficit", "a hint for the pagedaemon"),
];

/// Fields of which not every bit can be checked, or not always, with the reason.
pub const PARTLY: &[(&str, &str, &str)] = &[
    (
        "Callout",
        "deadline",
        "left over while the thread has no time-out; otherwise only the order of the heap says \
         when a sleep ends",
    ),
    ("Callout", "child", "left over from the last time-out while the thread has none"),
    ("Callout", "sibling", "left over from the last time-out while the thread has none"),
    ("Callout", "prev", "left over from the last time-out while the thread has none"),
    ("EventhandlerEntry", "priority", "only the order of the list depends on it"),
    ("EventhandlerEntry", "once", "either of two ways to be called"),
    ("Scheduler", "callout_sequence", "any number that is not below a number in use"),
    ("Scheduler", "spread", "either of two ways to work"),
    ("KernelRoots", "zero_state", "either of two states"),
    ("KernelRoots", "idlezero_enable", "either of two ways to work"),
    ("KernelRoots", "pagezero_sleeps", "either of two states"),
    ("KernelRoots", "page_cache_max", "any number that the tunable allows, if there are no caches"),
    ("StoredOp", "slot", "an operation for later: only its form can be checked"),
    ("MapReserve", "credits", "any number that the pages of the map allow"),
    ("Pcpu", "need_resched", "any of three reasons to give way"),
    ("Thread", "critnest", "of a running thread, nothing else depends on it"),
    (
        "Thread",
        "kstack_pages",
        "of the thread that continues the boot, which has no allocated stack",
    ),
    ("Thread", "md", "of a running thread, left over from its last switch"),
    ("Thread", "lastcpu", "any existing CPU"),
    ("Thread", "stall_since", "of a thread that sleeps for memory, any time before now"),
    ("Thread", "stalled", "any times that all threads together have slept"),
    ("Pressure", "since", "any time before now that the lines allow"),
    ("Pressure", "micros", "any times that the threads do not exceed: some threads have exited"),
    ("PressureLine", "total", "any time since boot that the other line allows"),
    ("PressureLine", "sampled", "any part of the present period that the other line allows"),
    ("PressureLine", "avg10", "any share"),
    ("PressureLine", "avg60", "any share"),
    ("Thread", "sq_next", "left over while the thread is awake"),
    ("Thread", "sq_prev", "left over while the thread is awake"),
    ("SleepQueue", "hash_next", "left over while the queue is not in use"),
    ("SleepQueue", "hash_prev", "left over while the queue is not in use"),
    ("SleepQueue", "spare", "left over while the queue is not in use"),
    ("SleepQueue", "wchan", "left over while the queue is not in use"),
    ("ThreadList", "head", "left over while the queue is not in use"),
    ("ThreadList", "tail", "left over while the queue is not in use"),
    ("VmMapEntry", "offset", "without an object it means nothing, but is kept up to date"),
    (
        "VmMapEntry",
        "protection",
        "everything means no more than reads and writes: no kernel memory is executable",
    ),
    ("VmMeter", "hz", "any number that the tunable allows"),
    ("VmMeter", "ticks", "any time before the next time-out, or any time if there is none"),
    (
        "VmMeter",
        "v_inactive_target",
        "depends on the number of free pages at its computation, which is not recorded",
    ),
    ("VmMeter", "v_zfod", "any number of all faults"),
    (
        "VmObject",
        "size",
        "of an anonymous object, any that reaches the end of its last entry: clipping leaves it \
         larger",
    ),
    ("VmPage", "flags", "PG_ZERO of an allocated page only says how it was requested"),
    ("VmPage", "dirty", "any of the valid chunks"),
];

/// Fields in which every flipped bit is found.
pub const CHECKED: &[(&str, &[&str])] = &[
    ("Mtx", &["owner"]),
    ("Sx", &["owner", "waiters"]),
    ("VmObject", &["ref_count", "kind", "flags", "resident_page_count", "root", "before", "after"]),
    (
        "VmPage",
        &[
            "object",
            "pindex",
            "next",
            "prev",
            "wire_count",
            "hold_count",
            "private",
            "oflags",
            "segind",
            "busy",
            "block",
            "queue",
            "valid",
            "left",
            "right",
            "parent",
        ],
    ),
    ("VmPhysSeg", &["start", "end", "fresh", "freelist", "limit"]),
    ("VmFreeList", &["head", "tail", "count"]),
    ("Balloon", &["pages"]),
    (
        "VmMapEntry",
        &[
            "prev",
            "next",
            "start",
            "end",
            "object",
            "eflags",
            "wired_count",
            "max_protection",
            "inheritance",
            "deleter",
        ],
    ),
    ("MapIndex", &["root", "height", "nodes"]),
    ("MapReserve", &["home", "unlinked", "plain_pages"]),
    ("VmMap", &["nentries", "size", "needs_wakeup", "system_map", "pmap", "next_map"]),
    ("MapNode", &["count", "level", "keys", "gaps", "spare_next", "targets"]),
    ("PoolPage", &["prev", "next"]),
    ("MapPool", &["used", "capacity", "first", "top", "last"]),
    ("EventhandlerList", &["name", "first", "next_list", "runcount"]),
    ("EventhandlerEntry", &["next", "func", "arg"]),
    ("StoredOp", &["run", "handler", "list"]),
    (
        "Thread",
        &[
            "tid",
            "state",
            "priority",
            "base_priority",
            "owepreempt",
            "name",
            "wmesg",
            "wchan",
            "sx_held",
            "timed_out",
            "intr_nesting",
            "event_nesting",
            "kstack",
            "held_locks",
            "all_next",
            "all_prev",
            "tid_next",
            "rq_next",
            "rq_prev",
            "sleepqueue",
        ],
    ),
    ("Callout", &["sequence"]),
    ("RunQueue", &["status"]),
    ("Pressure", &["stalled", "working"]),
    ("Scheduler", &["cold", "zombies", "callouts", "tids", "sleepqueues"]),
    ("Pcpu", &["allcpu_next", "curthread", "idlethread", "cpuid", "slice", "serving"]),
    ("KernelPmap", &["pml4", "resident_count", "wired_count", "table_count"]),
    ("BootTables", &["kpdphys", "kptphys", "nkpt", "valid"]),
    ("SlabHeader", &["next", "prev", "free", "free_count", "zone"]),
    ("SlabItem", &["next"]),
    ("SlabZone", &["item_size", "partial", "slabs", "free", "used"]),
    (
        "KernelRoots",
        &[
            "abi_version",
            "boot_zeroed",
            "kernel_vm_end",
            "virtual_avail",
            "maps",
            "map_list",
            "clean_map",
            "pager_map",
            "vm_page_array",
            "first_page",
            "vm_page_array_size",
            "vm_phys_segs",
            "vm_phys_nsegs",
            "vm_page_zero_count",
            "page_cache_floor",
            "vm_pages_needed",
            "vm_pageout_pages_needed",
            "vm_pages_wanted",
            "eventhandler_lists",
            "pageproc",
            "boot_held_locks",
            "map_pages",
            "cpuhead",
        ],
    ),
    (
        "VmMeter",
        &[
            "v_page_count",
            "v_free_count",
            "v_cache_count",
            "v_active_count",
            "v_inactive_count",
            "v_wire_count",
            "v_free_reserved",
            "v_free_min",
            "v_free_severe",
            "v_free_target",
            "v_pageout_free_min",
            "v_cache_min",
            "v_cache_max",
            "v_interrupt_free_min",
            "v_swapin",
            "v_swapout",
            "thread_count",
            "ncpu",
        ],
    ),
    ("PML4E", &["bits"]),
    ("PDPTE", &["bits"]),
    ("PDE", &["bits"]),
    ("PTE", &["bits"]),
];

/// How much of a field the check covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meaning {
    /// Every flipped bit is found.
    Checked,
    /// Not every bit can be checked, or not always, for this reason.
    Partly(&'static str),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

/// How much of `field` of `structure` the check covers; `None` if it is in no table.
///
/// # Panics
/// When it is in several tables.
#[must_use]
pub fn meaning(structure: &str, field: &str) -> Option<Meaning> {
    let is = |&&(own, name, _): &&(&str, &str, &str)| own == structure && name == field;
    let checked =
        CHECKED.iter().filter(|(own, fields)| *own == structure && fields.contains(&field));
    let mut all: Vec<Meaning> = checked.map(|_| Meaning::Checked).collect();
    all.extend(PARTLY.iter().filter(is).map(|(.., reason)| Meaning::Partly(reason)));
    all.extend(MEANINGLESS.iter().filter(is).map(|(.., reason)| Meaning::Nothing(reason)));
    all.extend(
        NOT_READ
            .iter()
            .filter(|(own, _)| *own == structure)
            .map(|(_, reason)| Meaning::Nothing(reason)),
    );
    assert!(all.len() <= 1, "{structure}.{field} is in several tables");
    all.pop()
}
