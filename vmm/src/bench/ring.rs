//! The cost of a request.

use std::time::Instant;

use serde::Serialize;
use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::against::{self, AgainstBench, Figure};
use super::{BenchError, Progress, Summary, Watch};
use crate::guest::{Guest, ThreadId};
use crate::kernel::KernelImage;
use crate::script::{Setup, Source, Status, Step, Stop, parse, run_script};

/// Requests in flight while the guest is kept busy.
const WINDOW: usize = 128;

/// What [`ring`] measured.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RingBench {
    /// Rounds.
    pub rounds: usize,
    /// Requests of each kind in a round.
    pub requests: usize,
    /// Microseconds per request while many are in flight, so the guest is always busy.
    pub busy_us: Summary,
    /// Microseconds from a request to its answer, one at a time.
    pub round_trip_us: Summary,
    /// Microseconds per operation, alternating `kmem_malloc` and `kmem_free` of one page, one at a
    /// time.
    pub kmem_us: Summary,
    /// A script, from its text to its end, with its own guest.
    pub script: ScriptBench,
}

/// A script's run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ScriptBench {
    /// Operations in it.
    pub operations: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Measures `requests` requests of each kind, `rounds` times, and a script; `watch` follows the
/// rounds.
///
/// # Errors
/// When a guest fails.
pub fn ring(rounds: usize, requests: usize, watch: Watch<'_>) -> Result<RingBench, BenchError> {
    let mut guest = super::launch(Guest::builder())?;
    let mut times: [Vec<f64>; 3] = Default::default();
    let total = rounds + 2;
    for round in 0..=rounds {
        watch(Progress { done: round, total });
        let figures = figures(&mut guest, requests)?;
        // The first round warms up.
        if round > 0 {
            for (times, figure) in times.iter_mut().zip(figures) {
                times.push(figure);
            }
        }
        guest.restart_clock();
    }
    watch(Progress { done: rounds + 1, total });
    let [busy, round_trip, kmem] = &times;
    Ok(RingBench {
        rounds,
        requests,
        busy_us: Summary::of(busy),
        round_trip_us: Summary::of(round_trip),
        kmem_us: Summary::of(kmem),
        script: script()?,
    })
}

/// Measures `requests` requests of each kind, in each round with a guest of the built-in kernel and
/// one of `other`, `rounds` times (at least once); `watch` follows the rounds.
///
/// # Errors
/// When a guest fails.
pub fn ring_against(
    other: &KernelImage,
    rounds: usize,
    requests: usize,
    watch: Watch<'_>,
) -> Result<AgainstBench, BenchError> {
    const NAMES: [&str; 3] =
        ["request, guest kept busy", "request to answer", "kmem_malloc or kmem_free"];
    against::in_turns(other, rounds, watch, |kernel| {
        let mut guest = super::launch(Guest::builder().kernel(kernel.clone()))?;
        let figures = figures(&mut guest, requests)?;
        let named = NAMES.iter().zip(figures);
        Ok(named.map(|(&what, us)| Figure { what: what.to_owned(), us }).collect())
    })
}

/// Microseconds per request: while the guest is kept busy, one at a time, and one operation on
/// memory at a time.
fn figures(guest: &mut Guest, requests: usize) -> Result<[f64; 3], BenchError> {
    Ok([
        timed(requests, || busy(guest, requests))?,
        timed(requests, || one_by_one(guest, requests))?,
        timed(requests, || kmem(guest, requests))?,
    ])
}

/// Runs `work` and returns the microseconds per request.
#[expect(clippy::cast_precision_loss, reason = "numbers of requests are small")]
fn timed(
    requests: usize,
    work: impl FnOnce() -> Result<(), BenchError>,
) -> Result<f64, BenchError> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e6 / requests as f64)
}

fn busy(guest: &mut Guest, requests: usize) -> Result<(), BenchError> {
    for sent in 0..requests {
        guest.submit(ThreadId::MAIN, Op::Nop)?;
        if sent >= WINDOW {
            guest.next_response()?;
        }
    }
    for _ in 0..requests.min(WINDOW) {
        guest.next_response()?;
    }
    Ok(())
}

fn one_by_one(guest: &mut Guest, requests: usize) -> Result<(), BenchError> {
    for _ in 0..requests {
        guest.call(ThreadId::MAIN, Op::Nop)?;
    }
    Ok(())
}

fn kmem(guest: &mut Guest, requests: usize) -> Result<(), BenchError> {
    const SIZE: u64 = 4096;
    let map = MapId::KMEM;
    for _ in 0..requests.div_ceil(2) {
        let malloc = Op::KmemMalloc { map, size: SIZE, flags: MallocFlags::NOWAIT };
        let addr = match guest.call(ThreadId::MAIN, malloc)?.outcome {
            Outcome::Value(addr) => GuestVirt::new(addr),
            other => return Err(BenchError::Answer(format!("{other:?}"))),
        };
        guest.call(ThreadId::MAIN, Op::KmemFree { map, addr, size: SIZE })?;
    }
    Ok(())
}

/// Runs a script of 100,000 operations.
fn script() -> Result<ScriptBench, BenchError> {
    const OPERATIONS: usize = 100_000;
    let pairs = OPERATIONS / 2;
    let text = format!(
        "repeat {pairs}\na = kmem_malloc kmem_map 4K NOWAIT\nkmem_free kmem_map $a 4K\nend\n"
    );
    let start = Instant::now();
    let source = Source::from_bytes("bench", text.as_bytes())
        .map_err(|_| BenchError::Script("not UTF-8".into()))?;
    let script = parse(&source).map_err(|errors| BenchError::Script(format!("{errors:?}")))?;
    let setup = Setup { builder: Guest::builder(), seed: 0, console: None, pressure: None };
    let session = run_script(&script, setup, &Stop::after(super::LIMIT), &mut |_: &Step| {})?;
    let seconds = start.elapsed().as_secs_f64();
    match session.ending.status() {
        Status::Ok => Ok(ScriptBench { operations: OPERATIONS, seconds }),
        other => Err(BenchError::Script(format!("status {}", other as u8))),
    }
}
