//! Random scripts, and the corpus with mutations, run as a user runs them: whatever a script says, the command ends by itself,
//! blames neither itself nor the guest, and leaves nothing behind.
//!
//! `VMKERN_SCRIPTS` is the number of scripts of each of the two kinds (150), `VMKERN_SCRIPTS_SEED` the seed of the first (0).

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmkern::script::Random;

/// The time limit of each script. That a script takes longer is no fault: a mutation makes loops long.
const LIMIT: &str = "10s";
/// A command that has not ended then, on a machine that has other things to do as well, hangs.
const HANG: Duration = Duration::from_secs(600);

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

fn pick<'a, T>(random: &mut Random, of: &'a [T]) -> &'a T {
    let last = of.len() as u64 - 1;
    &of[usize::try_from(random.between(0, last)).expect("an index")]
}

const MAPS: [&str; 9] =
    ["kernel_map", "kmem_map", "exec_map", "pipe_map", "buffer_map", "clean_map", "pager_map", "$m", "$s"];
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "4K",
    "8K+1",
    "64K",
    "1M",
    "v_free_count*4K",
    "kmem_map.max_free",
    "0xffffffffffffffff",
    "kernel_map.max",
    "$m.min",
    "$a",
    "rand(1,70000)",
    "(page_size * 3)",
];
const FLAGS: [&str; 6] = ["", "NOWAIT", "WAITOK", "NOWAIT|ZERO", "WAITOK|ZERO", "NOWAIT|USE_RESERVE"];
const EXPECTS: [&str; 7] =
    ["ok", "null", "blocked", "0", "error KERN_INVALID_ARGUMENT", "panic \"page fault\"", "error KERN_INVALID_ADDRESS"];

fn operation(random: &mut Random) -> String {
    let map = *pick(random, &MAPS);
    let (number, size) = (*pick(random, &NUMBERS), *pick(random, &NUMBERS));
    match random.between(0, 17) {
        0 => format!("kmem_alloc {map} {size}"),
        1 => format!("kmem_alloc_nofault {map} {size}"),
        2 | 3 => format!("kmem_malloc {map} {size} {}", *pick(random, &FLAGS)),
        4 | 5 => format!("kmem_free {map} {number} {size}"),
        6 | 7 => format!("kmem_alloc_wait {map} {size}"),
        8 => format!("kmem_free_wakeup {map} {number} {size}"),
        9 => format!("kmem_suballoc {map} 64K{}", if random.between(0, 1) == 0 { "" } else { " system" }),
        10 => format!("pmap_qenter {number} {}", random.between(0, 5)),
        11 => format!("pmap_qremove {number} {}", random.between(0, 5)),
        12 => format!("fill $a {} {}", random.between(1, 5000), random.between(0, 9)),
        13 => format!("verify $a {} zero", random.between(1, 5000)),
        14 => format!("touch {number} {}", random.between(1, 9000)),
        15 => format!("sleep {}ms", random.between(0, 3000)),
        16 => "settle".to_owned(),
        _ => format!("vtop {number}"),
    }
}

fn statement(random: &mut Random, depth: u64, into: &mut String) {
    let thread = random.between(0, 4);
    let _ = match random.between(0, 13) {
        0..=3 => writeln!(into, "a = {}", operation(random)),
        4 | 5 => writeln!(into, "t{thread}: {}", operation(random)),
        6 => writeln!(into, "start t{thread}: a = {}", operation(random)),
        7 => writeln!(into, "start t[{thread} + 1]: {}", operation(random)),
        8 => writeln!(into, "join t{thread}"),
        9 => writeln!(into, "intr: {}", operation(random)),
        10 => writeln!(into, "on_lowmem {}", operation(random)),
        11 => writeln!(into, "print hex({}) now cycles v_free_count", *pick(random, &NUMBERS)),
        12 if depth < 2 => {
            let _ = writeln!(into, "repeat {}", random.between(0, 4));
            for _ in 0..random.between(1, 4) {
                statement(random, depth + 1, into);
            }
            writeln!(into, "end")
        }
        _ => {
            writeln!(
                into,
                "{}",
                *pick(random, &["check", "inspect summary", "inspect maps", "abandon t1", "let b = 7"])
            )
        }
    };
    if random.between(0, 3) == 0 && into.ends_with('\n') && !into.ends_with("end\n") {
        let _ = writeln!(into, "expect {}", *pick(random, &EXPECTS));
    }
}

/// A script in which most statements make sense.
fn random_script(seed: u64) -> String {
    let mut random = Random::new(seed);
    let (memory, vcpus) = (*pick(&mut random, &["8M", "12M", "64M"]), random.between(1, 3));
    let mut text = format!("guest memory={memory} vcpus={vcpus} seed={seed}\n");
    text.push_str(
        "m = kmem_suballoc kernel_map 64K\ns = kmem_suballoc kernel_map 64K system\na = kmem_alloc kernel_map 16K\n",
    );
    for _ in 0..random.between(1, 25) {
        statement(&mut random, 0, &mut text);
    }
    text
}

fn corpus() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts");
    let files = fs::read_dir(dir).expect("the corpus is there").map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    files.sort();
    let texts = files.into_iter().filter_map(|path| fs::read_to_string(path).ok());
    // No file is written.
    texts.map(|text| text.replace("dump", "check")).collect()
}

/// A script of the corpus with up to four mutations.
fn mutated_script(seed: u64, corpus: &[String]) -> String {
    let mut random = Random::new(seed ^ 0x5eed_0000_0000);
    let mut lines: Vec<String> = pick(&mut random, corpus).lines().map(str::to_owned).collect();
    for _ in 0..random.between(1, 4) {
        let other = pick(&mut random, corpus).clone();
        let others: Vec<&str> = other.lines().collect();
        let last = lines.len().saturating_sub(1) as u64;
        let at = usize::try_from(random.between(0, last)).expect("an index");
        match random.between(0, 5) {
            0 if lines.len() > 1 => drop(lines.remove(at)),
            1 => lines.insert(at, (*pick(&mut random, &others)).to_owned()),
            2 => lines[at] = format!("start t{}: {}", random.between(0, 3), lines[at]),
            3 => {
                let words: Vec<&str> = other.split_whitespace().collect();
                let mut line: Vec<&str> = lines[at].split(' ').collect();
                let word = usize::try_from(random.between(0, line.len() as u64 - 1)).expect("an index");
                line[word] = *pick(&mut random, &words);
                lines[at] = line.join(" ");
            }
            4 => lines[at] = lines[at].chars().filter(|_| random.between(0, 20) > 0).collect(),
            _ => {
                let number: &&str = pick(&mut random, &NUMBERS);
                lines[at] = lines[at].replace("4K", number);
            }
        }
    }
    lines.join("\n")
}

/// Processes of the group `group` that are there.
fn group_lives(group: u32) -> bool {
    let stat = |path: PathBuf| fs::read_to_string(path.join("stat")).ok();
    let all = fs::read_dir("/proc").expect("/proc is there").filter_map(|entry| stat(entry.ok()?.path()));
    all.into_iter().any(|stat| {
        // Behind the name: state, parent, group.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        fields.split_whitespace().nth(2) == Some(&group.to_string())
    })
}

/// Runs the script, and says what is wrong with how that went.
fn run(dir: &Path, text: &str) -> Result<(), String> {
    fs::write(dir.join("script.kmem"), text).expect("the script can be written");
    let log = fs::File::create(dir.join("stderr")).expect("the log can be made");
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .args(["run", "--json", "--timeout", LIMIT, "script.kmem"])
        .current_dir(dir)
        .env("TMPDIR", dir)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the command can be started");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        if start.elapsed() > HANG {
            child.kill().and_then(|()| child.wait()).expect("the child can be killed");
            return Err("it hangs".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let words = fs::read_to_string(dir.join("stderr")).unwrap_or_default();
    let mut names: Vec<_> =
        fs::read_dir(dir).expect("the folder is there").filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    match (status.code(), status.signal()) {
        (_, Some(signal)) => Err(format!("signal {signal}\n{words}")),
        (Some(0..=3 | 5), None) if names != ["script.kmem", "stderr"] => Err(format!("it leaves files: {names:?}")),
        (Some(0..=3 | 5), None) if group_lives(child.id()) => Err("it leaves processes".to_owned()),
        (Some(0..=3 | 5), None) => Ok(()),
        (code, None) => Err(format!("status {code:?}\n{words}")),
    }
}

fn all_end_well(name: &str, make: impl Fn(u64) -> String) {
    let (count, first) = (setting("VMKERN_SCRIPTS", 150), setting("VMKERN_SCRIPTS_SEED", 0));
    let dir = std::env::temp_dir().join(format!("vmkern-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory can be made");
    println!("{count} {name} scripts from seed {first} on");
    let bad: Vec<String> = (first..first + count)
        .filter_map(|seed| {
            let text = make(seed);
            run(&dir, &text).err().map(|why| format!("seed {seed}: {why}\n--- the script\n{text}\n---"))
        })
        .collect();
    fs::remove_dir_all(&dir).expect("the directory can be removed");
    assert!(bad.is_empty(), "{} of {count} {name} scripts:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn random_scripts_end_by_themselves_blame_nobody_and_leave_nothing() {
    all_end_well("random", random_script);
}

#[test]
fn mutations_of_the_corpus_end_by_themselves_blame_nobody_and_leave_nothing() {
    let corpus = corpus();
    all_end_well("mutated", |seed| mutated_script(seed, &corpus));
}
