//! Reading and resolving.

use proptest::prelude::*;

use crate::script::{Diagnostic, Source, VERBS, parse};

fn errors(text: &str) -> Vec<Diagnostic> {
    parse(&Source::new("test.kmem", text)).err().unwrap_or_default()
}

fn good(text: &str) {
    let source = Source::new("test.kmem", text);
    if let Err(errors) = parse(&source) {
        panic!("{}", errors[0].render(&source));
    }
}

/// The only error of `text`: place (line, column) and message.
fn error(text: &str) -> (usize, usize, String) {
    let source = Source::new("test.kmem", text);
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    (errors[0].span.line, source.column(errors[0].span), errors[0].message.clone())
}

#[test]
fn the_smallest_useful_script_is_good() {
    good(
        "let before = v_free_count\na = kmem_malloc kmem_map 12K ZERO|NOWAIT\nverify $a 12K zero\n\
         fill $a 12K 7\nverify $a 12K 7\nkmem_free kmem_map $a 12K\nread $a\n\
         expect panic \"page fault\"\n",
    );
}

#[test]
fn an_empty_script_is_good() {
    for text in ["", "\n\n", "# nothing\n", "   \t\r\n", "\u{feff}# mark"] {
        good(text);
    }
}

#[test]
fn every_form_of_the_language_is_read() {
    good(
        "t0: a = kmem_alloc kernel_map 4096 # comment\n\
         s[0]=kmem_malloc kmem_map (1 + 2)*page_size\n\
         let n[$a % 7] = rand(1, 10)*4K + kernel_map.min\n\
         repeat 2*3\n repeat $i\n  b[$i + 1] = read $s[0]+8\n  expect 12 + $i\n end\nend\n\
         assert $n[0]>=kmem_map.max_free - 1\nprint \"a\" $a ($a + 1) v_free_count \"$a\"\n\
         kmem_malloc kmem_map 1\nexpect error KERN_NO_SPACE\nt63: sleep 5ms\nsettle\n\
         intr: n = kmem_malloc kmem_map 4K NOWAIT\nm = kmem_suballoc kernel_map 1M\n\
         m[3] = kmem_suballoc kernel_map (1M + 4K) system\nt2: w = kmem_alloc_wait $m 4K\n\
         expect blocked\nkmem_free_wakeup $m $m.min 4K\njoin t2\nabandon t3\n\
         assert $m[1 + 2].max_free + exec_map.size >= $m.min-pipe_map.min % buffer_map.entries\n\
         kmem_malloc $m[3] 4K WAITOK\ntouch $m.min+4K 4K\numa_reclaim\n\
         on_lowmem kmem_free kmem_map $a 4K\nx = join t4\nkmem_alloc $x 1\non_lowmem settle\n\
         expect ok\nstart t1: y = kmem_alloc kernel_map 4K\nexpect null\nstart t[$a%64]: read 1\n\
         join t[1 + 1]\nabandon t[$a]\nt[3]: z = read 1\nlet t[3] = 1\nt[$t[3]] = read 2\n\
         t[$t[3]]: read $t[$t[3]]\nprint hex($a+1) now cycles hex($a * 2)\nlet start = now\n\
         start = read 1\nlet guest = cycles + $start\n\
         kmem_alloc_nofault pager_map clean_map.size\n",
    );
}

#[test]
fn an_error_names_line_and_column() {
    let cases = [
        ("\n  kmem_maloc kmem_map 1", 2, 3, "unknown verb `kmem_maloc`"),
        ("kmem_alloc kernl_map 1", 1, 12, "unknown map"),
        ("kmem_malloc kmem_map 1 NOWIAT", 1, 24, "unknown flag"),
        ("let x = v_free_cuont", 1, 9, "unknown name `v_free_cuont`"),
        ("let x = kmem_map.sice", 1, 18, "unknown property of a map"),
        ("read $a", 1, 6, "`$a` is not bound"),
        ("read $a[1]", 1, 6, "`$a[]` is not bound"),
        ("assert 1 = 1", 1, 10, "unexpected `=`"),
        ("repeat 3\nread 1", 1, 1, "a `repeat` without its `end`"),
        ("end", 1, 1, "an `end` without its `repeat`"),
        ("let x = 1\nexpect ok", 2, 1, "`expect` has nothing to judge"),
        ("expect ok", 1, 1, "`expect` has nothing to judge"),
        ("read 1\nexpect 2\nexpect 2", 3, 1, "`expect` has nothing to judge"),
        ("read", 1, 5, "`read` lacks an argument"),
        ("read 1 2", 1, 8, "`read` takes no more arguments"),
        ("read 1 + 2", 1, 8, "`read` takes no more arguments"),
        ("read 1+ 2", 1, 9, "a blank after `+`"),
        ("read 12Q", 1, 6, "bad number `12Q`"),
        ("print $i", 1, 7, "`$i` outside a `repeat`"),
        ("let a = (1", 1, 11, "the line ends too early"),
        ("a = ", 1, 5, "the line ends too early"),
        ("print \"x", 1, 7, "an unterminated string"),
        ("read 1\nexpect error KERN_WHAT", 2, 14, "unknown error"),
        ("read 1\nexpect panic", 2, 13, "the line ends too early"),
        ("t64: settle", 1, 1, "`t64` is not a thread"),
        ("t01: settle", 1, 1, "`t01` is not a thread"),
        ("join 4", 1, 6, "the number 4 is not a thread"),
        ("join", 1, 5, "`join` lacks an argument"),
        ("join intr", 1, 6, "`intr` is not a thread"),
        ("intr: join t1", 1, 1, "an interrupt handler cannot do `join`"),
        ("intr: on_lowmem settle", 1, 1, "an interrupt handler cannot do `on_lowmem`"),
        ("on_lowmem t1: settle", 1, 11, "the handler runs on the thread that invokes the event"),
        (
            "on_lowmem a = settle",
            1,
            11,
            "the result of a handler goes nowhere, so it binds no name",
        ),
        ("fail", 1, 5, "`fail` lacks an argument"),
        ("fail # vm_page_alloc", 1, 6, "`fail` lacks an argument"),
        ("fail vm_page_aloc return", 1, 6, "unknown fail site `vm_page_aloc`"),
        ("fail 7", 1, 6, "unknown fail site `7`"),
        ("fail \"x", 1, 6, "unknown fail site `\"x`"),
        ("fail tsleep", 1, 12, "`fail tsleep` lacks its programme"),
        ("fail tsleep # return", 1, 12, "`fail tsleep` lacks its programme"),
        ("fail off tsleep", 1, 10, "`fail off` takes no more arguments"),
        ("fail list all", 1, 11, "`fail list` takes no more arguments"),
        (
            "fail vm_map_wire  2*off->101%return",
            1,
            26,
            "bad programme for vm_map_wire: a probability must be above 0 and at most 100, with \
             at most four places",
        ),
        (
            "fail tsleep 5*sleep(1)",
            1,
            15,
            "tsleep does not take `sleep`: its caller may not sleep; `delay` spins",
        ),
        ("fail tsleep return(1)", 1, 20, "tsleep can only return 0"),
        (
            "let n = 3\nfail tsleep $n*return",
            2,
            13,
            "bad programme for tsleep: expected an action, one of off, return, sleep, delay, \
             panic, print",
        ),
        (
            "fail tsleep 3 * return",
            1,
            14,
            "bad programme for tsleep: expected a number below 2^64, and `%` or `*` after it if an \
             action follows",
        ),
        ("t1: fail off", 1, 1, "the host does `fail`, not a thread of the guest"),
        ("t[1]: fail off", 1, 1, "the host does `fail`, not a thread of the guest"),
        ("intr: fail off", 1, 1, "the host does `fail`, not a thread of the guest"),
        ("start t1: fail off", 1, 7, "the host does `fail`, not a thread of the guest"),
        ("on_lowmem fail off", 1, 11, "`fail` is not an operation of the guest"),
        ("on_lowmem join t1", 1, 11, "`join` is not an operation of the guest"),
        ("on_lowmem kmem_alloc kmem_map", 1, 30, "`kmem_alloc` lacks an argument"),
        ("on_lowmem", 1, 10, "`on_lowmem` lacks an argument"),
        ("let m = 1\nkmem_alloc $m 4K", 2, 12, "`$m` is a number, not a map"),
        ("let m[1] = 1\nlet x = $m[1].size", 2, 9, "`$m[]` is a number, not a map"),
        ("a = kmem_alloc kernel_map 1\nlet x = $a.min", 2, 9, "`$a` is a number, not a map"),
        ("m = kmem_suballoc kernel_map 1\nlet x = $m.sice", 2, 12, "unknown property of a map"),
        ("kmem_alloc $m 4K", 1, 12, "`$m` is not bound"),
        ("kmem_suballoc kernel_map 1M sytem", 1, 29, "unknown kind of map"),
        ("kmem_suballoc kernel_map 1M system x", 1, 36, "`kmem_suballoc` takes no more arguments"),
        ("repeat 1\ni = read 1\nend", 2, 1, "`i` is the counter of this repeat"),
        ("§", 1, 1, "stray character `§`"),
        ("start kmem_alloc kernel_map 1", 1, 7, "`start` needs a thread"),
        ("start", 1, 6, "the line ends too early"),
        (
            "start intr: settle",
            1,
            7,
            "an interrupt handler is not a thread, and has nothing to join",
        ),
        ("start t1: check", 1, 7, "`check` is done by the script itself, and cannot be started"),
        ("start t1: join t2", 1, 7, "`join` is done by the script itself, and cannot be started"),
        ("start: settle", 1, 1, "`start` is not a thread"),
        ("t[64]: settle", 1, 1, "`t[64]` is not a thread"),
        ("join t[0x40]", 1, 6, "`t[64]` is not a thread"),
        ("t[1: settle", 1, 4, "unexpected `:`"),
        ("let x = hex(1)", 1, 9, "unknown name `hex`"),
        ("print hex 1", 1, 11, "unexpected number 1"),
        (
            "print swap_free",
            1,
            7,
            "`swap_free` is part of the language, but not yet of this kernel",
        ),
        (
            "assert v_swappgsin == 0",
            1,
            8,
            "`v_swappgsin` is part of the language, but not yet of this kernel",
        ),
    ];
    for (text, line, column, message) in cases {
        assert_eq!(error(text), (line, column, message.to_owned()), "{text}");
    }
}

const CALL: &str = "arguments follow the verb, with blanks between them and no parentheses around: \
                    `kmem_alloc MAP SIZE`";

fn advice_of(word: &str) -> &'static str {
    crate::script::advice::foreign(word).unwrap_or_default()
}

#[test]
fn no_advice_names_the_very_word_that_is_wrong() {
    for verb in VERBS {
        for text in [
            format!("let a = {}", verb.name),
            format!("{0} {0} {0}", verb.name),
            format!("assert {} == 1", verb.name),
        ] {
            for error in errors(&text) {
                assert_ne!(error.help, Some(format!("did you mean `{}`?", verb.name)), "{text}");
            }
        }
    }
}

#[test]
fn a_name_that_is_preset_is_bound_before_the_first_line_and_by_no_let() {
    let presets = [("n".to_owned(), 3)];
    let source = Source::new("test.kmem", "print $n\nlet n = 1\nlet n[1] = 2\nrepeat $n\nend");
    assert!(crate::script::parse_with(&source, &presets).is_ok());
    assert!(parse(&source).is_err());
}

#[test]
fn what_looks_like_a_known_name_gets_a_suggestion() {
    let cases = [
        ("kmem_maloc kmem_map 1", "did you mean `kmem_malloc`?"),
        ("kmem_alloc kmemmap 1", "did you mean `kmem_map`?"),
        ("kmem_suballoc kernel_map 1M sytem", "did you mean `system`?"),
        ("mine = kmem_suballoc kernel_map 1M\nkmem_alloc mine 4K", "did you mean `$mine`?"),
        (
            "mine = kmem_suballoc kernel_map 1M\nlet mime = 1\nkmem_alloc $mime 4K",
            "did you mean `$mine`?",
        ),
        ("kmem_malloc kmem_map 1 M_NOWAIT", "did you mean `NOWAIT`?"),
        ("let before = 1\nassert before == 1", "did you mean `$before`?"),
        ("let before = 1\nassert $befor == 1", "did you mean `$before`?"),
        ("let a = v_fre_count", "did you mean `v_free_count`?"),
        ("read 1\nexpect nul", "did you mean `null`?"),
        ("a[0] = read 1\nread $a", "`a` is a series: `$a[EXPR]` is one of its elements"),
        ("x = 5", "`let NAME = EXPR` binds a number"),
        ("x = $y", "`let NAME = EXPR` binds a number"),
        ("x = v_free_count + 1", "`let NAME = EXPR` binds a number"),
        ("$x = 5", "a name is bound without `$`: `let NAME = EXPR`, or `NAME = VERB ...`"),
        ("let $x = 5", "a name is bound without `$`, and read with it"),
        ("if v_free_count", advice_of("if")),
        ("while 1", advice_of("while")),
        ("For 3", advice_of("for")),
        ("KMEM_ALLOC kernel_map 1", "did you mean `kmem_alloc`?"),
        ("LET x = 1", "did you mean `let`?"),
        ("kmem_malloc kmem_map 1 nowait", "did you mean `NOWAIT`?"),
        ("kmem_malloc kmem_map 1 WAITOK|m_zero", "did you mean `ZERO`?"),
        ("kmem_malloc kmem_map 12k", "did you mean `12K`?"),
        ("sleep 5MS", "did you mean `5ms`?"),
        ("read 0XFF", "did you mean `0xff`?"),
        ("T1: settle", "did you mean `t1`?"),
        ("read 1\nexpect OK", "did you mean `ok`?"),
        ("read 1\nexpect error NO_SPACE", "did you mean `KERN_NO_SPACE`?"),
        ("assert 1 = 1", "did you mean `==`?"),
        ("print 'x'", "strings stand in double quotes"),
        ("settle;", "a statement ends with its line"),
        ("let x = read 1", "without `let`: `x = read ...`"),
        ("let x = 1 + read 1", "a verb stands in a statement of its own: `NAME = read ADDR`"),
        ("let x = hex(1)", "`hex(EXPR)` stands in `print` alone, where it prints hexadecimal"),
        ("kmem_alloc(kernel_map, 4K)", CALL),
        ("a = kmem_alloc(kernel_map, 4K)", CALL),
        ("kmem_alloc kernel_map, 4K", CALL),
    ];
    for (text, help) in cases {
        assert_eq!(errors(text)[0].help.as_deref(), Some(help), "{text}");
    }
}

#[test]
fn what_the_kernel_does_not_offer_is_refused_before_anything_boots() {
    let rest = "kmem_map 4K % 50%return(1) \"unclosed";
    for verb in VERBS.iter().filter(|verb| !verb.is_offered()) {
        let (line, column, message) = error(&format!("{} {rest}", verb.name));
        assert_eq!((line, column), (1, 1));
        assert_eq!(
            message,
            format!("`{}` is part of the language, but not yet of this kernel", verb.name)
        );
    }
}

#[test]
fn the_verbs_of_malloc_uma_and_contigmalloc_are_refused_by_name() {
    let verbs = "malloc realloc free contigmalloc contigfree zone_create zone_destroy zalloc zfree \
                 zone_drain";
    for verb in verbs.split(' ') {
        let (line, column, message) = error(&format!("{verb} 4K"));
        assert_eq!((line, column), (1, 1));
        assert_eq!(
            message,
            format!("`{verb}` is part of the language, but not yet of this kernel")
        );
    }
}

#[test]
fn one_mistake_is_reported_once() {
    assert_eq!(
        errors("a = kmem_maloc kmem_map 1\nexpect ok\nread $a\nb[1] = nope\nread $b[1]").len(),
        2
    );
    assert_eq!(errors("repeat nope\nread $i\nend\nread 1").len(), 1);
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let deep = format!("let a = {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(error(&deep).2.contains("levels of parentheses"));
    good(&format!("let a = 1{}", "+1".repeat(100_000)));
    let loops = format!("{}{}", "repeat 1\n".repeat(100_000), "end\n".repeat(100_000));
    assert!(errors(&loops)[0].message.contains("levels of `repeat`"));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        for error in errors(&text) {
            prop_assert!(!error.render(&Source::new("x", &text)).is_empty());
        }
    }

    #[test]
    fn no_soup_of_words_makes_the_parser_panic(words in prop::collection::vec(
        prop::sample::select(vec![
            "let", "expect", "assert", "repeat", "end", "print", "\n", "\n", "t0:", "intr:", "a",
            "=", "$a", "$a[", "]", "[", "(", ")", "rand(", ",", "1", "0x", "4K", "kmem_map",
            "kmem_map.", ".size", "kmem_malloc", "read", "verify", "zero", "NOWAIT", "|", "\"",
            "\\", "#", "+", "-", "==", "$i", "$", "error", "panic", "ok", "v_free_count", "ä",
            "KERN_NO_SPACE", "join", "t1", "start", "start t1:", "guest", "memory=8M", "t[",
            "t[1]:", "hex(", "now", "cycles", "on_lowmem", "kmem_suballoc", "system", ".min", "$m",
            "m =",
        ]),
        0..60,
    ), blanks in any::<bool>()) {
        let text = words.join(if blanks { " " } else { "" });
        for error in errors(&text) {
            prop_assert!(!error.render(&Source::new("x", &text)).is_empty());
        }
    }
}

#[test]
fn an_unknown_fail_site_and_action_are_told_with_those_that_exist() {
    let help = |text: &str| {
        let errors = parse(&Source::new("", text)).expect_err(text);
        errors[0].help.clone().unwrap_or_default()
    };
    let text = help("fail vm_map_findspaces return");
    assert!(text.starts_with("did you mean `vm_map_findspace`? the sites are vm_page_a"), "{text}");
    assert!(text.ends_with(" slab_zalloc intr_window"), "{text}");
    assert_eq!(help("fail tsleep 1*retrun"), "did you mean `return`?");
    assert_eq!(help("fail intr_window return"), "intr_window takes off delay panic print");
}
