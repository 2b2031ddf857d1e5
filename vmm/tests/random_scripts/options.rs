//! Options of `vmkern run`, and what scripts may contain with them.

use crate::dice::Dice;
use crate::generate::{Manners, Style};
use crate::numbers::{Clock, EDGES};

/// The time limit of a run. Reaching it is not a failure: a mutation can make loops long.
const LIMIT: &str = "5s";
const MEMORY: [&str; 6] = ["8M", "8M", "9M", "12M", "16M", "64M"];
const TUNABLES: [&str; 5] =
    ["kern.hz=100", "kern.hz=1", "kern.maxusers=16", "vm.kmem_size=4M", "kern.hz=0"];

/// A command line without its script, and the style of scripts that fits it.
pub struct Options {
    pub args: Vec<String>,
    pub style: Style,
    /// Whether statements that would end the script early are removed first.
    pub endures: bool,
}

fn pair(name: &str, value: &str) -> [String; 2] {
    [name.to_owned(), value.to_owned()]
}

impl Options {
    /// Options with which a run is repeatable: virtual time, one CPU, and enough time.
    pub fn repeatable(dice: &mut Dice) -> Self {
        let mut args = vec!["--json".to_owned()];
        args.extend(pair("--timeout", "60s"));
        args.extend(pair("--memory", dice.word(&MEMORY)));
        args.extend(pair("--seed", &plain(dice.word(&EDGES))));
        if dice.once_in(3) {
            args.extend(pair("--let", &format!("b={}", dice.between(0, 70_000))));
        }
        let manners = if dice.once_in(3) { Manners::Wild } else { Manners::Tame };
        if manners == Manners::Tame {
            args.push("--check".to_owned());
        }
        let style = Style { manners, clock: Clock::MayNot, sleep: 3000 };
        Self { args, style, endures: true }
    }

    /// Options of all kinds.
    pub fn any(dice: &mut Dice) -> Self {
        let mut args = Vec::new();
        let is_real = dice.once_in(8);
        let limit = match dice.between(0, 39) {
            0 => "0",
            1 => "1us",
            2 => "20ms",
            3 => "200ms",
            _ if is_real => "1s",
            _ => LIMIT,
        };
        args.extend(pair("--timeout", limit));
        if !dice.once_in(8) {
            args.push("--json".to_owned());
        }
        args.extend(pair("--memory", dice.word(&MEMORY)));
        if dice.once_in(2) {
            args.extend(pair("--vcpus", &dice.between(1, 4).to_string()));
        }
        if is_real {
            args.extend(pair("--time", "real"));
        }
        if dice.once_in(3) {
            args.extend(pair("--seed", &plain(dice.word(&EDGES))));
        }
        if dice.once_in(6) {
            let value = plain(dice.word(&EDGES));
            args.extend(pair("--let", &format!("{}={value}", dice.word(&["b", "a0", "n1", "i"]))));
        }
        if dice.once_in(12) {
            args.extend(pair("--set", dice.word(&TUNABLES)));
        }
        args.extend(Self::outputs(dice));
        let manners = if dice.once_in(2) { Manners::Wild } else { Manners::Tame };
        let sleep = if is_real { 5 } else { 3000 };
        let style = Style { manners, clock: Clock::May, sleep };
        Self { args, style, endures: dice.once_in(2) }
    }

    /// The same guest in virtual time on one CPU, with enough time and a report.
    pub fn calm(&self) -> Vec<String> {
        let mut calm = ["--json", "--timeout", "60s"].map(str::to_owned).to_vec();
        for two in self.args.windows(2) {
            if ["--memory", "--seed", "--let", "--set"].contains(&two[0].as_str()) {
                calm.extend_from_slice(two);
            }
        }
        calm
    }

    /// Options that write output.
    fn outputs(dice: &mut Dice) -> Vec<String> {
        let mut args = Vec::new();
        if dice.once_in(3) {
            args.push("--check".to_owned());
        }
        if dice.once_in(12) {
            args.push("--verbose".to_owned());
        }
        if dice.once_in(16) {
            args.extend(pair("--console", "kernel.log"));
        }
        if dice.once_in(20) {
            let option = dice.word(&["--save-dump", "--save-image"]);
            args.extend(pair(option, "saved.img"));
        }
        args
    }
}

/// A number of [`EDGES`] for the command line, which has no operators.
fn plain(number: &str) -> String {
    let end = number.find(['-', '+']).unwrap_or(number.len());
    number[..end].replace("page_size", "4096")
}
