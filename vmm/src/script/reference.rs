//! The language in tables, for the help of the command and for the book: Markdown, a row a pair of
//! what is written and what it means.

/// The forms of a line.
pub const LINES: [(&str, &str); 8] = [
    ("`[THREAD:] [NAME =] VERB ARG...`", "do something on a kernel thread, and bind the result"),
    ("`let NAME = EXPR`", "bind a number"),
    ("`expect RESULT`", "the result that the verb just above must have had"),
    ("`assert EXPR OP EXPR`", "fail unless it holds; OP is `==` `!=` `<` `<=` `>` `>=`"),
    ("`repeat COUNT` ... `end`", "do the lines between COUNT times; `$i` counts from 0"),
    (
        "`print ARG...`",
        "write one line: strings, values of expressions (from 2^47 up in hexadecimal), and \
         `hex(EXPR)`",
    ),
    (
        "`start THREAD: [NAME =] VERB ARG...`",
        "send it to a thread, and continue at once: see [Start](#start)",
    ),
    ("`guest KEY=VALUE...`", "the guest that the script needs; stands before all other statements"),
];

/// What `expect` knows.
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
pub const NAMES: [(&str, &str); 13] = [
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
    (
        "`ticks` `hz` `ncpu`",
        "clock ticks since boot (ticks of the clock, whether or not the kernel had something to \
         do at them), ticks a second, CPUs",
    ),
    ("`MAP.min` `MAP.max`", "first address of a map, first address past it"),
    ("`MAP.size` `MAP.entries` `MAP.max_free`", "bytes in use, entries, bytes of the largest hole"),
    ("`page_size`", "4096"),
    ("`now`", "microseconds of the guest's clock since boot"),
    ("`cycles`", "cycles of the last statement that was judged; 0 before there is one"),
];

/// What numbers and expressions are made of.
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
    use crate::script::names;
    use crate::script::words::KEYWORDS;

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
        for name in VmMeter::NAMES {
            assert!(told.contains(name), "{name} is missing");
        }
        for name in told.iter().filter(|name| !name.starts_with("MAP.")) {
            assert!(names::all().any(|known| known == *name), "{name} is not known");
        }
    }

    #[test]
    fn every_keyword_has_a_line() {
        let told = words(&LINES);
        for keyword in KEYWORDS {
            assert!(told.contains(&keyword), "{keyword} is missing");
        }
    }
}
