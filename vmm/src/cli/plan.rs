//! What a suite runs: the scripts of files and directories, once, or once for each seed.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vmkern::script::{suite, values};
use vmkern::text::{name, one_line};

/// Runs of a suite at most: each keeps its result until the end.
const MOST: u64 = 1 << 20;

/// A run of one script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The script.
    pub path: PathBuf,
    /// What reports call the run: the script's path, below its directory where that is the only
    /// one, with the seed if there are several.
    pub name: String,
    /// The seed that `--seeds` asks for.
    pub seed: Option<u64>,
}

impl Run {
    /// A name for a file that belongs to this run.
    pub fn file_name(&self) -> String {
        let script = self.name.split(" (seed ").next().unwrap_or_default().replace('/', "-");
        let stem = Path::new(&script).with_extension("").display().to_string();
        self.seed.map_or(stem.clone(), |seed| format!("{stem}-seed-{seed}"))
    }
}

/// The runs of a suite, and the paths that were skipped: named like scripts, but not files.
#[derive(Debug, Default)]
pub struct Plan {
    /// The runs, in the order of the paths that were named; those of a directory sorted.
    pub runs: Vec<Run>,
    /// Skipped paths.
    pub passed_over: Vec<PathBuf>,
}

/// Seeds `START..END`, without END.
pub fn seeds(text: &str) -> Result<Range<u64>, String> {
    let expected =
        || "expected START..END with START below END; END itself is not included".to_owned();
    let (start, end) = text.split_once("..").ok_or_else(expected)?;
    let number = |text| values::number(text).map_err(|_| expected());
    let seeds = number(start)?..number(end)?;
    if seeds.is_empty() { Err(expected()) } else { Ok(seeds) }
}

/// The runs of the scripts in `paths` whose names hold one of `filters`, if there are any, for each
/// of `seeds`.
///
/// # Errors
/// A path cannot be read, or there is nothing to run, or too much.
pub fn plan(
    paths: &[PathBuf],
    filters: &[String],
    seeds: Option<&Range<u64>>,
) -> anyhow::Result<Plan> {
    // 1. The scripts of each path, each once.
    let mut plan = Plan::default();
    let mut scripts = Vec::new();
    let mut known = BTreeSet::new();
    for path in paths {
        path.metadata().map_err(|error| {
            anyhow::Error::new(error).context(format!("cannot read {}", name(path)))
        })?;
        let cannot_read = |(path, error): (PathBuf, _)| {
            anyhow::Error::new(error).context(format!("cannot read {}", name(&path)))
        };
        let found = if path.is_dir() {
            suite::discover(path).map_err(cannot_read)?
        } else {
            // A script that is named is run, or is an error of its own.
            suite::Discovered { scripts: vec![path.clone()], passed_over: Vec::new() }
        };
        // 2. A path without scripts is refused.
        anyhow::ensure!(
            !found.scripts.is_empty() || !found.passed_over.is_empty(),
            "there is no *.kmem file in {}",
            name(path)
        );
        plan.passed_over.extend(found.passed_over);
        let below = if paths.len() == 1 && path.is_dir() { path.as_path() } else { Path::new("") };
        for script in found.scripts {
            if known.insert(script.clone()) {
                let name = name(script.strip_prefix(below).unwrap_or(&script));
                scripts.push((script, name));
            }
        }
    }
    // 3. Those with a name that was asked for.
    let is_wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    scripts.retain(|(_, name)| is_wanted(name));
    anyhow::ensure!(!scripts.is_empty(), "no script has {} in its name", quoted(filters));
    plan.runs = runs(scripts, seeds)?;
    Ok(plan)
}

fn runs(scripts: Vec<(PathBuf, String)>, seeds: Option<&Range<u64>>) -> anyhow::Result<Vec<Run>> {
    let Some(seeds) = seeds else {
        return Ok(scripts
            .into_iter()
            .map(|(path, name)| Run { path, name, seed: None })
            .collect());
    };
    let each = seeds.end - seeds.start;
    let all = each.checked_mul(scripts.len() as u64).filter(|&all| all <= MOST);
    anyhow::ensure!(
        all.is_some(),
        "{} scripts with {each} seeds are more runs than the {MOST} that a suite keeps results of; \
         take fewer seeds",
        scripts.len()
    );
    let with_seed = |path: &PathBuf, name: &str, seed| Run {
        path: path.clone(),
        name: format!("{name} (seed {seed})"),
        seed: Some(seed),
    };
    let of = |(path, name): &(PathBuf, String)| {
        seeds.clone().map(|seed| with_seed(path, name, seed)).collect::<Vec<_>>()
    };
    Ok(scripts.iter().flat_map(of).collect())
}

fn quoted(filters: &[String]) -> String {
    let quoted: Vec<String> =
        filters.iter().map(|filter| format!("`{}`", one_line(filter.as_bytes()))).collect();
    quoted.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scripts: &[&str], seeds: Option<&Range<u64>>) -> Vec<String> {
        let scripts =
            scripts.iter().map(|name| (PathBuf::from(name), (*name).to_owned())).collect();
        runs(scripts, seeds).expect("they are few").into_iter().map(|run| run.name).collect()
    }

    #[test]
    fn seeds_are_a_range_without_its_end() {
        assert_eq!(seeds("3..5"), Ok(3..5));
        assert_eq!(seeds("0x10..1K"), Ok(16..1024));
        for bad in ["", "3", "5..3", "3..3", "..5", "a..b", "-1..2"] {
            assert!(seeds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_script_runs_once_for_each_seed_under_a_name_of_its_own() {
        assert_eq!(names(&["a.kmem", "b.kmem"], None), ["a.kmem", "b.kmem"]);
        let seeded = ["a.kmem (seed 1)", "a.kmem (seed 2)", "b.kmem (seed 1)", "b.kmem (seed 2)"];
        assert_eq!(names(&["a.kmem", "b.kmem"], Some(&(1..3))), seeded);
    }

    #[test]
    fn more_runs_than_results_can_be_kept_of_are_refused() {
        for many in [0..MOST + 1, 0..u64::MAX] {
            assert!(
                runs(vec![(PathBuf::from("a"), "a".to_owned())], Some(&many)).is_err(),
                "{many:?}"
            );
        }
    }

    #[test]
    fn files_of_a_run_have_names_without_directories() {
        let run = |seed| Run { path: "d/a.kmem".into(), name: "d/a.kmem".to_owned(), seed };
        assert_eq!(run(None).file_name(), "d-a");
        let seeded = Run { name: "d/a.kmem (seed 3)".to_owned(), ..run(Some(3)) };
        assert_eq!(seeded.file_name(), "d-a-seed-3");
    }
}
