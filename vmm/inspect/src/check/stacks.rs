//! Kernel stacks: mapped, above an unmapped guard page, and holding the thread's saved context.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{Thread, ThreadState, md};
use vmkern_abi::pte::PteFlags;

use super::context::Context;
use super::rule::rules;
use super::sched::{Item, label};

rules! {
    Some(check);
    Threads {
        KERNEL_STACK = "kernel-stack":
            "its stack is mapped, and the page below is not";
        SAVED_CONTEXT = "saved-context":
            "its saved context lies on its stack";
    }
}

/// Pages of a kernel stack (`KSTACK_PAGES`).
const KSTACK_PAGES: u64 = 4;
/// Number of the thread that continues the boot.
const BOOT_TID: u32 = 64;

/// A thread's saved context ([`md`]).
pub(super) struct Saved {
    /// Stack pointer.
    pub(super) rsp: u64,
    /// End of the next free trap slot.
    slot: u64,
    /// Bounds of the stack itself.
    pub(super) low: u64,
    pub(super) high: u64,
    /// Bounds of the trap slots.
    pub(super) slots: u64,
    pub(super) slots_end: u64,
    /// Nesting of interrupt deferral.
    depth: u64,
}

impl Saved {
    pub(super) fn of(thread: &Thread) -> Self {
        let word = |index: usize| thread.md[index].get();
        Self {
            rsp: word(md::RSP),
            slot: word(md::SLOT),
            low: word(md::LOW),
            high: word(md::HIGH),
            slots: word(md::SLOTS),
            slots_end: word(md::SLOTS_END),
            depth: word(md::DEPTH),
        }
    }
}

/// Checks the stacks of all threads, including those that have exited.
fn check(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    for thread in ctx.sched.threads.iter().chain(&ctx.sched.zombies) {
        // The thread that continues the boot runs on the stack in the image.
        if thread.value.tid.get() != BOOT_TID || thread.value.kstack.get().get() != 0 {
            check_stack(ctx, thread);
        }
        if matches!(thread.value.state(), Some(ThreadState::Runnable | ThreadState::Sleeping)) {
            check_saved(ctx, thread);
        }
    }
}

fn check_stack(ctx: &Context<'_>, thread: &Item<Thread>) {
    // 1. A range of kernel_map, with a page below it for the guard.
    let (low, pages) = (thread.value.kstack.get(), u64::from(thread.value.kstack_pages.get()));
    let fault = |detail: String| ctx.finding(&KERNEL_STACK, "thread", thread.addr(), || detail);
    let lowest = VM_MIN_KERNEL_ADDRESS.add(PAGE_SIZE);
    let end = low.checked_add(KSTACK_PAGES * PAGE_SIZE).filter(|&end| end <= VM_MAX_KERNEL_ADDRESS);
    let (true, Some(end)) = (low.is_page_aligned() && low >= lowest, end) else {
        return fault(format!(
            "the stack of {} is at {low}, outside of kernel_map",
            label(&thread.value)
        ));
    };
    if pages != KSTACK_PAGES {
        fault(format!(
            "the stack of {} has {pages} pages, not {KSTACK_PAGES}",
            label(&thread.value)
        ));
    }
    // 2. Each page is mapped as pmap_qenter maps it.
    for va in (low.get()..end.get()).step_by(1 << 12).map(GuestVirt::new) {
        let flags = ctx.translate(va).map(|mapping| mapping.flags);
        if flags.is_none_or(|flags| !flags.contains(PteFlags::KENTER | PteFlags::RW | PteFlags::NX))
        {
            fault(format!(
                "the stack of {} includes {va}, whose translation is {flags:?}",
                label(&thread.value)
            ));
        }
    }
    // 3. The guard page is not mapped.
    let guard = GuestVirt::new(low.get() - PAGE_SIZE);
    if let Some(mapping) = ctx.translate(guard) {
        fault(format!(
            "the guard page {guard} of {} is mapped to {}",
            label(&thread.value),
            mapping.phys
        ));
    }
}

/// Checks the saved context of a thread that is not running.
fn check_saved(ctx: &Context<'_>, thread: &Item<Thread>) {
    // 1. A new thread.
    let t = &thread.value;
    let saved = Saved::of(t);
    let fault = |detail: String| ctx.finding(&SAVED_CONTEXT, "thread", thread.addr(), || detail);
    let Saved { rsp, slot, low, high, slots, slots_end, depth } = saved;
    let kstack = t.kstack.get().get();
    // A thread that has never run has only its bounds.
    if rsp == 0 {
        if kstack == 0 || low != kstack || slots_end.wrapping_sub(low) != KSTACK_PAGES * PAGE_SIZE {
            fault(format!(
                "{} has its stack at {kstack:#x}, but must begin on [{low:#x}, {slots_end:#x})",
                label(t)
            ));
        }
        return;
    }
    // 2. Its context: the stack pointer, the trap slot, and interrupts deferred once, by the
    //    switch.
    if !(low..=high).contains(&rsp) || rsp % 8 != 0 {
        fault(format!(
            "the stack pointer of {} is {rsp:#x}, but its stack is [{low:#x}, {high:#x})",
            label(t)
        ));
    }
    if slot <= slots || slot > slots_end {
        fault(format!(
            "the next trap slot of {} ends at {slot:#x}, but its slots are [{slots:#x}, \
             {slots_end:#x})",
            label(t)
        ));
    }
    if depth != 1 {
        fault(format!(
            "{} left its CPU with interrupts deferred {depth} times, not once",
            label(t)
        ));
    }
    // 3. The bounds are those of its stack.
    if kstack != 0
        && (low != kstack
            || slots != high
            || slots_end.wrapping_sub(low) != KSTACK_PAGES * PAGE_SIZE)
    {
        fault(format!(
            "{} has its stack at {kstack:#x}, but runs on [{low:#x}, {slots_end:#x})",
            label(t)
        ));
    }
}
