//! What it costs to take memory of a guest from outside.

use std::time::{Duration, Instant};

use serde::Serialize;
use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::{BenchError, Interval, Progress, Summary, Watch};
use crate::guest::{Guest, Pages, PressureTarget, ThreadId};

/// A large page in bytes.
const LARGE: u64 = 2 << 20;
/// What a guest has touched besides the bytes that are measured.
const SLACK: u64 = 4 << 20;
/// Memory of the guest that has used hardly any of it.
const UNUSED: u64 = 32 << 30;

/// What [`pressure`] measured. Times are in microseconds unless their names say otherwise.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PressureBench {
    /// Rounds.
    pub rounds: usize,
    /// Bytes that the guest touched and freed.
    pub touched: u64,
    /// Taking all of them, until the memory is back at the host.
    pub seize_us: Summary,
    /// Punching the same ranges out of the same file, in bulk.
    pub punch_us: Summary,
    /// `seize_us / punch_us`, round by round.
    pub seize_over_punch: Interval,
    /// Pages by which the host's account fell, of each hundred that were taken.
    pub back_percent: Summary,
    /// Taking 2 MiB of a guest of 32 GiB that has used hardly any memory.
    pub unused_2m_us: Summary,
    /// Taking all of its free memory.
    pub unused_all_us: Summary,
    /// `unused_all_us / unused_2m_us`, round by round.
    pub unused_all_over_2m: Interval,
    /// Recording a block of 2 MiB that lies alone and was touched, in nanoseconds.
    pub scattered_block_ns: Summary,
    /// Giving such a block back, in nanoseconds: each of its pages is then known to be zero.
    pub return_block_ns: Summary,
}

/// Measures how a guest gives up `touched` bytes, a multiple of 4 MiB, that it has just touched,
/// and memory that it has never used, `rounds` times (at least once); `watch` follows the rounds.
///
/// # Errors
/// When a guest fails or its memory cannot be taken.
pub fn pressure(
    rounds: usize,
    touched: u64,
    watch: Watch<'_>,
) -> Result<PressureBench, BenchError> {
    // 1. The measurements take turns, so a change of the host's load affects all of them.
    let mut used = used(touched)?;
    let mut unused = super::launch(Guest::builder().memory(UNUSED))?;
    let mut figures: [Vec<f64>; 7] = Default::default();
    for round in 0..=rounds {
        watch(Progress { done: round, total: rounds + 1 });
        let (seize, back) = touch_and_seize(&mut used, touched)?;
        let punch = touch_and_punch(&mut used, touched)?;
        let [few, all] = seize_unused(&mut unused)?;
        let [taken, given] = scattered(&mut used, touched)?;
        if round > 0 {
            let times = [seize, punch, few, all].map(|time| time.as_secs_f64() * 1e6);
            let blocks = [taken, given].map(|time| time.as_secs_f64() * 1e9);
            let row = times.into_iter().chain(blocks).chain([back]);
            figures.iter_mut().zip(row).for_each(|(figures, figure)| figures.push(figure));
        }
    }
    // 2. Ratios are taken round by round.
    let [seize, punch, few, all, taken, given, back] = &figures;
    Ok(PressureBench {
        rounds,
        touched,
        seize_us: Summary::of(seize),
        punch_us: Summary::of(punch),
        seize_over_punch: Interval::of_ratios(seize, punch),
        back_percent: Summary::of(back),
        unused_2m_us: Summary::of(few),
        unused_all_us: Summary::of(all),
        unused_all_over_2m: Interval::of_ratios(all, few),
        scattered_block_ns: Summary::of(taken),
        return_block_ns: Summary::of(given),
    })
}

/// A guest that can touch `touched` bytes, all whose free memory besides that is seized.
fn used(touched: u64) -> Result<Guest, BenchError> {
    let builder = Guest::builder().memory(touched + (64 << 20));
    let mut guest = super::launch(builder.tunable("vm.kmem_size", touched + (16 << 20)))?;
    // It uses a little more than that once, and then loses all memory that it has never used.
    let size = touched + SLACK;
    let addr = allocate(&mut guest, size)?;
    touch_and_free(&mut guest, addr, size)?;
    guest.pressure().seize(PressureTarget::Leave(Pages(size / PAGE_SIZE)))?;
    Ok(guest)
}

fn allocate(guest: &mut Guest, size: u64) -> Result<GuestVirt, BenchError> {
    let op = Op::KmemMalloc { map: MapId::KMEM, size, flags: MallocFlags::NOWAIT };
    match guest.call(ThreadId::MAIN, op)?.outcome {
        Outcome::Value(addr) => Ok(GuestVirt::new(addr)),
        other => Err(BenchError::Answer(format!("kmem_malloc of {size} bytes: {other:?}"))),
    }
}

fn work(guest: &mut Guest, op: Op) -> Result<(), BenchError> {
    match guest.call(ThreadId::MAIN, op)?.outcome {
        Outcome::Ok => Ok(()),
        other => Err(BenchError::Answer(format!("{op:?}: {other:?}"))),
    }
}

fn touch_and_free(guest: &mut Guest, addr: GuestVirt, size: u64) -> Result<(), BenchError> {
    work(guest, Op::Touch { addr, size })?;
    work(guest, Op::KmemFree { map: MapId::KMEM, addr, size })
}

/// What is taken: all that is free of what was touched.
fn target(touched: u64) -> PressureTarget {
    PressureTarget::More(Pages(touched / PAGE_SIZE))
}

/// The time of a seizure, and the percentage of the pages that came back.
fn touch_and_seize(guest: &mut Guest, touched: u64) -> Result<(Duration, f64), BenchError> {
    let addr = allocate(guest, touched)?;
    touch_and_free(guest, addr, touched)?;
    let start = Instant::now();
    let report = guest.pressure().seize(target(touched))?;
    let elapsed = start.elapsed();
    guest.pressure().release(report.taken)?;
    Ok((elapsed, percent(report.back, report.taken)))
}

#[expect(clippy::cast_precision_loss, reason = "numbers of pages are small")]
fn percent(part: Pages, all: Pages) -> f64 {
    part.0 as f64 * 100.0 / all.0 as f64
}

/// The time to punch the ranges of the same pages, which are recorded before.
fn touch_and_punch(guest: &mut Guest, touched: u64) -> Result<Duration, BenchError> {
    let addr = allocate(guest, touched)?;
    touch_and_free(guest, addr, touched)?;
    let mut pressure = guest.pressure();
    let record = pressure.record(target(touched))?;
    let start = Instant::now();
    pressure.discard(&record.frames).map_err(|error| BenchError::Answer(error.to_string()))?;
    let elapsed = start.elapsed();
    pressure.release(Pages(touched / PAGE_SIZE))?;
    Ok(elapsed)
}

/// The times to take 2 MiB, and all that is free.
fn seize_unused(guest: &mut Guest) -> Result<[Duration; 2], BenchError> {
    let targets =
        [PressureTarget::More(Pages(LARGE / PAGE_SIZE)), PressureTarget::Leave(Pages(2048))];
    let mut times = [Duration::ZERO; 2];
    for (target, time) in targets.into_iter().zip(&mut times) {
        let start = Instant::now();
        guest.pressure().seize(target)?;
        *time = start.elapsed();
        guest.pressure().release(Pages::ALL)?;
    }
    Ok(times)
}

/// The times to record one of many blocks of 2 MiB that lie alone, and to give one back.
fn scattered(guest: &mut Guest, touched: u64) -> Result<[Duration; 2], BenchError> {
    // 1. Allocations of 2 MiB each, of which every second one is freed.
    let count = touched / LARGE;
    let mut held = Vec::new();
    for _ in 0..count {
        let addr = allocate(guest, LARGE)?;
        work(guest, Op::Touch { addr, size: LARGE })?;
        held.push(addr);
    }
    let free = |addr: GuestVirt| Op::KmemFree { map: MapId::KMEM, addr, size: LARGE };
    for &addr in held.iter().step_by(2) {
        work(guest, free(addr))?;
    }
    // 2. The free pages are recorded and given back, all of them at once.
    let pages = Pages(count.div_ceil(2) * (LARGE / PAGE_SIZE));
    let mut pressure = guest.pressure();
    let start = Instant::now();
    let record = pressure.record(PressureTarget::More(pages))?;
    let taken = start.elapsed();
    pressure.discard(&record.frames).map_err(|error| BenchError::Answer(error.to_string()))?;
    let start = Instant::now();
    pressure.release(pages)?;
    let given = start.elapsed();
    for &addr in held.iter().skip(1).step_by(2) {
        work(guest, free(addr))?;
    }
    let blocks = u32::try_from(count.div_ceil(2)).unwrap_or(u32::MAX).max(1);
    Ok([taken / blocks, given / blocks])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured_in_every_round_and_nearly_all_memory_comes_back() {
        let result = pressure(2, 8 << 20, &mut |_| {}).expect("it can be measured");
        assert!(result.seize_us.median > 0.0 && result.unused_all_us.median > 0.0);
        assert!(result.scattered_block_ns.median > 0.0 && result.return_block_ns.median > 0.0);
        assert!(result.back_percent.median > 95.0, "{result:?}");
    }
}
