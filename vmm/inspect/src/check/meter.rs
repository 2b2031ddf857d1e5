//! The thresholds, by FreeBSD's formulas, and the words of the meter that never change.

use vmkern_abi::field::Field;

use super::context::Context;
use super::rule::rules;

rules! {
    Some(check);
    Memory {
        THRESHOLDS = "thresholds":
            "the thresholds of free pages follow from the number of pages, by FreeBSD's formulas";
    }
}

/// Largest transfer of the buffer cache in pages (`MAXBSIZE / PAGE_SIZE`).
const MAXBSIZE_PAGES: u64 = 16;
/// Pages that no SYSTEM request may take.
const INTERRUPT_FREE_MIN: u64 = 2;
/// The largest `v_inactive_target` if pages were short at boot: a quarter of `SHORT`.
const SHORT: u64 = 2048;

/// Checks the thresholds. The pagedaemon computes them when it first runs; until then all are 0.
fn check(ctx: &Context<'_>) {
    // 1. Before vm_pageout_init the thresholds are all 0.
    let meter = &ctx.roots.meter;
    let compare = |name: &str, field: &Field<u64>, allowed: &[u64]| {
        if !allowed.contains(&field.get()) {
            ctx.finding(&THRESHOLDS, "vmmeter", ctx.root_of(field), || {
                format!("{name} is {}, but its formula gives {allowed:?}", field.get())
            });
        }
    };
    let thresholds = [
        &meter.v_interrupt_free_min,
        &meter.v_pageout_free_min,
        &meter.v_free_reserved,
        &meter.v_free_min,
        &meter.v_free_severe,
        &meter.v_free_target,
    ];
    if thresholds.iter().all(|field| field.get() == 0) {
        return;
    }
    // 2. The formulas of vm_pageout_init and vm_page_startup.
    let pages = meter.v_page_count.get();
    let page_count = if pages < 2000 { 8 } else { 16 };
    let pageout_free_min = 2 * MAXBSIZE_PAGES + INTERRUPT_FREE_MIN;
    let reserved = page_count + pageout_free_min + pages / 768;
    let free_min = 4 + pages.saturating_sub(1024) / 200;
    let severe = free_min / 2 + reserved;
    let free_min = free_min + reserved;
    // 3. The thresholds that depend only on the number of pages.
    compare("v_interrupt_free_min", &meter.v_interrupt_free_min, &[INTERRUPT_FREE_MIN]);
    compare("v_pageout_free_min", &meter.v_pageout_free_min, &[pageout_free_min]);
    compare("v_free_reserved", &meter.v_free_reserved, &[reserved]);
    compare("v_free_min", &meter.v_free_min, &[free_min]);
    compare("v_free_severe", &meter.v_free_severe, &[severe]);
    // 4. Those that also depend on the number of free pages at boot, which is not recorded.
    let target = meter.v_free_target.get();
    compare(
        "v_free_target",
        &meter.v_free_target,
        &[2 * free_min + reserved, 4 * free_min + reserved],
    );
    let cache_min = meter.v_cache_min.get();
    compare("v_cache_min", &meter.v_cache_min, &[0, target]);
    compare("v_cache_max", &meter.v_cache_max, &[cache_min.saturating_mul(2)]);
    check_inactive_target(ctx);
}

/// Checks the threshold that depends on how many pages were free at boot.
fn check_inactive_target(ctx: &Context<'_>) {
    let meter = &ctx.roots.meter;
    let (cache_min, target) = (meter.v_cache_min.get(), meter.v_free_target.get());
    let most = if cache_min == 0 { SHORT / 4 } else { target.saturating_mul(3) / 2 };
    let inactive = meter.v_inactive_target.get();
    if inactive > most {
        ctx.finding(&THRESHOLDS, "vmmeter", ctx.root_of(&meter.v_inactive_target), || {
            format!("v_inactive_target is {inactive}, but its formula gives at most {most}")
        });
    }
}
