//! Statements of the script itself: numbers, output, and errors.

use super::Generator;
use crate::numbers::{EDGES, FIELDS, MAPS};

const LOOKS: [&str; 8] =
    ["summary", "maps", "objects", "pages", "pagetable", "threads", "cpus", "locks"];
const COMPARES: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];
/// Statements that are wrong, or that need something that the kernel lacks.
const WRONG: [&str; 16] = [
    "malloc 4K",
    "zone_create z 64",
    "madvise kmem_map 0 4K dontneed",
    "swap off",
    "snapshot file",
    "kmem_maloc kmem_map 4K",
    "kmem_alloc kmem_map",
    "kmem_malloc kmem_map 4K WAIT",
    "t64: settle",
    "t01: settle",
    "intr: check",
    "start settle",
    "end",
    "guest memory=8M",
    "expect ok",
    "print \"open",
];

/// Fail points, and nothing at all. What fails so, fails without them too when memory is short.
const FAILS: [&str; 6] = [
    "",
    "fail list",
    "fail off  # all of them",
    "fail tsleep 50%2*return",
    "fail vm_page_alloc.normal 3*off->20%2*return->print",
    "fail intr_window 10%delay(5)",
];

/// Pressure on the guest's memory: more of it ends than begins.
const PRESSURE: [&str; 12] = [
    "seize 1M",
    "seize leave 2000",
    "seize leave v_free_target",
    "release",
    "release",
    "release",
    "hog kmem_map 10 64K",
    "hog exec_map 50",
    "unhog kmem_map",
    "unhog exec_map",
    "squeeze 2M",
    "squeeze 0",
];

impl Generator<'_> {
    pub(super) fn bind(&mut self) {
        let value = self.expression();
        if self.dice.once_in(3) {
            let index = self.dice.between(0, 9);
            self.say(format!("let q[{index} % 5] = {value}"));
            let element = self.dice.word(&["$q[0]", "$q[1+1]", "$q[$b % 5]"]);
            self.say(format!("let b = 4097 + {element} % 2"));
        } else {
            let name = format!("n{}", self.dice.between(0, 3));
            self.say(format!("let {name} = {value}"));
            self.names.push(name);
        }
    }

    pub(super) fn print(&mut self) {
        let expression = self.expression();
        let line = match self.dice.between(0, 4) {
            0 => format!("print hex({expression})"),
            1 => format!("print \"\\\"wert\\\" \u{fc}\u{1f600} # {{}}\" ({expression}) now"),
            2 => "print".to_owned(),
            _ => format!("print ({expression}) page_size hex(now) \"\""),
        };
        self.say(line);
    }

    pub(super) fn assert(&mut self) {
        let compare = self.dice.word(&COMPARES);
        let line = match self.dice.between(0, 3) {
            0 => format!("assert {} {compare} {}", self.expression(), self.expression()),
            1 => format!("assert ncpu {compare} {}", self.dice.between(0, 4)),
            _ => {
                let (map, field) = (self.dice.word(&MAPS), self.dice.word(&FIELDS));
                format!("assert {map}.{field} >= 0 # {compare}")
            }
        };
        self.say(line);
    }

    pub(super) fn look(&mut self) {
        let (address, _) = self.range();
        let what = match self.dice.between(0, 10) {
            0 | 1 => return self.say("check".to_owned()),
            10 => {
                let pressure = self.dice.word(&PRESSURE).to_owned();
                return self.say(pressure);
            }
            2 => format!("map {}", self.dice.word(&MAPS)),
            3 => format!("page {}", self.dice.between(0, 3000)),
            4 => format!("page {}", self.dice.word(&EDGES)),
            5 => format!("vtop {address}"),
            6 => format!("pagetable {address}..{}", self.dice.word(&EDGES)),
            7 => "pagetable kmem_map.min kmem_map.max".to_owned(),
            _ => self.dice.word(&LOOKS).to_owned(),
        };
        self.say(format!("inspect {what}"));
    }

    /// Dumps in the directory of the run.
    pub(super) fn image(&mut self) {
        match self.dice.between(0, 5) {
            0 => self.say("dump /dev/null".to_owned()),
            1 => self.say("dump \"no such directory/x.img\"".to_owned()),
            2 => self.say("inspect diff none.img".to_owned()),
            3 if self.images > 0 => self.say(format!("inspect diff {}.img", self.images)),
            _ if self.images < 2 => {
                self.images += 1;
                self.say(format!("dump {}.img", self.images));
            }
            _ => self.say("dump script.kmem/x.img".to_owned()),
        }
    }

    /// Rare or wrong statements.
    pub(super) fn odd(&mut self) {
        let (size, depth) = (self.size(), self.depth);
        let line =
            match self.dice.between(0, 9) {
                0 => self.dice.word(&WRONG).to_owned(),
                1 => format!("m{depth} = kmem_suballoc kernel_map {size} system"),
                2 => format!("kmem_suballoc {} {size}", self.dice.word(&MAPS)),
                3 => "  # nothing \u{2014} but a comment".to_owned(),
                4 => self.dice.word(&FAILS).to_owned(),
                5 => "\tsettle\t# with blanks  ".to_owned(),
                6 => "k0 = kmem_malloc kmem_map kmem_map.max_free NOWAIT".to_owned(),
                7 => "k1 = kmem_alloc kernel_map ((v_free_count - v_free_reserved - 2) * 4K)"
                    .to_owned(),
                _ => "k2 = kmem_alloc kernel_map ((v_free_count - v_free_reserved) % 60 * 4K)"
                    .to_owned(),
            };
        self.say(line);
    }
}
