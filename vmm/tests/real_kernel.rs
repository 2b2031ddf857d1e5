//! The real kernel, through the library's public interface.

use std::collections::HashSet;

use vmkern::abi::entry::NOTE_TYPE;
use vmkern::guest::KernelImage;
use vmkern::{
    Guest, GuestBuilder, GuestVirt, LaunchError, MallocFlags, MapId, Op, Outcome, Privilege,
    ThreadId,
};

const PAGE: u64 = 4096;

fn launch(builder: GuestBuilder) -> Guest {
    builder.launch().unwrap_or_else(|error| panic!("{error}"))
}

fn kmem_malloc(guest: &mut Guest, size: u64) -> GuestVirt {
    let op = Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT };
    match guest.call(ThreadId::MAIN, op).unwrap_or_else(|error| panic!("{error}")).outcome {
        Outcome::Value(address) => GuestVirt::new(address),
        other => panic!("kmem_malloc of {size} bytes gave {other:?}"),
    }
}

#[test]
fn thousands_of_requests_in_flight_are_each_answered_once() {
    let mut guest = launch(Guest::builder());
    let tags: HashSet<u32> = (0..5_000)
        .map(|_| guest.submit(ThreadId::MAIN, Op::Nop).expect("the guest lives"))
        .collect();
    assert_eq!(tags.len(), 5_000);
    let answered: HashSet<u32> =
        (0..5_000).map(|_| guest.next_response().expect("the guest lives").tag).collect();
    assert_eq!(answered, tags);
    assert_eq!(guest.in_flight(), 0);
}

#[test]
fn guests_of_every_size_boot_and_manage_their_memory() {
    for memory in
        [vmkern::inspect::MEMORY_MIN, 64 << 20, (3 << 30) + PAGE, vmkern::inspect::MEMORY_MAX]
    {
        let guest = launch(Guest::builder().memory(memory));
        let pages = guest.meter().unwrap_or_else(|error| panic!("{error}")).v_page_count.get();
        assert!(
            pages * PAGE <= memory && pages * PAGE >= memory / 2,
            "{pages} pages of {memory} bytes"
        );
    }
}

/// The built-in kernel without its note for vmkern's loader: the note's type is changed to another
/// one.
fn kernel_without_entry_note() -> KernelImage {
    let mut file = KernelImage::embedded().bytes().to_vec();
    let mut end = NOTE_TYPE.to_le_bytes().to_vec();
    end.extend(b"vmkern\0\0");
    let at =
        file.windows(end.len()).position(|bytes| bytes == end).expect("the kernel has the note");
    file[at..at + 4].fill(0);
    KernelImage::from_bytes(file)
}

/// The privilege at which the kernel runs; `None` if KVM cannot run it at the requested one.
fn privilege(kernel: KernelImage, asked: Privilege) -> Option<Privilege> {
    let mut guest = match Guest::builder().kernel(kernel).privilege(asked).launch() {
        Ok(guest) => guest,
        Err(LaunchError::Unemulated(_)) => return None,
        Err(error) => panic!("{error}"),
    };
    kmem_malloc(&mut guest, 4 * PAGE);
    Some(guest.environment().privilege)
}

#[test]
fn a_kernel_without_the_entry_note_boots_by_pvh_and_decides_alike() {
    let both = |asked| {
        let [direct, pvh] = [KernelImage::embedded(), kernel_without_entry_note()];
        let decided = [privilege(direct, asked), privilege(pvh, asked)];
        assert_eq!(decided[0], decided[1], "{asked:?}");
        decided[0]
    };
    assert_eq!(both(Privilege::User), Some(Privilege::User));
    assert!(matches!(both(Privilege::Supervisor), None | Some(Privilege::Supervisor)));
    assert!(both(Privilege::Auto).is_some());
}

#[test]
fn host_and_kernel_agree_on_every_translation() {
    let mut guest = launch(Guest::builder());
    let block = kmem_malloc(&mut guest, 64 * PAGE);
    for page in 0..66 {
        let addr = block.add(page * PAGE + 8 * page);
        let host = guest
            .vtop(addr)
            .expect("the tables are sound")
            .mapping
            .map(|mapping| mapping.phys.get());
        let kernel =
            match guest.call(ThreadId::MAIN, Op::Vtop { addr }).expect("the guest lives").outcome {
                Outcome::Value(phys) => Some(phys),
                Outcome::Null => None,
                other => panic!("vtop gave {other:?}"),
            };
        assert_eq!(host, kernel, "{addr}");
        assert_eq!(host.is_some(), page < 64, "{addr}");
    }
    let runs = guest.page_runs(block, block.add(66 * PAGE)).expect("the tables are sound");
    assert_eq!(runs.iter().map(|run| run.end.since(run.start)).sum::<u64>(), 64 * PAGE);
}

#[test]
fn a_map_seen_from_outside_shows_what_was_allocated() {
    let mut guest = launch(Guest::builder());
    let before = guest.map_stats(MapId::KMEM).expect("the map is sound");
    let block = kmem_malloc(&mut guest, 5 * PAGE);
    let after = guest.map_stats(MapId::KMEM).expect("the map is sound");
    assert_eq!(after.size, before.size + 5 * PAGE);
    let entries = guest.map_entries(MapId::KMEM).expect("the map is sound");
    assert_eq!(entries.len() as u64, after.entries);
    assert!(
        entries.iter().any(|entry| entry.start <= block && block.add(5 * PAGE) <= entry.end),
        "{entries:?}"
    );
    assert_eq!(entries.iter().map(|entry| entry.end.since(entry.start)).sum::<u64>(), after.size);
}

#[test]
fn a_guest_can_be_looked_into_while_it_works() {
    let mut guest = launch(Guest::builder());
    let addr = kmem_malloc(&mut guest, 512 * PAGE);
    for seed in 0..200 {
        guest
            .submit(ThreadId::MAIN, Op::Fill { addr, size: 512 * PAGE, seed })
            .expect("the guest lives");
        let stats = guest.map_stats(MapId::KMEM).expect("the map is sound");
        assert_eq!(stats.size, 512 * PAGE);
    }
    while guest.in_flight() > 0 {
        guest.next_response().expect("the guest lives");
    }
}

#[test]
fn a_crashed_guest_can_still_be_looked_into() {
    let mut guest = launch(Guest::builder());
    let addr = kmem_malloc(&mut guest, PAGE);
    let before = guest.meter().expect("the guest lives").v_free_count.get();
    let error = guest
        .call(ThreadId::MAIN, Op::Read { addr: addr.add(64 * PAGE) })
        .expect_err("nothing is mapped there");
    let vmkern::GuestError::Crashed(crash) = error else { panic!("{error}") };
    assert!(crash.message.contains("page fault"), "{crash}");
    assert_eq!(crash.thread, Some(0), "{crash}");
    assert_eq!(guest.meter().expect("its memory is there").v_free_count.get(), before);
    assert!(guest.vtop(addr).expect("its tables are there").mapping.is_some());
    assert!(guest.call(ThreadId::MAIN, Op::Nop).is_err());
}

#[test]
fn the_kernels_self_test_passes() {
    let report = Guest::builder().run_selftest().unwrap_or_else(|error| panic!("{error}"));
    assert!(report.success(), "{}", String::from_utf8_lossy(&report.output));
}

#[test]
fn dropping_a_guest_with_requests_in_flight_stops_it() {
    let mut guest = launch(Guest::builder());
    let addr = kmem_malloc(&mut guest, 512 * PAGE);
    for seed in 0..100 {
        guest
            .submit(ThreadId::MAIN, Op::Fill { addr, size: 512 * PAGE, seed })
            .expect("the guest lives");
    }
    drop(guest);
}
