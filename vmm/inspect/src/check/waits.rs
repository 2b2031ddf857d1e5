//! Sleeping threads, and the flags that tell wakers about them.

use std::mem::offset_of;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::layout::{
    EntryFlags, KernelRoots, PageOflags, Thread, ThreadState, VmMap, VmMeter,
};

use super::context::Context;
use super::maps::Map;
use super::rule::rules;
use super::sched::{Item, label};

rules! {
    Some(check);
    Memory {
        PAGE_WANTED = "page-wanted":
            "a thread waits for each page that is marked as wanted";
    }
    Threads {
        SLEEPER_FLAG = "sleeper-flag":
            "the flag that a waker reads is set for each sleeping thread";
        PAGES_WANTED = "pages-wanted":
            "if `vm_pages_wanted` is not 0, a thread waits for that many pages, which are no more \
             than there are; if `vm_pageout_pages_needed` is set, the pagedaemon waits for a page";
        FLAG_WORD = "flag-word":
            "a word that may only be 0 or 1 holds one of the two, and the scheduler's `spread` is \
             0, 1 or 2";
        WAIT_MESSAGE = "wait-message":
            "a thread that sleeps on a channel of a known kind has that kind's wait message";
    }
}

/// Wait messages of threads that wait on channels of their own.
const OWN: [&str; 7] = ["request", "sleep", "settle", "nokva", "stress", "spin", "balloon"];

/// Checks that each sleeping thread has set the flag that its waker reads.
fn check(ctx: &Context<'_>) {
    if ctx.roots.sched.lock.owner.get() != 0 {
        return;
    }
    check_words(ctx);
    if ctx.roots.vm_page_queue_free_mtx.owner.get() == 0 {
        check_page_shortage(ctx);
    }
    ctx.maps.all.iter().filter(|map| !map.is_updating()).for_each(|map| check_map(ctx, map));
    check_busy_pages(ctx);
    check_messages(ctx);
}

/// Checks the words that are 0 or 1.
fn check_words(ctx: &Context<'_>) {
    let roots = &ctx.roots;
    let words = [
        ("vm_pages_needed", &roots.vm_pages_needed),
        ("vm_pageout_pages_needed", &roots.vm_pageout_pages_needed),
        ("boot_zeroed", &roots.boot_zeroed),
        ("zero_state", &roots.zero_state),
        ("idlezero_enable", &roots.idlezero_enable),
        ("pagezero_sleeps", &roots.pagezero_sleeps),
    ];
    for (name, word) in words {
        if !word.get().is_known() {
            ctx.finding(&FLAG_WORD, "kernel roots", ctx.root_of(word), || {
                format!("{name} is {}, expected 0 or 1", word.get())
            });
        }
    }
}

fn root_channel(ctx: &Context<'_>, offset: usize) -> GuestVirt {
    ctx.root(offset)
}

/// Checks the threads that wait for pages, and the flags that tell the pagedaemon.
fn check_page_shortage(ctx: &Context<'_>) {
    // 1. If a thread waits for free pages, the flag for the pagedaemon is set.
    let roots = &ctx.roots;
    let lost = |thread: &Item<Thread>, flag: &str| {
        ctx.finding(&SLEEPER_FLAG, "thread", thread.addr(), || {
            format!(
                "{} sleeps in {}, but {flag} is 0: nothing will wake it",
                label(&thread.value),
                message(thread)
            )
        });
    };
    let free_count =
        root_channel(ctx, offset_of!(KernelRoots, meter) + offset_of!(VmMeter, v_free_count));
    if !roots.vm_pages_needed.is_set() {
        ctx.sched.sleepers(free_count).for_each(|thread| lost(thread, "vm_pages_needed"));
    }
    // 2. The pagedaemon's own wait for a page.
    let channel = ctx.root_of(&roots.vm_pageout_pages_needed);
    if !roots.vm_pageout_pages_needed.is_set() {
        ctx.sched.sleepers(channel).for_each(|thread| lost(thread, "vm_pageout_pages_needed"));
    } else if ctx.sched.sleepers(channel).next().is_none() {
        ctx.finding(&PAGES_WANTED, "kernel roots", channel, || {
            "vm_pageout_pages_needed is set, but the pagedaemon does not wait for a page".to_owned()
        });
    }
    // 3. Threads that wait for many pages at once.
    let (wanted, channel) = (roots.vm_pages_wanted.get(), ctx.root_of(&roots.vm_pages_wanted));
    let waits = ctx.sched.sleepers(channel).next().is_some();
    if wanted == 0 {
        ctx.sched.sleepers(channel).for_each(|thread| lost(thread, "vm_pages_wanted"));
    } else if !waits || wanted > roots.meter.v_page_count.get() {
        ctx.finding(&PAGES_WANTED, "kernel roots", channel, || {
            format!("vm_pages_wanted is {wanted}, but no thread waits for so many")
        });
    }
    // 4. The pagedaemon sleeps without a time-out only while no thread needs pages.
    check_pagedaemon(ctx);
}

/// Checks that the pagedaemon does not sleep without a time-out while pages are needed.
fn check_pagedaemon(ctx: &Context<'_>) {
    let roots = &ctx.roots;
    if roots.vm_pages_needed.is_set() {
        let channel = root_channel(ctx, offset_of!(KernelRoots, vm_pages_needed));
        for thread in
            ctx.sched.sleepers(channel).filter(|thread| thread.value.callout.sequence.get() == 0)
        {
            ctx.finding(&SLEEPER_FLAG, "thread", thread.addr(), || {
                format!(
                    "{} sleeps without a time-out, but vm_pages_needed is set",
                    label(&thread.value)
                )
            });
        }
    }
}

/// Checks the threads that wait for room in a map, or for the end of a transition.
fn check_map(ctx: &Context<'_>, map: &Map) {
    let channel = map.at.checked_add(offset_of!(VmMap, index) as u64).unwrap_or(map.at);
    let mut sleepers = ctx.sched.sleepers(channel).peekable();
    let wanted = map.entries.iter().find(|entry| entry.eflags.contains(EntryFlags::NEEDS_WAKEUP));
    match (sleepers.peek(), wanted) {
        (Some(sleeper), None) if map.needs_wakeup == 0 && !waker_is_under_way(ctx) => {
            ctx.finding(&SLEEPER_FLAG, "thread", sleeper.addr(), || {
                let who = label(&sleeper.value);
                format!(
                    "{who} waits for {}, but neither needs_wakeup nor an entry says so",
                    map.name
                )
            });
        }
        _ => {}
    }
    if map.needs_wakeup > 1 {
        ctx.finding(&FLAG_WORD, map.name, map.at, || {
            format!("needs_wakeup is {}, expected 0 or 1", map.needs_wakeup)
        });
    }
}

/// Whether a thread is in the middle of an operation: it may have cleared a flag but not yet woken
/// the waiting threads.
fn waker_is_under_way(ctx: &Context<'_>) -> bool {
    ctx.rest.awake() != 0
}

/// Checks the threads that wait for a busy page.
fn check_busy_pages(ctx: &Context<'_>) {
    if ctx.is_locked() {
        return;
    }
    // 1. A page on which a thread sleeps is busy and marked as wanted.
    for thread in
        ctx.sched.threads.iter().filter(|t| t.value.state() == Some(ThreadState::Sleeping))
    {
        let Some(pfn) = ctx.pages.number_at(thread.value.wchan.get()) else { continue };
        let waiting = PageOflags::BUSY | PageOflags::WANTED;
        match ctx.pages.get(pfn) {
            Some(page)
                if page.oflags.contains(waiting)
                    || page.busy != 0 && page.oflags == PageOflags::WANTED => {}
            page => ctx.finding(&SLEEPER_FLAG, "thread", thread.addr(), || {
                let oflags = page.map(|page| page.oflags);
                format!(
                    "{} waits for page {pfn:#x}, whose oflags are {oflags:?}",
                    label(&thread.value)
                )
            }),
        }
    }
    // 2. A thread waits for each page that is marked as wanted.
    for (pfn, page) in ctx.pages.used().filter(|(_, page)| page.oflags.contains(PageOflags::WANTED))
    {
        let at = ctx.pages.address(pfn);
        if ctx.sched.sleepers(at).next().is_none() {
            ctx.finding(&PAGE_WANTED, "vm_page", at, || {
                format!("page {pfn:#x} has oflags {:?}, but no thread waits for it", page.oflags)
            });
        }
    }
}

/// Checks the wait messages on channels that only one kind of sleep uses.
fn check_messages(ctx: &Context<'_>) {
    // 1. The messages that fit the channel.
    for thread in
        ctx.sched.threads.iter().filter(|t| t.value.state() == Some(ThreadState::Sleeping))
    {
        let t = &thread.value;
        let (channel, said) = (t.wchan.get(), message(thread));
        let expected: &[&str] = match channel {
            c if c == root_channel(ctx, offset_of!(KernelRoots, vm_pages_needed)) => &["psleep"],
            c if c == root_channel(ctx, offset_of!(KernelRoots, vm_pageout_pages_needed)) => {
                &["VMWait"]
            }
            c if c == root_channel(ctx, offset_of!(KernelRoots, zero_state)) => &["pgzero"],
            c if c == ctx.root_of(&ctx.roots.vm_pages_wanted) => &["vmwait", "VMWait"],
            c if c == root_channel(ctx, offset_of!(KernelRoots, driver_mtx)) => &["-"],
            c if c == ctx.root_of(&ctx.roots.meter.v_free_count) => &["vmwait", "pfault"],
            c if ctx.pages.number_at(c).is_some() => &["pgrbwt", "vmopar", "vmpfw"],
            c if is_in_a_map(ctx, c, offset_of!(VmMap, index)) => &["vmmaps"],
            c if is_in_a_map(ctx, c, offset_of!(VmMap, sx)) => &["user map"],
            _ => &OWN,
        };
        // 2. The thread's message.
        if !expected.contains(&said.as_str()) {
            ctx.finding(&WAIT_MESSAGE, "thread", thread.addr(), || {
                format!(
                    "{} sleeps on {channel} with wait message {said:?}, expected one of \
                     {expected:?}",
                    label(t)
                )
            });
        }
    }
}

fn is_in_a_map(ctx: &Context<'_>, channel: GuestVirt, offset: usize) -> bool {
    let map = channel.get().checked_sub(offset as u64).map(GuestVirt::new);
    map.is_some_and(|map| ctx.maps.at(map).is_some())
}

fn message(thread: &Item<Thread>) -> String {
    thread.value.wait_message().map_or_else(String::new, |message| message.to_string())
}
