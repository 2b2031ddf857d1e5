//! `vmkern bench`: what a launch and a request cost.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::RangedI64ValueParser;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use vmkern::bench::{
    self, AgainstBench, BenchError, BootBench, Interval, KmemBench, KmemSetup, PressureBench,
    Progress, RingBench, ScriptBench, Summary, Verdict,
};
use vmkern::guest::{GuestError, KernelError, KernelImage, LaunchError};
use vmkern::script::{Status, launch_status, values};

const EXAMPLES: &str = "\
Examples:
  vmkern bench boot      21 launches, each beside a bare VM and a bare process
  vmkern bench ring --json      what a request over the control ring costs
  vmkern bench kmem --vcpus 1,2 --rounds 5 --pairs 2000
  vmkern kernel --output old.elf      from another build; then, with this one:
  vmkern bench boot --against old.elf

Each figure is a median with its quartiles; every ratio is taken within a round, between neighbours
in time. With --against the built-in kernel and another one are measured in turns, and each ratio is
a median with the interval in which it lies in 99 of 100 repetitions; the exit status is 1 when one
is worse beyond its interval.";

const BOOT: &str = "\
Examples:
  vmkern bench boot --rounds 5
  vmkern bench boot --memory 1G --json | jq .launch_over_bare.median";

const KMEM: &str = "\
Examples:
  vmkern bench kmem --vcpus 1,2 --rounds 3 --pairs 1000
  vmkern bench kmem --size 64K --set vm.pgcache_zone_max_pcpu=0 --rounds 3";

const PRESSURE: &str = "\
Examples:
  vmkern bench pressure --rounds 3 --touched 64M
  vmkern bench pressure --rounds 3 --touched 64M --json | jq .seize_over_punch.median";

const RING: &str = "\
Examples:
  vmkern bench ring --rounds 3
  vmkern bench ring --rounds 3 --requests 5000 --json | jq .busy_us.median";

/// Measures what a launch and a request cost.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From nothing to the first finished kmem_malloc, beside a bare VM; and as a whole process,
    /// beside /bin/true.
    #[command(after_help = BOOT)]
    Boot {
        /// Rounds.
        #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Guest memory, 8M to 64G.
        #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = values::size)]
        memory: u64,
        /// Measures the built-in kernel and this one in turns, and compares them. Both must have
        /// the same ABI version.
        #[arg(long, value_name = "KERNEL")]
        against: Option<PathBuf>,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Allocating and freeing in loops inside the guest, a thread a vCPU, on maps of their own and
    /// on one map.
    #[command(after_help = KMEM)]
    Kmem {
        /// Rounds.
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Pairs of allocation and free that each thread does in a round.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        pairs: u64,
        /// Bytes of an allocation, at most 4M.
        #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = pair_size)]
        size: u64,
        /// Numbers of vCPUs to compare; ratios are to the first.
        #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = vcpu_count())]
        vcpus: Vec<u32>,
        /// Sets a kernel tunable; can be given several times.
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = values::setting)]
        settings: Vec<(String, u64)>,
        /// Measures the built-in kernel and this one in turns, and compares them. Both must have
        /// the same ABI version.
        #[arg(long, value_name = "KERNEL")]
        against: Option<PathBuf>,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Taking memory of a guest from outside: touched, scattered, and never used.
    #[command(after_help = PRESSURE)]
    Pressure {
        /// Rounds.
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Bytes that the guest touches and frees, 4M to 16G.
        #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = touched)]
        touched: u64,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// A request over the control ring: many in flight, one at a time, and from a script.
    #[command(after_help = RING)]
    Ring {
        /// Rounds.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Requests of each sort in a round.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
        requests: u32,
        /// Measures the built-in kernel and this one in turns, and compares them. Both must have
        /// the same ABI version.
        #[arg(long, value_name = "KERNEL")]
        against: Option<PathBuf>,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the subcommand.
pub fn run(args: &BenchArgs) -> Status {
    match measure(&args.what) {
        Ok(status) => status,
        Err(error) => {
            let status = match error.downcast_ref::<BenchError>() {
                Some(BenchError::Launch(error)) => launch_status(error),
                None if error.is::<KernelError>() || error.is::<WrongKernel>() => Status::Usage,
                Some(BenchError::Process { .. }) | None => Status::Failed,
                Some(_) => Status::Broken,
            };
            super::complain(&error);
            status
        }
    }
}

/// A number of vCPUs.
fn vcpu_count() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=64)
}

/// A size that fits the maps that are measured.
fn pair_size(text: &str) -> Result<u64, String> {
    let size = values::size(text)?;
    if (1..=bench::MAP_SIZE).contains(&size) {
        Ok(size)
    } else {
        Err("expected 1 to 4M".to_owned())
    }
}

/// An amount of memory that a guest can touch.
fn touched(text: &str) -> Result<u64, String> {
    let size = values::size(text)?;
    if (4 << 20..=16 << 30).contains(&size) && size.is_multiple_of(4 << 20) {
        Ok(size)
    } else {
        Err("expected 4M to 16G, a multiple of 4M".to_owned())
    }
}

fn measure(what: &What) -> anyhow::Result<Status> {
    // 1. Progress, on a terminal.
    let bar = bar();
    let mut watch = |Progress { done, total }: Progress| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    // 2. The benchmark, alone or against another kernel.
    match *what {
        What::Boot { rounds, memory, ref against, json } => {
            let rounds = rounds.into();
            if let Some(other) = kernel(against.as_deref())? {
                let result = bench::boot_against(&other, rounds, memory, &mut watch)?;
                return Ok(compared(&bar, &result, json));
            }
            let vmkern = std::env::current_exe().context("where this command itself is")?;
            let result = bench::boot(rounds, memory, &vmkern, &mut watch)?;
            bar.finish_and_clear();
            show(json.then_some(&result), || boot_text(&result));
        }
        What::Kmem { rounds, pairs, size, ref vcpus, ref settings, ref against, json } => {
            let (vcpus, settings) = (vcpus.clone(), settings.clone());
            let setup = KmemSetup { rounds: rounds.into(), pairs, size, vcpus, settings };
            if let Some(other) = kernel(against.as_deref())? {
                let result = bench::kmem_against(&other, &setup, &mut watch)?;
                return Ok(compared(&bar, &result, json));
            }
            let result = bench::kmem(&setup, &mut watch)?;
            bar.finish_and_clear();
            show(json.then_some(&result), || kmem_text(&result));
        }
        What::Pressure { rounds, touched, json } => {
            let result = bench::pressure(rounds.into(), touched, &mut watch)?;
            bar.finish_and_clear();
            show(json.then_some(&result), || pressure_text(&result));
        }
        What::Ring { rounds, requests, ref against, json } => {
            let requests = usize::try_from(requests).context("the number of requests")?;
            if let Some(other) = kernel(against.as_deref())? {
                let result = bench::ring_against(&other, rounds.into(), requests, &mut watch)?;
                return Ok(compared(&bar, &result, json));
            }
            let result = bench::ring(rounds.into(), requests, &mut watch)?;
            bar.finish_and_clear();
            show(json.then_some(&result), || ring_text(&result));
        }
    }
    Ok(Status::Ok)
}

/// The kernel to compare with, which has booted once here: one that does not is a wrong file, and
/// not a bug that a measurement found.
fn kernel(path: Option<&Path>) -> anyhow::Result<Option<KernelImage>> {
    let Some(path) = path else { return Ok(None) };
    let kernel = KernelImage::from_file(path)?;
    match bench::try_kernel(&kernel) {
        Ok(()) => Ok(Some(kernel)),
        Err(LaunchError::Guest(error)) => Err(WrongKernel(vmkern::text::name(path), error).into()),
        Err(error) => Err(BenchError::from(error).into()),
    }
}

/// A kernel to compare with that does not boot.
#[derive(Debug, thiserror::Error)]
#[error("the other kernel, {0}, does not boot here: {1}")]
struct WrongKernel(String, #[source] GuestError);

/// Shows a comparison; it fails when a figure is worse.
fn compared(bar: &ProgressBar, result: &AgainstBench, json: bool) -> Status {
    bar.finish_and_clear();
    show(json.then_some(result), || against_text(result));
    if result.is_worse() { Status::Failed } else { Status::Ok }
}

/// A bar that shows the progress on a terminal. It disappears at the end, after an error too.
fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length().with_finish(ProgressFinish::AndClear);
    match ProgressStyle::with_template("{bar:30} round {pos} of {len}, {elapsed}, {eta} to go") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Prints `json` if there is any, else the text.
fn show(json: Option<&impl serde::Serialize>, text: impl FnOnce() -> String) {
    match json {
        Some(result) => super::print_json(result),
        None => super::print(&text()),
    }
}

fn boot_text(result: &BootBench) -> String {
    let mut text = format!("{} rounds, guests of {} MiB\n", result.rounds, result.memory >> 20);
    row(&mut text, "bare VM: create to first exit", "us", result.bare_us);
    row(&mut text, "guest: create to first kmem_malloc done", "us", result.launch_us);
    row(&mut text, "  of which the kernel's own boot", "us", result.kernel_us);
    row(&mut text, "  guest / bare VM", "", result.launch_over_bare);
    row(&mut text, "process: fork and exec of /bin/true", "us", result.true_us);
    row(&mut text, "process: vmkern run with one kmem_malloc", "us", result.process_us);
    row(&mut text, "  vmkern / true", "", result.process_over_true);
    text
}

fn against_text(result: &AgainstBench) -> String {
    let mut text =
        format!("{} rounds, this build's kernel and the other in turns\n", result.rounds);
    for row in &result.rows {
        let _ = writeln!(
            text,
            "{:<44}{:>10.2} us, other {:.2} us, ratio {:.3} [{:.3} .. {:.3}]: {}",
            row.what,
            row.this_us.median,
            row.other_us.median,
            row.ratio.median,
            row.ratio.low,
            row.ratio.high,
            match row.verdict {
                Verdict::Better => "better",
                Verdict::Worse => "worse",
                Verdict::NoDifference => "no difference",
                Verdict::TooFewRounds => "too few rounds for a verdict",
            }
        );
    }
    text
}

fn ring_text(result: &RingBench) -> String {
    let mut text = format!("{} rounds of {} requests\n", result.rounds, result.requests);
    row(&mut text, "request, guest kept busy", "us", result.busy_us);
    row(&mut text, "request to answer, one at a time", "us", result.round_trip_us);
    row(&mut text, "kmem_malloc or kmem_free, one at a time", "us", result.kmem_us);
    let ScriptBench { operations, seconds } = result.script;
    let _ = writeln!(text, "{:<44}{seconds:>10.2} s", format!("script of {operations} operations"));
    text
}

fn pressure_text(result: &PressureBench) -> String {
    let mut text =
        format!("{} rounds, {} MiB touched and freed\n", result.rounds, result.touched >> 20);
    row(&mut text, "seize, until the memory is back", "us", result.seize_us);
    row(&mut text, "punch the same ranges in bulk", "us", result.punch_us);
    ratio(&mut text, "  seize / punch", result.seize_over_punch);
    row(&mut text, "  pages back, of those taken", "%", result.back_percent);
    row(&mut text, "never used: seize 2 MiB of 32 GiB", "us", result.unused_2m_us);
    row(&mut text, "never used: seize all of 32 GiB", "us", result.unused_all_us);
    ratio(&mut text, "  all / 2 MiB", result.unused_all_over_2m);
    row(&mut text, "scattered 2 MiB: record a block", "ns", result.scattered_block_ns);
    row(&mut text, "scattered 2 MiB: give a block back", "ns", result.return_block_ns);
    text
}

/// A ratio with the interval in which it lies in 99 of 100 repetitions.
fn ratio(text: &mut String, what: &str, Interval { low, median, high }: Interval) {
    let _ = writeln!(text, "{what:<44}{median:>10.3}    [{low:.3} .. {high:.3}], 99 %");
}

fn kmem_text(result: &KmemBench) -> String {
    let KmemBench { rounds, pairs, size, ref cases } = *result;
    let mut text =
        format!("{rounds} rounds of {pairs} pairs of {size} bytes a thread, a thread a vCPU\n");
    for case in cases {
        let of = if case.maps == "one" { "one map" } else { "disjoint maps" };
        let _ = writeln!(text, "{}, {of}, {} vCPUs", case.function, case.vcpus);
        row(&mut text, "  a pair, all threads together", "us", case.pair_us);
        row(&mut text, "  throughput over that of the first", "", case.scaling);
        row(&mut text, "    by the time that vCPUs had a core", "", case.scaling_on_free_cores);
        let _ = writeln!(
            text,
            "  a pair: {:.3} flushes, {:.3} CPUs asked ({:.3} by interrupt, {:.3} flushed anyway), \
             {:.3} idle skipped, {:.1} locks",
            case.flushes, case.asked, case.interrupts, case.merged, case.skipped, case.acquired
        );
        for (what, counts) in [
            ("locks", &case.locks),
            ("waits", &case.contested),
            ("cycles waited", &case.waited_cycles),
        ] {
            let counts: Vec<_> =
                counts.iter().map(|(class, count)| format!("{class} {count:.3}")).collect();
            if !counts.is_empty() {
                let _ = writeln!(text, "  {what}: {}", counts.join(", "));
            }
        }
    }
    text
}

fn row(text: &mut String, what: &str, unit: &str, Summary { q1, median, q3 }: Summary) {
    let _ = writeln!(text, "{what:<44}{median:>10.2} {unit:<2} [{q1:.2} .. {q3:.2}]");
}
