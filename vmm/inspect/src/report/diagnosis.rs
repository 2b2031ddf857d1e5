//! What hurts, in words: rules from the numbers of a report to a sentence.
//!
//! Each function is a rule. It returns nothing where it does not apply, and its sentence begins
//! with the numbers that it was made from.

use super::pressure::{MapRoom, PressureReport};
use crate::text::{count, size};

/// A map is fragmented from this many holes on, if none of them is this share of the free bytes.
const PIECES: u64 = 8;

/// The sentences, the worst first; at least one.
pub(super) fn diagnosis(report: &PressureReport) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    said.extend(pages(report));
    said.extend(pages_wanted(report));
    said.extend(not_woken(report));
    said.extend(report.maps.iter().filter_map(map));
    said.extend(busy_pages(report));
    if said.is_empty() {
        said.push(quiet(report));
    }
    said
}

fn threshold(report: &PressureReport, name: &str) -> u64 {
    let found = report.thresholds.iter().find(|threshold| threshold.name == name);
    found.map_or(0, |threshold| threshold.pages)
}

fn sleepers(report: &PressureReport, cause: &str) -> u64 {
    report.causes.iter().find(|known| known.cause == cause).map_or(0, |known| known.sleepers)
}

/// Free pages below a threshold: what that refuses.
fn pages(report: &PressureReport) -> Option<String> {
    let free = report.free_pages;
    if threshold(report, "v_free_min") == 0 {
        // The boot, which sets the thresholds last.
        return None;
    }
    let away = away(report);
    if free == 0 {
        return Some(format!("0 pages free: every allocation fails or waits{away}"));
    }
    // The lowest threshold that was reached says all. Allocations stop at it, waits begin below.
    let rules = [
        ("v_interrupt_free_min", 0, "only INTERRUPT allocations get a page"),
        ("v_free_reserved", 0, "NORMAL allocations fail or wait, SYSTEM ones get a page"),
        ("v_free_severe", 1, "page faults wait"),
        ("v_free_min", 1, "the pagedaemon works, and threads that wait for pages are not woken"),
    ];
    let reached =
        rules.into_iter().find(|&(name, below, _)| free + below <= threshold(report, name));
    reached.map(|(name, below, means)| {
        let relation = if below == 0 && free == threshold(report, name) { "at" } else { "below" };
        let (free, limit) = (count(free, "page"), threshold(report, name));
        format!("{free} free, {relation} {name} {limit}: {means}{away}")
    })
}

/// Who else has pages of the guest.
fn away(report: &PressureReport) -> String {
    let holders =
        [("seized by the host", report.seized_pages), ("in the balloon", report.balloon_pages)];
    let told = holders.into_iter().filter(|(_, pages)| *pages != 0);
    told.map(|(holder, pages)| format!("; {} {holder}", count(pages, "page"))).collect()
}

/// A thread that needs many pages at once.
fn pages_wanted(report: &PressureReport) -> Option<String> {
    let wanted = report.pages_wanted;
    (wanted != 0).then(|| {
        let free = report.free_pages;
        format!("a thread waits for {} at once, {free} are free", count(wanted, "page"))
    })
}

/// Threads that wait for pages that are there.
fn not_woken(report: &PressureReport) -> Option<String> {
    let waiting = sleepers(report, "vmwait") + sleepers(report, "pfault");
    let enough = threshold(report, "v_free_min");
    let applies = waiting != 0 && report.pages_wanted == 0 && report.free_pages >= enough;
    applies.then(|| {
        let (free, waiting) = (count(report.free_pages, "page"), count(waiting, "thread"));
        format!(
            "{free} free, not below v_free_min {enough}, but asleep for pages: {waiting}; \
                 the next page that is freed wakes them"
        )
    })
}

/// A map without room, or with room in small pieces.
fn map(map: &MapRoom) -> Option<String> {
    let MapRoom { name, free_bytes, holes, largest_hole, waiters } = map;
    let waiting = match waiters {
        0 => String::new(),
        waiters => format!("; waiting for it: {}", count(*waiters, "thread")),
    };
    let (free, largest) = (size(*free_bytes), size(*largest_hole));
    if *holes >= PIECES && largest_hole.saturating_mul(PIECES) <= *free_bytes {
        let told = format!("{name} has {free} free in holes of at most {largest}");
        return Some(format!("{told}: fragmentation, not shortage{waiting}"));
    }
    match (waiters, free_bytes) {
        (0, _) => None,
        (_, 0) => Some(format!("{name} is full: shortage of address space{waiting}")),
        _ => Some(format!("{name} has {free} free, in one piece at most {largest}{waiting}")),
    }
}

/// Threads that wait for a page that another one works on.
fn busy_pages(report: &PressureReport) -> Option<String> {
    match sleepers(report, "vmpfw") {
        0 => None,
        waiting => {
            let waiting = count(waiting, "thread");
            Some(format!("{waiting} in vmpfw: another thread still works on the page"))
        }
    }
}

/// Nothing hurts now.
fn quiet(report: &PressureReport) -> String {
    match report.some.avg10.0 {
        0 => "nothing hurts".to_owned(),
        _ => format!(
            "nothing hurts now; in the last 10 s threads were stalled {} % of the time",
            report.some.avg10
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pressure::{
        CauseReport, MapRoom, PressureLineReport, PressureReport, Share, ThresholdReport,
    };
    use super::diagnosis;

    const LIMITS: [(&str, u64); 4] = [
        ("v_free_min", 200),
        ("v_free_severe", 120),
        ("v_free_reserved", 40),
        ("v_interrupt_free_min", 2),
    ];

    /// A guest with this many free pages in which nothing waits.
    fn report(free_pages: u64) -> PressureReport {
        let line = PressureLineReport { avg10: Share(0), avg60: Share(0), total: 0 };
        PressureReport {
            diagnosis: Vec::new(),
            now: 0,
            state: "none",
            some: line,
            full: line,
            free_pages,
            pages: 4000,
            seized_pages: 0,
            balloon_pages: 0,
            thresholds: LIMITS.map(|(name, pages)| ThresholdReport { name, pages }).to_vec(),
            pages_wanted: 0,
            causes: Vec::new(),
            threads: Vec::new(),
            maps: Vec::new(),
        }
    }

    fn map(free_bytes: u64, holes: u64, largest_hole: u64, waiters: u64) -> PressureReport {
        let name = "kmem_map".to_owned();
        let room = MapRoom { name, free_bytes, holes, largest_hole, waiters };
        PressureReport { maps: vec![room], ..report(1000) }
    }

    fn asleep(cause: &'static str, sleepers: u64, free: u64) -> PressureReport {
        let causes = vec![CauseReport { cause, sleepers, micros: 5 }];
        PressureReport { causes, ..report(free) }
    }

    #[track_caller]
    fn says(report: &PressureReport, expected: &[&str]) {
        assert_eq!(diagnosis(report), expected);
    }

    #[test]
    fn free_pages_are_told_against_the_lowest_threshold_that_they_reached() {
        says(&report(0), &["0 pages free: every allocation fails or waits"]);
        says(
            &report(1),
            &["1 page free, below v_interrupt_free_min 2: only INTERRUPT allocations get a page"],
        );
        says(
            &report(2),
            &["2 pages free, at v_interrupt_free_min 2: only INTERRUPT allocations get a page"],
        );
        let normal = "NORMAL allocations fail or wait, SYSTEM ones get a page";
        says(&report(7), &[&format!("7 pages free, below v_free_reserved 40: {normal}")]);
        says(&report(40), &[&format!("40 pages free, at v_free_reserved 40: {normal}")]);
        says(&report(119), &["119 pages free, below v_free_severe 120: page faults wait"]);
        let works = "the pagedaemon works, and threads that wait for pages are not woken";
        for free in [120, 199] {
            let expected = format!("{free} pages free, below v_free_min 200: {works}");
            says(&report(free), &[&expected]);
        }
        says(&report(200), &["nothing hurts"]);
    }

    #[test]
    fn a_shortage_names_those_who_have_the_pages() {
        let short = PressureReport { seized_pages: 3000, balloon_pages: 1, ..report(0) };
        says(
            &short,
            &["0 pages free: every allocation fails or waits; 3000 pages seized by the host; \
               1 page in the balloon"],
        );
        says(&PressureReport { seized_pages: 3000, ..report(200) }, &["nothing hurts"]);
    }

    #[test]
    fn before_the_thresholds_are_set_few_free_pages_are_no_shortage() {
        says(&PressureReport { thresholds: Vec::new(), ..report(0) }, &["nothing hurts"]);
    }

    #[test]
    fn many_small_holes_are_fragmentation_whether_or_not_a_thread_waits() {
        let told = "kmem_map has 3.1 MiB free in holes of at most 12 KiB: fragmentation, not \
                    shortage";
        says(&map(0x31_a000, 270, 12 << 10, 0), &[told]);
        says(&map(0x31_a000, 270, 12 << 10, 1), &[&format!("{told}; waiting for it: 1 thread")]);
        // Seven holes, or a hole that is a large part of all of it, are not.
        says(&map(7 << 12, 7, 4096, 0), &["nothing hurts"]);
        says(&map(8 << 20, 100, (1 << 20) + 4096, 0), &["nothing hurts"]);
        says(
            &map(8 << 12, 8, 4096, 0),
            &["kmem_map has 32 KiB free in holes of at most 4 KiB: fragmentation, not shortage"],
        );
    }

    #[test]
    fn a_full_map_hurts_only_when_a_thread_waits_for_it() {
        says(&map(0, 0, 0, 0), &["nothing hurts"]);
        let full = "kmem_map is full: shortage of address space; waiting for it: 3 threads";
        says(&map(0, 0, 0, 3), &[full]);
        let room =
            "kmem_map has 64 KiB free, in one piece at most 60 KiB; waiting for it: 1 thread";
        says(&map(64 << 10, 2, 60 << 10, 1), &[room]);
    }

    #[test]
    fn threads_that_nobody_woke_and_threads_that_want_many_pages_are_told_apart() {
        let told = "300 pages free, not below v_free_min 200, but asleep for pages: 2 threads; \
                    the next page that is freed wakes them";
        says(&asleep("vmwait", 2, 300), &[told]);
        let wanted = PressureReport { pages_wanted: 512, ..asleep("vmwait", 1, 300) };
        says(&wanted, &["a thread waits for 512 pages at once, 300 are free"]);
        // Below the threshold the shortage says it.
        let short = diagnosis(&asleep("pfault", 1, 10));
        assert!(matches!(&short[..], [one] if one.contains("v_free_reserved")), "{short:?}");
    }

    #[test]
    fn a_wait_for_a_busy_page_names_its_reason() {
        let told = "1 thread in vmpfw: another thread still works on the page";
        says(&asleep("vmpfw", 1, 1000), &[told]);
    }

    #[test]
    fn what_hurt_in_the_last_ten_seconds_is_told_when_nothing_hurts_now() {
        let mut past = report(1000);
        past.some.avg10 = Share(1234);
        says(
            &past,
            &["nothing hurts now; in the last 10 s threads were stalled 12.34 % of the time"],
        );
    }
}
