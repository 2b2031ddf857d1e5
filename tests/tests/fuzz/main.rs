//! Dumps with seeded damage, read by every kind of inspection: no panic, no endless loop, no
//! unbounded memory.
//!
//! `scripts/fuzz.sh N [FIRST]` runs any number of cases. A case is its number: the damage follows
//! from that, and the content of the dump from the seed of the guest.

mod alloc;
mod damage;

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vmkern::GuestVirt;
use vmkern::check::Report;
use vmkern::dump::Dump;
use vmkern::guest::KernelImage;
use vmkern::inspect::Source as _;
use vmkern::inspect::draw::draw;
use vmkern::inspect::{Inspection, Symbols, View, What};
use vmkern_tests::damage::{Overlay, State, specimen_file};

use self::alloc::{Counting, peak_of};
use self::damage::{Damage, Victim};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Cases of an ordinary run.
const CASES: u64 = 20_000;
/// The most pages, or parts of pages, that one inspection of a dump may read: about ten times what
/// a good dump needs.
const READS: u64 = 2_000_000;
/// The most bytes that one inspection may hold at a time: a good dump of 32 MiB takes a few MiB.
const MEMORY: usize = 256 << 20;
/// A thread without a read for this long hangs in a loop that reads nothing.
const SILENCE: Duration = Duration::from_secs(120);

/// Cases that once failed.
const REGRESSIONS: &[u64] = &[685, 972, 1271, 1618, 11_802, 97_015];

thread_local! {
    /// Where the thread last panicked.
    static PANICKED_AT: Cell<Option<String>> = const { Cell::new(None) };
}

/// Whether a damaged dump could still be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    No,
    Yes,
}

/// A dump file, and the inspections that read it.
struct Bench {
    path: PathBuf,
    file: File,
    symbols: Symbols,
}

impl Bench {
    fn new(directory: &Path, worker: usize, victim: &Victim) -> Self {
        let path = directory.join(format!("victim{worker}.img"));
        std::fs::write(&path, &victim.bytes).expect("the image can be written");
        let file = OpenOptions::new().write(true).open(&path).expect("it can be written to");
        Self { path, file, symbols: Symbols::of(KernelImage::embedded().bytes()) }
    }

    /// Damages the file, inspects it, and restores it.
    fn run(&self, victim: &Victim, good: &Dump, damage: &Damage) -> Result<Opened, String> {
        for (at, bytes) in &damage.patches {
            self.file.write_all_at(bytes, *at as u64).expect("the file can be written");
        }
        if let Some(len) = damage.len {
            self.file.set_len(len as u64).expect("the file can be cut");
        }
        let result = self.look(good);
        if let Some(len) = damage.len {
            self.file.set_len(victim.bytes.len() as u64).expect("the file can grow");
            if let Some(lost) = victim.bytes.get(len..) {
                self.file.write_all_at(lost, len as u64).expect("the file can be written");
            }
        }
        for (at, bytes) in &damage.patches {
            let whole = &victim.bytes[*at..at + bytes.len()];
            self.file.write_all_at(whole, *at as u64).expect("the file can be written");
        }
        result
    }

    fn look(&self, good: &Dump) -> Result<Opened, String> {
        let open = || Dump::open(&self.path).map_err(|error| error.to_string());
        let Ok(image) = bounded("opening", open)? else { return Ok(Opened::No) };
        let source = Overlay::bounded(&image, READS);
        let check = || {
            Report::of(&source).map(|report| report.to_string()).map_err(|error| error.to_string())
        };
        let _ = bounded("check", check)?;
        let roots = source.anchors().roots.addr();
        let names = ["kernel_map", "exec_map"]
            .map(|name| What::parse(&["map".to_owned(), name.to_owned()]));
        let others = [
            What::Summary,
            What::Maps,
            What::Objects,
            What::Pages,
            What::Page(0x1010),
            What::Vtop(roots),
            What::Vtop(GuestVirt::new(0xffff_ff80_0000_1000)),
            What::page_tables(),
            What::Threads,
            What::Cpus,
        ];
        for what in others.into_iter().chain(names.into_iter().flatten()) {
            source.restart();
            let inspect = || {
                let view = View::new(&source).map_err(|error| error.to_string())?;
                let inspection = Inspection::of("victim", &view, &what, &self.symbols)
                    .map_err(|error| error.to_string())?;
                let text = draw(&inspection);
                serde_json::to_string(&inspection)
                    .map(|json| json.len() + text.len())
                    .map_err(|error| error.to_string())
            };
            let _ = bounded(&what.to_string(), inspect)?;
        }
        source.restart();
        let diff = || {
            let (before, after) = (View::new(good), View::new(&source));
            let (Ok(before), Ok(after)) = (before, after) else { return Ok(0) };
            Ok::<_, String>(draw(&Inspection::diff(("good", &before), ("victim", &after))).len())
        };
        bounded("diff", diff)??;
        Ok(Opened::Yes)
    }
}

/// The result of `f`, or an error if it panics or takes too much memory.
fn bounded<T>(
    what: &str,
    f: impl FnOnce() -> Result<T, String>,
) -> Result<Result<T, String>, String> {
    let (result, peak) = peak_of(|| panic::catch_unwind(AssertUnwindSafe(f)));
    let result = result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let at = PANICKED_AT.take().unwrap_or_default();
        format!("{what} panics at {at}: {}", text.unwrap_or_default())
    })?;
    if peak > MEMORY { Err(format!("{what} has {peak} bytes at a time")) } else { Ok(result) }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Runs `cases`, a few on each CPU. Returns how many dumps could be opened, and the failures.
fn campaign(cases: impl Iterator<Item = u64> + Send, progress: u64) -> (u64, Vec<String>) {
    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let victims: Vec<(Victim, Dump)> = [(4, State::AtRest), (5, State::Busy)]
        .into_iter()
        .map(|(seed, state)| {
            let path = directory.path().join("good.img");
            specimen_file(seed, state, &path);
            let image = Dump::open(&path).expect("the image is good");
            let bytes = std::fs::read(&path).expect("the image can be read");
            (Victim::new(bytes, &image), image)
        })
        .collect();
    let workers = thread::available_parallelism().map_or(2, usize::from).min(8);
    let (cases, done) = (std::sync::Mutex::new(cases), AtomicU64::new(0));
    let opened = AtomicU64::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    panic::set_hook(Box::new(|info| {
        PANICKED_AT.set(info.location().map(ToString::to_string));
    }));
    thread::scope(|scope| {
        for worker in 0..workers {
            let (victims, cases, done, failures, directory) =
                (&victims, &cases, &done, &failures, directory.path());
            let opened = &opened;
            scope.spawn(move || {
                let benches: Vec<Bench> = victims
                    .iter()
                    .enumerate()
                    .map(|(number, (victim, _))| {
                        Bench::new(directory, worker * victims.len() + number, victim)
                    })
                    .collect();
                let (alive, watched) = mpsc::channel();
                // A loop that reads nothing is not counted. So a thread that is silent for long is
                // named, and the process ends.
                thread::spawn(move || {
                    let mut last = None;
                    loop {
                        match watched.recv_timeout(SILENCE) {
                            Ok(case) => last = Some(case),
                            Err(mpsc::RecvTimeoutError::Disconnected) => return,
                            Err(mpsc::RecvTimeoutError::Timeout) => {
                                eprintln!("case {last:?} does not end");
                                std::process::abort();
                            }
                        }
                    }
                });
                loop {
                    let case = cases.lock().expect("no holder panics").next();
                    let Some(case) = case else { break };
                    alive.send(case).expect("the watcher waits");
                    let which = usize::try_from(case % victims.len() as u64).expect("an index");
                    let (victim, good) = &victims[which];
                    match benches[which].run(victim, good, &victim.damage(case)) {
                        Ok(Opened::Yes) => drop(opened.fetch_add(1, Ordering::Relaxed)),
                        Ok(Opened::No) => {}
                        Err(problem) => {
                            failures
                                .lock()
                                .expect("no holder panics")
                                .push(format!("case {case}: {problem}"));
                        }
                    }
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if progress != 0 && done.is_multiple_of(progress) {
                        let failed = failures.lock().expect("no holder panics").len();
                        eprintln!("{done} cases, {failed} failed");
                    }
                }
            });
        }
    });
    let _ = panic::take_hook();
    (opened.into_inner(), failures.into_inner().expect("no holder panicked"))
}

#[test]
fn no_damage_makes_a_look_panic_or_run_on_or_take_memory_without_bounds() {
    let (first, count) = (number("FUZZ_FIRST").unwrap_or(0), number("FUZZ_CASES").unwrap_or(CASES));
    let progress = if number("FUZZ_CASES").is_some() { 10_000 } else { 0 };
    let began = std::time::Instant::now();
    let (opened, failures) =
        campaign(REGRESSIONS.iter().copied().chain(first..first + count), progress);
    eprintln!("{count} cases from {first} in {:?}, {opened} of them opened", began.elapsed());
    let told = failures[..failures.len().min(20)].join("\n");
    assert!(failures.is_empty(), "{} cases failed:\n{told}", failures.len());
    assert!(opened > count / 2, "only {opened} of {count} images could be looked into");
}
