//! Random scripts, and the corpus with mutations, run as a user runs them: whatever a script
//! contains, the command ends by itself, reports no bug of its own or of the guest, prints valid
//! JSON if asked to, and leaves nothing behind.
//!
//! `VMKERN_SCRIPTS` is the number of scripts of each of the two kinds (50; `scripts/soak.sh
//! scripts` takes 3,000), `VMKERN_SCRIPTS_SEED` the seed of the first (0).

mod dice;
mod generate;
mod known;
mod mutate;
mod numbers;
mod options;
mod run;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use dice::Dice;
use generate::{Generator, Manners};
use options::Options;
use run::{Ran, run};
use vmkern::abi::layout::VmMeter;
use vmkern::script::{FLAGS, MapField, VERBS};

/// Kind and seed of scripts that failed once: they always run, whatever the first seed is.
const REGRESSIONS: [(Kind, u64); 0] = [];
/// Scripts of each kind that run at a time.
const WORKERS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A generated script.
    Random,
    /// A script of the corpus, with mutations.
    Mutated,
}

/// The result of a script: the exit status, and the number of its own expectations.
struct End {
    status: i32,
    expects: usize,
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// A script in which most statements are valid, with its options, and whether its run is
/// repeatable.
fn random_script(seed: u64) -> (Options, Vec<String>, bool) {
    let mut dice = Dice::new(seed);
    let is_repeatable = dice.once_in(2);
    let options =
        if is_repeatable { Options::repeatable(&mut dice) } else { Options::any(&mut dice) };
    let style = options.style;
    let mut lines = Generator::new(&mut dice, style).script();
    if !is_repeatable && dice.once_in(4) {
        let keys = ["memory=8M", "vcpus=2 seed=7", "time=virtual timeout=5s", "policy=classic"];
        lines.insert(0, format!("guest {} vm.kmem_size=4M", dice.word(&keys)));
    }
    (options, lines, is_repeatable)
}

/// Whether a script frees and fills only its own memory, whatever else it does: these maps contain
/// no memory of the kernel. A script that writes single words may hit the kernel's, such as a page
/// table.
fn spares_the_kernel(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let is_own =
        |map: &str| map.starts_with('$') || ["kmem_map", "exec_map", "pipe_map"].contains(&map);
    let spares = |two: &[&str]| !two[0].contains("kmem_free") || is_own(two[1]);
    !text.contains("pmap_q") && !words.contains(&"write") && words.windows(2).all(spares)
}

/// A guest whose script spares the kernel's memory must have no findings.
fn sound(ran: &Ran) -> Result<(), String> {
    let is_finding = |failure: &&serde_json::Value| failure["expected"] == "no findings at the end";
    let has_found =
        |step: &&serde_json::Value| step["verb"] == "check" && step["result"]["kind"] == "value";
    match ran.list("failures").iter().find(is_finding).or(ran.list("steps").iter().find(has_found))
    {
        Some(found) => Err(format!("the check finds something: {found}")),
        None => Ok(()),
    }
}

/// Runs the script of a seed. An error includes the script.
fn one(kind: Kind, seed: u64, dir: &Path, corpus: &[String]) -> Result<End, String> {
    let show = |why: String, args: &[String], text: &[u8]| {
        let (args, text) = (args.join(" "), String::from_utf8_lossy(text));
        let text: String = text.chars().take(20_000).collect();
        format!("{kind:?} seed {seed}: {why}\n--- vmkern run {args}\n{text}\n---")
    };
    if kind == Kind::Mutated {
        let mut dice = Dice::new(seed ^ 0x5eed_0000_0000);
        let Options { args, .. } = Options::any(&mut dice);
        let text = mutate::script(&mut dice, corpus);
        let ran = run(dir, &args, &text);
        let sound =
            |ran: Ran| if spares_the_kernel(&text) { sound(&ran).map(|()| ran) } else { Ok(ran) };
        let ran = ran.and_then(sound).map_err(|why| show(why, &args, &text))?;
        return Ok(End { status: ran.status, expects: 0 });
    }
    let (options, lines, is_repeatable) = random_script(seed);
    let (args, text) = (&options.args, lines.join("\n"));
    let end = if is_repeatable {
        let learnt = known::twice(dir, args, lines);
        learnt.map(|learnt| End { status: learnt.status, expects: learnt.expects })
    } else {
        any(dir, &options, &lines)
    };
    end.map_err(|why| show(why, args, text.as_bytes()))
}

/// Runs a script with all kinds of options: either as it is, or the part that runs to its end.
fn any(dir: &Path, options: &Options, lines: &[String]) -> Result<End, String> {
    let text = if options.endures {
        known::enduring(dir, &options.calm(), lines)?
    } else {
        lines.join("\n")
    };
    let ran = run(dir, &options.args, text.as_bytes()).map_err(|why| known::blame(&why, &text))?;
    if options.style.manners == Manners::Tame || spares_the_kernel(text.as_bytes()) {
        sound(&ran).map_err(|why| known::blame(&why, &text))?;
    }
    Ok(End { status: ran.status, expects: 0 })
}

/// Runs the scripts of a kind, a few at a time.
fn all_end_well(kind: Kind) {
    let (count, first) = (setting("VMKERN_SCRIPTS", 50), setting("VMKERN_SCRIPTS_SEED", 0));
    let regressions = REGRESSIONS.iter().filter(|(of, _)| *of == kind).map(|&(_, seed)| seed);
    let seeds: Vec<u64> = regressions.chain(first..first + count).collect();
    let (corpus, next) = (mutate::corpus(), AtomicU64::new(0));
    let (ends, faults) = (Mutex::new(BTreeMap::<i32, u64>::new()), Mutex::new(Vec::new()));
    let expects = AtomicU64::new(0);
    let work = || {
        let dir = tempfile::tempdir().expect("a directory can be made");
        while let Some(&seed) =
            seeds.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("an index"))
        {
            match one(kind, seed, dir.path(), &corpus) {
                Ok(end) => {
                    *ends.lock().expect("no worker panics").entry(end.status).or_default() += 1;
                    expects.fetch_add(end.expects as u64, Ordering::Relaxed);
                }
                Err(fault) => {
                    println!("{fault}");
                    faults.lock().expect("no worker panics").push(fault);
                }
            }
        }
    };
    thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    let (ends, faults) = (
        ends.into_inner().expect("no worker panics"),
        faults.into_inner().expect("no worker panics"),
    );
    println!(
        "{kind:?} scripts from seed {first} on by exit status: {ends:?}, {} expectations",
        expects.into_inner()
    );
    println!("{kind:?} scripts: {} passed, {} failed", seeds.len() - faults.len(), faults.len());
    assert!(
        faults.is_empty(),
        "{} of {} {kind:?} scripts:\n{}",
        faults.len(),
        seeds.len(),
        faults.join("\n")
    );
}

#[test]
fn random_scripts_end_by_themselves_hold_again_and_leave_nothing() {
    all_end_well(Kind::Random);
}

#[test]
fn mutations_of_the_corpus_end_by_themselves_and_leave_nothing() {
    all_end_well(Kind::Mutated);
}

/// Whether `text` has `word` as a whole word.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part)
    })
}

#[test]
fn random_scripts_have_every_word_of_the_language_and_every_option_of_a_run() {
    let mut all = String::new();
    for seed in 0..2000 {
        let (Options { args, .. }, lines, _) = random_script(seed);
        all += &format!("{}\n{}\n", args.join(" "), lines.join("\n"));
    }
    let verbs = VERBS.iter().filter(|verb| verb.is_offered()).map(|verb| verb.name);
    let forms = "let expect assert repeat end print start guest intr hex rand now cycles page_size \
                 t0 t63 ok null blocked error panic zero system summary maps map objects pages \
                 page vtop pagetable threads cpus locks diff $i $m $s --check --json --seed --let \
                 --vcpus --time --timeout --set --console --save-dump --save-image --verbose \
                 memory vcpus seed time timeout policy";
    let words = verbs
        .chain(FLAGS.map(|(name, _)| name))
        .chain(VmMeter::NAMES.iter().copied())
        .chain(MapField::ALL.map(MapField::name))
        .chain(forms.split_whitespace());
    let missing: Vec<_> = words.filter(|word| !has_word(&all, word)).collect();
    assert!(missing.is_empty(), "no script has {missing:?}");
}
