//! The balloon takes blocks by the rules of an allocation, and gives all of them back.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::virtio::balloon::StopReason;

use super::super::Sim;
use super::super::check::{check, check_zeros};
use super::{MIB, NOWAIT, ZEROED, boot};

/// Takes blocks until `target` pages are in the balloon, or no more can be taken.
fn inflate(sim: &Sim, target: u64) -> Result<(), StopReason> {
    while sim.vm().balloon_pages() < target {
        sim.vm().balloon_take(target - sim.vm().balloon_pages())?;
    }
    Ok(())
}

/// Gives blocks back until `target` pages are left in the balloon.
fn deflate(sim: &Sim, target: u64) {
    while let left @ 1.. = sim.vm().balloon_pages().saturating_sub(target) {
        assert!(sim.vm().balloon_leave(left).is_some(), "the balloon has pages");
        check(sim);
        sim.vm().balloon_free();
    }
}

#[test]
fn the_largest_blocks_are_taken_first_and_exactly_as_many_pages_as_asked_for() {
    let sim = boot();
    let mut sizes = Vec::new();
    while let left @ 1.. = 1234 - sim.vm().balloon_pages() {
        let block = sim.vm().balloon_take(left).expect("there is room");
        assert!(block.first.is_multiple_of(block.pages), "it is aligned to its size");
        sizes.push(block.pages);
        check(&sim);
    }
    assert_eq!(sizes, [512, 512, 128, 64, 16, 2]);
}

#[test]
fn pages_in_the_balloon_are_not_free_and_change_no_threshold() {
    let sim = boot();
    sim.run();
    let cnt = sim.vm().cnt();
    let words =
        || [&cnt.v_page_count, &cnt.v_free_min, &cnt.v_free_reserved].map(|word| word.get());
    let (free, before) = (sim.free_pages(), words());
    inflate(&sim, 3000).expect("there is room");
    assert_eq!((sim.free_pages(), words()), (free - 3000, before));
    deflate(&sim, 1);
    assert_eq!(sim.free_pages(), free - 1);
    deflate(&sim, 0);
    assert_eq!((sim.free_pages(), words()), (free, before));
    check(&sim);
    check_zeros(&sim);
}

#[test]
fn the_balloon_leaves_what_a_normal_request_must_leave_and_says_so() {
    let sim = boot();
    sim.run();
    assert_eq!(inflate(&sim, 1 << 20), Err(StopReason::Floor));
    assert_eq!(sim.free_pages(), sim.vm().cnt().v_free_reserved.get());
    check(&sim);
    deflate(&sim, 0);
    check(&sim);
}

#[test]
fn a_block_that_is_too_large_leaves_in_part() {
    let sim = boot();
    inflate(&sim, 512).expect("there is room");
    deflate(&sim, 300);
    assert_eq!(sim.vm().balloon_pages(), 300);
    check(&sim);
    deflate(&sim, 0);
    check(&sim);
}

#[test]
fn nothing_is_known_of_a_page_that_comes_back() {
    let sim = boot();
    inflate(&sim, 1 << 20).expect_err("that is more than all memory");
    let zero = sim.vm().state().vm_page_zero_count.get();
    deflate(&sim, 0);
    assert_eq!(sim.vm().state().vm_page_zero_count.get(), zero);
    let at = sim.malloc(MIB, ZEROED).expect("there is room");
    sim.ok(&vmkern_abi::control::Op::VerifyZero { addr: at, size: MIB });
    check(&sim);
}

#[test]
fn a_shortage_asks_for_pages_back_only_after_a_request_was_refused() {
    let sim = Sim::boot(64 * MIB, Tunables { vm_kmem_size: Some(80 * MIB), ..Tunables::default() });
    sim.run();
    inflate(&sim, 4000).expect("there is room");
    assert_eq!(sim.vm().balloon_relief(), 0, "pages are plenty");
    while sim.malloc(PAGE_SIZE, NOWAIT).is_some() {}
    let relief = sim.vm().balloon_relief();
    assert!(relief >= sim.vm().cnt().v_free_min.get(), "{relief} pages");
    deflate(&sim, 4000 - relief);
    assert!(!sim.vm().vm_page_count_min());
    check(&sim);
}
