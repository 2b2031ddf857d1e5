//! The CPUs.

use serde::Serialize;

use super::hex::Hex;
use super::page_caches::page_caches;
use super::stack;
use super::survey::Survey;
use super::threads::on_cpus;
use crate::cpu::GPR_NAMES;
use crate::symbols::Symbols;
use crate::{CpuState, RunState};

/// A register by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RegisterReport {
    /// The name, in lower case.
    pub name: &'static str,
    /// The value.
    pub value: Hex,
}

/// A CPU's cache of free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CachedPages {
    /// How many.
    pub pages: u64,
    /// How many it may keep.
    pub max: u64,
}

/// A CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CpuReport {
    /// Its number.
    pub cpu: u32,
    /// `running`, `halted` or `ended`.
    pub state: &'static str,
    /// Privilege level; null if unknown.
    pub cpl: Option<u8>,
    /// The thread that it runs.
    pub thread: Option<String>,
    /// Its cache of free pages; null when there are no such caches.
    pub page_cache: Option<CachedPages>,
    /// All registers that are known.
    pub registers: Vec<RegisterReport>,
    /// Calls, innermost first.
    pub backtrace: Vec<String>,
}

/// `inspect cpus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CpusReport {
    /// The CPUs.
    pub cpus: Vec<CpuReport>,
}

pub(super) fn cpus(survey: &Survey<'_, '_>, symbols: &Symbols) -> CpusReport {
    let cpus = survey.damage.ok(survey.view.source().cpus()).unwrap_or_default();
    let threads = on_cpus(survey);
    let max = survey
        .roots()
        .filter(|roots| roots.page_cache_floor.get() != 0)
        .map(|roots| roots.page_cache_max.get());
    let caches = page_caches(survey);
    let cached = |cpu: &CpuState| {
        let cache = caches.iter().find(|cache| cache.cpu == cpu.cpu)?;
        Some(CachedPages { pages: cache.pages, max: max? })
    };
    let whole = |cpu: &CpuState| CpuReport {
        page_cache: cached(cpu),
        ..report(survey, symbols, cpu, threads.get(&cpu.cpu).cloned())
    };
    CpusReport { cpus: cpus.iter().map(whole).collect() }
}

fn report(
    survey: &Survey<'_, '_>,
    symbols: &Symbols,
    cpu: &CpuState,
    thread: Option<String>,
) -> CpuReport {
    // 1. The registers, general ones first.
    let registers = &cpu.registers;
    let general = GPR_NAMES.into_iter().zip(registers.gpr);
    let others = [
        ("rip", registers.rip.get()),
        ("rflags", registers.rflags),
        ("cr0", registers.cr0),
        ("cr2", registers.cr2.get()),
        ("cr3", registers.cr3),
        ("cr4", registers.cr4),
        ("efer", registers.efer),
        ("cs", registers.cs.into()),
    ];
    // 2. A CPU that has no code segment yet has no privilege level.
    CpuReport {
        cpu: cpu.cpu,
        state: state_name(cpu.state),
        cpl: (registers.cs != 0).then(|| (registers.cs & 3).to_le_bytes()[0]),
        thread,
        page_cache: None,
        registers: general
            .chain(others)
            .map(|(name, value)| RegisterReport { name, value: Hex(value) })
            .collect(),
        backtrace: stack::of_cpu(survey, symbols, registers),
    }
}

/// The run state in a word.
pub(super) fn state_name(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Halted => "halted",
        RunState::Ended => "ended",
    }
}
