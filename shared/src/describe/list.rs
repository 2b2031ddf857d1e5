//! The structures, each with all its fields. A structure with private fields is described where it
//! is defined.

use super::{Described, Structure};
use crate::clock::ClockBase;
use crate::control::{ControlRegion, RING_SLOTS, Ring, Sleeper};
use crate::crash::CrashRecord;
use crate::fail::{FailPoint, FailPoints, FailStacks, FailTerm, FireRecord};
use crate::layout::*;
use crate::log::LogRing;

describe!(Mtx { owner });
describe!(Sx { owner, waiters });
describe!(LockStats { acquired, contested, waited, held, longest, since });
describe!(VmObject {
    lock,
    ref_count,
    kind,
    flags,
    size,
    resident_page_count,
    generation,
    root,
    before,
    after,
    _pad
});
describe!(VmPage {
    object,
    pindex,
    next,
    prev,
    wire_count,
    hold_count,
    private,
    flags,
    oflags,
    segind,
    busy,
    block,
    queue,
    act_count,
    valid,
    dirty,
    _pad,
    left,
    right,
    parent
});
describe!(VmPhysSeg { start, end, fresh, freelist, limit, _pad });
describe!(VmFreeList { head, tail, count });
describe!(VmMapEntry {
    prev,
    next,
    start,
    end,
    object,
    offset,
    eflags,
    wired_count,
    protection,
    max_protection,
    inheritance,
    _pad,
    deleter
});
describe!(MapIndex { root, height, _pad, nodes });
describe!(MapReserve { home, entries, nodes, unlinked, credits, plain_pages });
describe!(VmMap {
    header,
    nentries,
    size,
    lock,
    timestamp,
    needs_wakeup,
    system_map,
    pmap,
    index,
    reserve,
    next_map,
    sx
});
describe!(MapNode { count, level, keys, _pad, gaps, spare_next, targets });
describe!(PoolPage { prev, next, _pad });
describe!(MapPool { used, capacity, first, top, last });
describe!(MapHome { map, entries, nodes });
describe!(EventhandlerList { name, first, next_list, runcount, _pad });
describe!(EventhandlerEntry { next, func, arg, priority, once });
describe!(StoredOp { slot, run, handler, list, _pad });
describe!(Thread {
    tid,
    state,
    priority,
    base_priority,
    owepreempt,
    lastcpu,
    critnest,
    event_nesting,
    name,
    wmesg,
    wchan,
    sx_held,
    timed_out,
    intr_nesting,
    kstack,
    kstack_pages,
    held_locks,
    all_next,
    all_prev,
    tid_next,
    rq_next,
    rq_prev,
    sq_next,
    sq_prev,
    sleepqueue,
    callout,
    md,
    switches,
    stall_since,
    stalled,
    _pad
});
describe!(PressureLine { total, sampled, avg10, avg60 });
describe!(Pressure { stalled, working, since, some, full, micros });
describe!(Callout { deadline, sequence, child, sibling, prev });
describe!(SleepQueue { hash_next, hash_prev, wchan, blocked, spare, _pad });
describe!(ThreadList { head, tail });
describe!(RunQueue { status, queues });
describe!(Scheduler {
    lock,
    cold,
    spread,
    _pad,
    all,
    zombies,
    callouts,
    callout_sequence,
    idle_passes,
    pressure,
    tids,
    sleepqueues
});
describe!(Pcpu {
    allcpu_next,
    curthread,
    idlethread,
    cpuid,
    need_resched,
    slice,
    runq,
    serving,
    _pad,
    locks,
    lock_prof,
    tlb,
    pages,
    longest_pages,
    clock_interrupts,
    _pad_tlb,
    page_cache
});
describe!(PageCache { lock, _pad, pages, allocs, frees, refills, spills, drained });
describe!(TlbStats {
    flushes,
    shootdowns,
    asked,
    interrupts,
    skipped,
    answered,
    merged,
    caught_up
});
describe!(KernelPmap { lock, _pad, pml4, resident_count, wired_count, table_count });
describe!(BootTables { kpdphys, kptphys, nkpt, valid });
describe!(SlabHeader { next, prev, free, free_count, zone, _pad });
describe!(SlabItem { next });
describe!(SlabZone { lock, item_size, partial, slabs, free, used });
describe!(Balloon { pages, held, leaving });
describe!(KernelRoots {
    abi_version,
    boot_zeroed,
    meter,
    kernel_pmap,
    kernel_vm_end,
    virtual_avail,
    maps,
    map_list,
    clean_map,
    pager_map,
    kernel_object,
    kmem_object,
    vm_page_array,
    first_page,
    vm_page_array_size,
    vm_phys_segs,
    vm_phys_nsegs,
    vm_phys_free_queues,
    vm_seized_queues,
    vm_page_zero_count,
    zero_state,
    idlezero_enable,
    pagezero_sleeps,
    zeroidle_cursor,
    cnt_prezero,
    page_cache_floor,
    page_cache_max,
    vm_pageout_deficit,
    vm_page_queues,
    vm_pages_needed,
    vm_pageout_pages_needed,
    vm_pages_wanted,
    eventhandler_lists,
    pageproc,
    eventhandler_mtx,
    map_sleep_mtx,
    vm_page_queue_free_mtx,
    vm_page_queue_mtx,
    boot_held_locks,
    driver_mtx,
    map_pages,
    zones,
    sched,
    cpuhead,
    boot_tables,
    balloon
});
describe!(CrashRecord {
    kind,
    cpu,
    thread,
    vector,
    error_code,
    rip,
    rflags,
    cr2,
    cr3,
    gpr,
    message_len,
    frames_len,
    in_interrupt,
    _pad,
    message,
    frames
});
describe!(ClockBase { start_tsc, tsc_khz, hz, is_real, slept });
describe!(ControlRegion {
    magic,
    host_abi_version,
    guest_abi_version,
    abi_hash,
    description,
    description_len,
    phase,
    body_cpl,
    cpl0_cycles,
    pausing,
    paging,
    fail_armed,
    roots,
    entry_tsc,
    ready_tsc,
    pml4,
    clock,
    guest_sleeper,
    host_sleeper,
    requests,
    responses,
    crash,
    log,
    fail
});
describe!(FailTerm { left, argument, chance, action });
describe!(FailPoint { generation, length, hits, fires, terms });
describe!(FireRecord { site, thread, hit, frames_len, _pad, frames });
describe!(FailStacks { on, length, hashes });
describe!(FailPoints { random, points, last, stacks });

/// Every structure that host and kernel share.
pub const STRUCTURES: &[Structure] = &[
    VmMeter::DESCRIPTION,
    Mtx::DESCRIPTION,
    Sx::DESCRIPTION,
    LockStats::DESCRIPTION,
    VmObject::DESCRIPTION,
    VmPage::DESCRIPTION,
    VmPhysSeg::DESCRIPTION,
    VmFreeList::DESCRIPTION,
    VmMapEntry::DESCRIPTION,
    MapIndex::DESCRIPTION,
    MapReserve::DESCRIPTION,
    VmMap::DESCRIPTION,
    MapNode::DESCRIPTION,
    PoolPage::DESCRIPTION,
    MapPool::DESCRIPTION,
    MapHome::DESCRIPTION,
    EventhandlerList::DESCRIPTION,
    EventhandlerEntry::DESCRIPTION,
    StoredOp::DESCRIPTION,
    Thread::DESCRIPTION,
    Callout::DESCRIPTION,
    SleepQueue::DESCRIPTION,
    ThreadList::DESCRIPTION,
    RunQueue::DESCRIPTION,
    Scheduler::DESCRIPTION,
    PressureLine::DESCRIPTION,
    Pressure::DESCRIPTION,
    Pcpu::DESCRIPTION,
    PageCache::DESCRIPTION,
    TlbStats::DESCRIPTION,
    KernelPmap::DESCRIPTION,
    BootTables::DESCRIPTION,
    SlabHeader::DESCRIPTION,
    SlabItem::DESCRIPTION,
    SlabZone::DESCRIPTION,
    Balloon::DESCRIPTION,
    KernelRoots::DESCRIPTION,
    CrashRecord::DESCRIPTION,
    ControlRegion::DESCRIPTION,
    FailTerm::DESCRIPTION,
    FailPoint::DESCRIPTION,
    FireRecord::DESCRIPTION,
    FailStacks::DESCRIPTION,
    FailPoints::DESCRIPTION,
    ClockBase::DESCRIPTION,
    Sleeper::DESCRIPTION,
    LogRing::DESCRIPTION,
    Ring::<RING_SLOTS>::DESCRIPTION,
    crate::control::COUNTER,
];
