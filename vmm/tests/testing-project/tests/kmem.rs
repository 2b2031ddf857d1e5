use vmkern::testing::{self, Balance, CallResult, Calls as _, ScriptFailure};
use vmkern::{Guest, MallocFlags, MapId, MapKind, ThreadId};

const PAGE: u64 = 4096;
const T1: ThreadId = ThreadId::nth::<1>();
const NOWAIT: MallocFlags = MallocFlags::NOWAIT;

#[test]
fn a_freed_block_leaves_nothing_behind() -> CallResult<()> {
    let Some(mut guest) = testing::guest() else { return Ok(()) };
    let before = Balance::of(&guest);
    let addr = guest.kmem_malloc(MapId::KMEM, 3 * PAGE, NOWAIT)?.expect("kmem_map is empty");
    guest.fill(addr, 3 * PAGE, 7)?;
    guest.verify(addr, 3 * PAGE, 7)?;
    guest.kmem_free(MapId::KMEM, addr, 3 * PAGE)?;
    before.assert_back(&guest);
    Ok(())
}

#[test]
fn a_thread_waits_for_room_until_another_makes_some() -> CallResult<()> {
    let Some(mut guest) = testing::guest() else { return Ok(()) };
    let map = guest.kmem_suballoc(MapId::KERNEL, 8 * PAGE, MapKind::User)?;
    let all = guest.kmem_alloc_wait(map, 8 * PAGE)?.expect("the map is empty");
    let waits = guest.start(T1).kmem_alloc_wait(map, 3 * PAGE)?;
    guest.expect_blocked(T1, "vmmaps");
    guest.kmem_free_wakeup(map, all, 8 * PAGE)?;
    assert_eq!(waits.join(&mut guest)?, Some(all));
    Ok(())
}

#[test]
fn reading_freed_memory_is_a_page_fault() -> CallResult<()> {
    let Some(mut guest) = testing::guest() else { return Ok(()) };
    let addr = guest.kmem_malloc(MapId::KMEM, PAGE, NOWAIT)?.expect("kmem_map is empty");
    guest.kmem_free(MapId::KMEM, addr, PAGE)?;
    let crash = guest.expect_panic("page fault").read(addr);
    assert_eq!(crash.cr2, addr);
    Ok(())
}

#[test]
fn without_pages_nowait_fails_and_waitok_waits() -> CallResult<()> {
    let small = Guest::builder().memory(16 << 20).tunable("vm.kmem_size", 24 << 20);
    let Some(mut guest) = testing::launch(small) else { return Ok(()) };
    guest.on(T1).nop()?; // makes the thread, whose stack takes pages
    let free = guest.meter().expect("the counters can be read").v_free_count.get();
    let all = guest.kmem_malloc(MapId::KMEM, free * PAGE, NOWAIT)?.expect("there is room");
    assert_eq!(guest.kmem_malloc(MapId::KMEM, PAGE, NOWAIT)?, None);
    let waits = guest.start(T1).kmem_malloc(MapId::KMEM, PAGE, MallocFlags::WAITOK)?;
    guest.expect_blocked(T1, "vmwait");
    guest.kmem_free(MapId::KMEM, all, free * PAGE)?;
    assert!(waits.join(&mut guest)?.is_some());
    Ok(())
}

#[test]
fn first_fit() -> Result<(), ScriptFailure> {
    testing::script("scripts/first-fit.kmem")
}
