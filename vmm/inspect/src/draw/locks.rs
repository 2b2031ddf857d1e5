//! Lock statistics in tables.

use std::fmt::Write as _;

use super::table::{Align, Table};
use super::text::FAINT;
use crate::report::{InterruptReport, LockClassReport, LockCounts, LocksReport, TlbReport};

pub(super) fn draw(report: &LocksReport) -> String {
    // 1. The classes of locks.
    let mut out = classes(report).draw(0);
    // 2. Translations and interrupts, which show how long CPUs waited for one another.
    out.push('\n');
    out.push_str(&translations(&report.tlb));
    out.push('\n');
    out.push_str(&interrupts(&report.cpus));
    // 3. What the columns mean.
    let _ = writeln!(
        out,
        "{FAINT}WAITED: acquisitions that found an owner; WAIT/CYC, HELD/CYC: TSC cycles in all.\n\
         Held cycles are counted with the tunable debug.lock.prof.enable=1. ASKED: CPUs\n\
         that had to flush too, IPIS: by an interrupt; SKIPPED: idle, flush later.\n\
         ANSWERED: CPUs that asked this one, MERGED: served by a flush of its own.\n\
         TIMER: interrupts of the CPU's timer; PAGES: the most that it worked on, with a\n\
         mutex owned, before interrupts could be taken{FAINT:#}"
    );
    out
}

/// A row for each class and, where there are several, for each CPU.
fn classes(report: &LocksReport) -> Table {
    // 1. The columns. Only mutexes have times, and only a profile has hold times.
    let mut table = Table::new(&[
        ("LOCKS", Align::Left),
        ("CPU", Align::Right),
        ("ACQUIRED", Align::Right),
        ("WAITED", Align::Right),
        ("WAIT/CYC", Align::Right),
        ("HELD/CYC", Align::Right),
        ("LONGEST", Align::Right),
    ]);
    let mut row = |class: &str, cpu: String, is_mutex: bool, counts: &LockCounts| {
        let cycles =
            |number: u64, known: bool| if known { number.to_string() } else { "-".to_owned() };
        table.row([
            class.to_owned(),
            cpu,
            counts.acquired.to_string(),
            counts.contested.to_string(),
            cycles(counts.waited_cycles, is_mutex),
            cycles(counts.held_cycles, is_mutex && report.profiling),
            cycles(counts.longest_cycles, is_mutex && report.profiling),
        ]);
    };
    // 2. The rows.
    for LockClassReport { class, kind, total, cpus } in &report.classes {
        let is_mutex = *kind == "mutex";
        row(class, String::new(), is_mutex, total);
        for (cpu, counts) in
            cpus.iter().enumerate().filter(|_| cpus.len() > 1 && total.acquired > 0)
        {
            row("", cpu.to_string(), is_mutex, counts);
        }
    }
    table
}

fn translations(cpus: &[TlbReport]) -> String {
    let mut table = Table::new(&[
        ("TLB", Align::Left),
        ("FLUSHES", Align::Right),
        ("SHOOTDOWNS", Align::Right),
        ("ASKED", Align::Right),
        ("IPIS", Align::Right),
        ("SKIPPED", Align::Right),
        ("ANSWERED", Align::Right),
        ("MERGED", Align::Right),
        ("CAUGHT UP", Align::Right),
    ]);
    for (cpu, tlb) in cpus.iter().enumerate() {
        let asked = [tlb.flushes, tlb.shootdowns, tlb.asked, tlb.interrupts, tlb.skipped];
        let numbers = asked.into_iter().chain([tlb.answered, tlb.merged, tlb.caught_up]);
        table.row(
            std::iter::once(format!("cpu {cpu}")).chain(numbers.map(|number| number.to_string())),
        );
    }
    table.draw(0)
}

fn interrupts(cpus: &[InterruptReport]) -> String {
    let mut table = Table::new(&[
        ("INTERRUPTS", Align::Left),
        ("TIMER", Align::Right),
        ("PAGES", Align::Right),
    ]);
    for (number, cpu) in cpus.iter().enumerate() {
        table.row([
            format!("cpu {number}"),
            cpu.clock_interrupts.to_string(),
            cpu.longest_pages.to_string(),
        ]);
    }
    table.draw(0)
}
