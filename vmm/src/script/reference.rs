//! The language in tables, for the help of the command and for the book: Markdown, each row with
//! what is written and what it means.

/// A form of a line.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The words that begin it, if it has any of its own.
    pub words: &'static [&'static str],
    /// The form.
    pub form: &'static str,
    /// Its meaning.
    pub says: &'static str,
    /// The meaning of its parts, for an explanation of this line alone.
    pub parts: &'static [(&'static str, &'static str)],
    /// A script that uses it.
    pub example: &'static [&'static str],
}

/// The form of a number.
const EXPR: (&str, &str) = ("EXPR", "a number, a `$NAME`, a name such as `v_free_count`, or a sum");
const THREAD: (&str, &str) = ("THREAD", "`t0` to `t63`, or `t[EXPR]`; `t0` without one");

/// The forms of a line.
pub const LINES: [Line; 9] = [
    Line {
        words: &[],
        form: "`[THREAD:] [NAME =] VERB ARG...`",
        says: "do something on a kernel thread, and bind the result",
        parts: &[THREAD],
        example: &["a = kmem_malloc kmem_map 4K", "t1: kmem_free kmem_map $a 4K"],
    },
    Line {
        words: &["intr"],
        form: "`intr: [NAME =] VERB ARG...`",
        says: "do it in an interrupt handler, where sleeping is a panic",
        parts: &[("VERB", "an operation of the guest; `join`, `check` and the like are not")],
        example: &["intr: a = kmem_malloc kmem_map 4K NOWAIT"],
    },
    Line {
        words: &["let"],
        form: "`let NAME = EXPR`",
        says: "bind a number",
        parts: &[EXPR, ("NAME[EXPR]", "in place of NAME: one of a series")],
        example: &["let before = v_free_count", "let size[2] = 3 * 4K"],
    },
    Line {
        words: &["expect"],
        form: "`expect RESULT`",
        says: "the result that the verb just above must have had",
        parts: &RESULTS,
        example: &["kmem_malloc kmem_map 0", "expect null"],
    },
    Line {
        words: &["assert"],
        form: "`assert EXPR OP EXPR`",
        says: "fail unless it holds; OP is `==` `!=` `<` `<=` `>` `>=`",
        parts: &[EXPR],
        example: &["assert v_free_count > 100", "assert (kmem_map.max - kmem_map.min) / 4K > 10"],
    },
    Line {
        words: &["repeat", "end"],
        form: "`repeat COUNT` ... `end`",
        says: "do the lines between COUNT times; `$i` counts from 0",
        parts: &[("COUNT", "an EXPR"), ("$i", "the counter of the innermost `repeat`")],
        example: &["repeat 10", "  a[$i] = kmem_alloc kernel_map 4K", "end"],
    },
    Line {
        words: &["print"],
        form: "`print ARG...`",
        says: "write one line: strings, values of expressions (from 2^47 up in hexadecimal), and \
               `hex(EXPR)`",
        parts: &[("ARG", "a string in double quotes, an EXPR without blanks, or `hex(EXPR)`")],
        example: &["print \"free pages:\" v_free_count hex(v_free_count)"],
    },
    Line {
        words: &["start"],
        form: "`start THREAD: [NAME =] VERB ARG...`",
        says: "send it to a thread, and continue at once: see [Start](#start)",
        parts: &[
            ("VERB", "an operation of the guest; `join THREAD` brings its result"),
            ("THREAD", "`t0` to `t63`, or `t[EXPR]`"),
        ],
        example: &["start t1: a = kmem_malloc kmem_map 4K", "join t1"],
    },
    Line {
        words: &["guest"],
        form: "`guest KEY=VALUE...`",
        says: "the guest that the script needs; stands before all other statements",
        parts: &[
            ("KEY", "`memory` `vcpus` `time` `timeout` `seed` `privilege`, or a kernel tunable"),
            ("VALUE", "as that option of `vmkern run` takes it, or `--set`"),
        ],
        example: &["guest memory=256M vcpus=2 vm.kmem_size=32M"],
    },
];

/// The results that `expect` knows.
pub const RESULTS: [(&str, &str); 6] = [
    ("`ok`", "anything except null, an error, a failed verification, blocked or a panic"),
    ("`null`", "null"),
    ("a number", "that number or address; null counts as 0"),
    (
        "`error KERN_NO_SPACE`",
        "that error; also `KERN_INVALID_ADDRESS` `KERN_PROTECTION_FAILURE` \
         `KERN_INVALID_ARGUMENT` `KERN_FAILURE` `KERN_RESOURCE_SHORTAGE` `KERN_NOT_RECEIVER` \
         `KERN_NO_ACCESS`",
    ),
    (
        "`panic \"TEXT\"`",
        "a panic, fatal trap or fatal fault whose message contains TEXT. The script then ends \
         successfully",
    ),
    ("`blocked`", "its thread sleeps, and only another statement can change that"),
];

/// The names that expressions know without a `$`.
pub const NAMES: [(&str, &str); 16] = [
    ("`v_page_count`", "pages under management"),
    ("`v_free_count`", "pages that could be allocated"),
    ("`v_wire_count`", "wired pages"),
    ("`v_cache_count` `v_active_count` `v_inactive_count`", "pages on those queues"),
    (
        "`v_free_reserved` `v_free_min` `v_free_severe` `v_free_target` `v_pageout_free_min` \
         `v_interrupt_free_min` `v_cache_min` `v_cache_max` `v_inactive_target`",
        "FreeBSD's thresholds, in pages",
    ),
    ("`v_faults` `v_zfod` `v_swapin` `v_swapout` `v_pdwakeups`", "events since boot"),
    (
        "`lowmem_events` `lowmem_failures` `thread_count`",
        "invocations of vm_lowmem, `on_lowmem` statements that failed when it fired (the \
         kernel's log says which), kernel threads",
    ),
    ("`seized_pages`", "pages that the host has [seized](seize.md)"),
    (
        "`ticks` `hz` `ncpu`",
        "clock ticks since boot (ticks of the clock, whether or not the kernel had something to \
         do at them), ticks a second, CPUs",
    ),
    (
        "`stall_vmwait` `stall_pfault` `stall_nokva` `stall_vmmaps` `stall_vmpfw` \
         `stall_zonelimit` `stall_total`",
        "microseconds that all threads together have slept with that wait message, and with any \
         of them; sleeps that go on are counted up to now",
    ),
    (
        "`stall_some` `stall_full`",
        "microseconds during which at least one thread slept so, and during which no other thread \
         worked either",
    ),
    ("`MAP.min` `MAP.max`", "first address of a map, first address past it"),
    ("`MAP.size` `MAP.entries` `MAP.max_free`", "bytes in use, entries, bytes of the largest hole"),
    ("`page_size`", "4096"),
    ("`now`", "microseconds of the guest's clock since boot"),
    ("`cycles`", "cycles of the last statement that was judged; 0 before there is one"),
];

/// The parts of numbers and expressions.
pub const NUMBERS: [(&str, &str); 5] = [
    (
        "`12` `0x10` `4K` `5ms`",
        "unsigned 64-bit; suffixes `K` `M` `G` of sizes, `us` `ms` `s` of times",
    ),
    ("`$NAME` `$NAME[EXPR]`", "a bound value, one of a series"),
    ("`$i`", "the counter of the innermost `repeat`"),
    ("`+ - * / %`", "from left to right, without precedence; parentheses group"),
    ("`rand(LO,HI)`", "a random number by the run's seed, both ends included"),
];

#[cfg(test)]
mod tests {
    use vmkern_abi::layout::VmMeter;

    use super::*;
    use crate::inspect::StallTimes;
    use crate::script::words::KEYWORDS;
    use crate::script::{Source, names, parse};

    /// The words in backquotes of a table's first column.
    fn words(table: &[(&'static str, &str)]) -> Vec<&'static str> {
        table
            .iter()
            .flat_map(|(name, _)| name.split(['`', ' ']))
            .filter(|w| !w.is_empty())
            .collect()
    }

    #[test]
    fn every_name_that_an_expression_knows_is_in_the_table() {
        let told = words(&NAMES);
        for name in VmMeter::NAMES.iter().chain(&StallTimes::NAMES) {
            assert!(told.contains(name), "{name} is missing");
        }
        for name in told.iter().filter(|name| !name.starts_with("MAP.")) {
            assert!(names::all().any(|known| known == *name), "{name} is not known");
        }
    }

    #[test]
    fn every_keyword_has_a_line_that_begins_with_it() {
        for keyword in KEYWORDS {
            let is_of = |line: &&Line| line.words.contains(&keyword);
            let line = LINES.iter().find(is_of).unwrap_or_else(|| panic!("{keyword} is missing"));
            assert!(words(&[(line.form, "")]).contains(&keyword), "{keyword}");
        }
    }

    #[test]
    fn the_example_of_each_line_is_a_script_that_uses_it() {
        for Line { words, form, example, .. } in &LINES {
            let source = Source::new("example", &example.join("\n"));
            assert!(parse(&source).is_ok(), "{form}: {example:?}");
            let begins = |word: &&str| example.iter().any(|line| line.starts_with(*word));
            assert!(words.iter().all(begins), "{form}: {example:?}");
        }
    }
}
