//! The time until a kernel has allocated memory.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmkern_abi::control::{MallocFlags, MapId, Op, Outcome};

use super::against::{self, AgainstBench, Figure};
use super::{BenchError, Progress, Summary, Watch, bare};
use crate::guest::{Guest, LaunchError, ThreadId};
use crate::kernel::KernelImage;

/// What [`boot`] measured. Times are in microseconds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BootBench {
    /// Rounds.
    pub rounds: usize,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Opening `/dev/kvm` to the first exit of a bare VM.
    pub bare_us: Summary,
    /// Opening `/dev/kvm` to the first finished `kmem_malloc`.
    pub launch_us: Summary,
    /// The part of it from the kernel's first instruction to its readiness.
    pub kernel_us: Summary,
    /// `launch_us / bare_us`, round by round.
    pub launch_over_bare: Summary,
    /// `fork` and `exec` of `/bin/true`, to its end.
    pub true_us: Summary,
    /// The whole process `vmkern run -` with a script of one `kmem_malloc`.
    pub process_us: Summary,
    /// `process_us / true_us`, round by round.
    pub process_over_true: Summary,
}

/// Measures launches of guests with `memory` bytes, `rounds` times (at least once). `vmkern` is the
/// command to run as a process; `watch` follows the rounds.
///
/// # Errors
/// When a guest or a process fails.
pub fn boot(
    rounds: usize,
    memory: u64,
    vmkern: &Path,
    watch: Watch<'_>,
) -> Result<BootBench, BenchError> {
    Guest::builder().memory(memory).validate().map_err(LaunchError::from)?;
    // 1. The measurements take turns, so a change of the host's load affects all of them.
    let embedded = KernelImage::embedded();
    let mut times: [Vec<f64>; 5] = Default::default();
    // A warm-up round, which pages in the code and asks KVM for its CPUID.
    for round in 0..=rounds {
        watch(Progress { done: round, total: rounds + 1 });
        let bare = bare::create_to_first_exit(memory)?;
        let (launch, kernel) = launch(&embedded, memory)?;
        let figures = [
            bare,
            launch,
            kernel,
            process(Command::new("/bin/true"), b"")?,
            process(command(vmkern, memory), b"kmem_malloc kmem_map 4K NOWAIT\n")?,
        ];
        if round > 0 {
            for (times, figure) in times.iter_mut().zip(figures) {
                times.push(figure.as_secs_f64() * 1e6);
            }
        }
    }
    // 2. Ratios are taken round by round.
    let [bare, launch, kernel, true_, process] = &times;
    Ok(BootBench {
        rounds,
        memory,
        bare_us: Summary::of(bare),
        launch_us: Summary::of(launch),
        kernel_us: Summary::of(kernel),
        launch_over_bare: Summary::of_ratios(launch, bare),
        true_us: Summary::of(true_),
        process_us: Summary::of(process),
        process_over_true: Summary::of_ratios(process, true_),
    })
}

/// Launches, in each round, five guests with `memory` bytes of the built-in kernel and as many
/// of `other`, `rounds` times (at least once); `watch` follows the rounds.
///
/// # Errors
/// When a guest fails.
pub fn boot_against(
    other: &KernelImage,
    rounds: usize,
    memory: u64,
    watch: Watch<'_>,
) -> Result<AgainstBench, BenchError> {
    /// A round takes the median of this many launches: a single one depends too much on the host.
    const LAUNCHES: usize = 5;
    against::in_turns(other, rounds, watch, |kernel| {
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..LAUNCHES {
            let (launch, boot) = launch(kernel, memory)?;
            times[0].push(launch.as_secs_f64() * 1e6);
            times[1].push(boot.as_secs_f64() * 1e6);
        }
        let names = ["create to first kmem_malloc done", "the kernel's own boot"];
        let figures = names
            .iter()
            .zip(&times)
            .map(|(&what, times)| Figure { what: what.to_owned(), us: Summary::of(times).median });
        Ok(figures.collect())
    })
}

/// Time of a launch up to the first finished operation, and the kernel's part of it.
fn launch(kernel: &KernelImage, memory: u64) -> Result<(Duration, Duration), BenchError> {
    let kernel = kernel.clone();
    let start = Instant::now();
    let mut guest = super::launch(Guest::builder().kernel(kernel).memory(memory))?;
    let response = guest.call(
        ThreadId::MAIN,
        Op::KmemMalloc { map: MapId::KMEM, size: 4096, flags: MallocFlags::NOWAIT },
    )?;
    let elapsed = start.elapsed();
    match response.outcome {
        Outcome::Value(_) => {
            let environment = guest.environment();
            let nanos = environment.boot_cycles.saturating_mul(1_000_000)
                / u64::from(environment.tsc_khz.max(1));
            Ok((elapsed, Duration::from_nanos(nanos)))
        }
        other => Err(BenchError::Answer(format!("{other:?}"))),
    }
}

fn command(vmkern: &Path, memory: u64) -> Command {
    let mut command = Command::new(vmkern);
    command.args(["run", "--memory", &memory.to_string(), "-"]);
    command
}

fn process(mut command: Command, input: &[u8]) -> Result<Duration, BenchError> {
    let name = command.get_program().display().to_string();
    let failed = |reason: String| BenchError::Process { command: name.clone(), reason };
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A process that does not read its input may have exited already; its status shows whether
        // it failed.
        let _ = stdin.write_all(input);
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let elapsed = start.elapsed();
    if status.success() { Ok(elapsed) } else { Err(failed(status.to_string())) }
}
