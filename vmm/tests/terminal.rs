//! Foreign text on a terminal: file names, arguments, scripts, kernels and dumps can neither forge
//! a line of the command's output nor control the terminal.

mod scratch;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Command, Output, Stdio};

use scratch::Scratch;
use serde_json::Value;
use vmkern::abi::control::ControlRegion;
use vmkern::abi::describe;

/// The line that hostile text tries to forge.
const FORGED: &str = "ok forged";

/// Names and words with line breaks, and with sequences that a terminal obeys: a title, a cleared
/// screen, hidden text, reversed text.
const HOSTILE: [&str; 5] = [
    "x\nok forged",
    "x\rok forged\u{2028}ok forged",
    "x\x1b]0;title\x07\x1b[2J\x1b[H",
    "x\x1b[8m\u{9b}31m",
    "x\u{202e}txt.exe\u{2066}",
];

/// `vmkern ARGS` with styles, as on a terminal.
fn vmkern<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.args(args).env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR").stdin(Stdio::null());
    command.output().expect("the command can be started")
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed by a signal: {output:?}"))
}

/// `text` without the command's own styles: bold, and its colours.
fn without_styles(text: &str) -> String {
    ["0", "1", "4", "31", "32", "33", "36"]
        .iter()
        .fold(text.to_owned(), |text, style| text.replace(&format!("\x1b[{style}m"), ""))
}

/// Asserts that `output` does not control a terminal and has no forged line. Returns its text.
#[track_caller]
fn harmless(output: &Output) -> String {
    let mut all = String::new();
    for stream in [&output.stdout, &output.stderr] {
        let text = without_styles(str::from_utf8(stream).expect("it is UTF-8"));
        let obeyed = |c: char| {
            c.is_control() && c != '\n' || matches!(c, '\u{2028}' | '\u{202e}' | '\u{2066}')
        };
        assert!(!text.contains(obeyed), "{text:?}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with(FORGED)), "{text}");
        all += &text;
    }
    all
}

/// As [`harmless`], and the text appears with its line breaks and escapes escaped.
#[track_caller]
fn shown(output: &Output) {
    let text = harmless(output);
    assert!(
        ["x\\n", "x\\r", "x\\u{1b}", "x\\u{202e}"].iter().any(|escaped| text.contains(escaped)),
        "{text}"
    );
}

/// A script that succeeds, and the dump of its guest.
fn good(scratch: &Scratch) -> (String, String) {
    let (script, image) = (scratch.file("good.kmem", "settle\n"), scratch.path("good.img"));
    assert_eq!(status(&vmkern(&["run", "--save-dump", &image, &script])), 0);
    (script, image)
}

#[test]
fn names_of_files_that_cannot_be_used_are_told_in_one_line() {
    let scratch = Scratch::new();
    let (script, image) = good(&scratch);
    for name in HOSTILE {
        let missing = scratch.path(name);
        let inside = format!("{missing}/none");
        let link = scratch.path("link");
        std::os::unix::fs::symlink(&inside, &link).expect("a link can be made");
        for (args, wanted) in [
            (vec!["run", &missing], 2),
            (vec!["test", &missing], 2),
            (vec!["check", &missing], 2),
            (vec!["check", "--script", &missing], 2),
            (vec!["inspect", &missing], 2),
            (vec!["inspect", "--script", &missing], 2),
            (vec!["inspect", &image, "diff", &missing], 2),
            (vec!["run", "--kernel", &missing, &script], 2),
            (vec!["run", "--save-dump", &inside, &script], 2),
            (vec!["run", "--save-dump", &link, &script], 2),
            (vec!["run", "--console", &inside, &script], 2),
            (vec!["test", "--junit", &inside, &script], 2),
            (vec!["image", "-o", &inside], 7),
        ] {
            let output = vmkern(&args);
            assert!(status(&output) != 0, "{args:?}");
            assert!([wanted, 2, 7].contains(&status(&output)), "{args:?}: {output:?}");
            shown(&output);
        }
        fs::remove_file(&link).expect("the link is there");
    }
}

#[test]
fn names_of_files_that_are_used_are_told_in_one_line_and_in_json_as_well() {
    for name in HOSTILE {
        let scratch = Scratch::new();
        let good = scratch.file(&format!("{name}.kmem"), "kmem_malloc kmem_map 4K NOWAIT\n");
        let image = scratch.path(&format!("{name}.img"));
        let output = vmkern(&["run", "--save-dump", &image, &good]);
        assert_eq!(status(&output), 0, "{output:?}");
        shown(&output);
        for args in [
            vec!["test", &good],
            vec!["test", "--seeds", "0..2", &good],
            vec!["check", &image],
            vec!["check", "--script", &good],
            vec!["inspect", &image, "diff", &image],
        ] {
            let output = vmkern(&args);
            assert_eq!(status(&output), 0, "{args:?}: {output:?}");
            shown(&output);
        }
        harmless(&vmkern(&["test", scratch.dir()]));
        for args in [
            vec!["inspect", "--json", &image],
            vec!["check", "--json", &image],
            vec!["test", "--json", &good],
        ] {
            let output = vmkern(&args);
            harmless(&output);
            serde_json::from_slice::<Value>(&output.stdout).expect("it is JSON");
        }
        let wrong: [&[u8]; 4] = [
            b"kmem_maloc kmem_map 4K\n",
            b"let a = 1\nassert $a == 2\n",
            b"read 0xffffff8000000000\n",
            b"\xff\n",
        ];
        for text in wrong {
            let script = scratch.file(&format!("{name}-wrong.kmem"), text);
            for args in [["run", &script], ["test", &script]] {
                let output = vmkern(&args);
                assert_ne!(status(&output), 0);
                shown(&output);
            }
        }
    }
}

#[test]
fn a_name_that_is_not_utf_8_is_told_as_far_as_it_is() {
    let name = OsString::from_vec(b"\xff\nok forged\x1b[2J".to_vec());
    for args in [[OsString::from("run"), name.clone()], [OsString::from("check"), name]] {
        let output = vmkern(&args);
        assert_eq!(status(&output), 2);
        assert!(harmless(&output).contains("\\nok forged\\u{1b}[2J"), "{output:?}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_told_in_one_line() {
    let scratch = Scratch::new();
    let (script, image) = good(&scratch);
    for word in HOSTILE {
        let (setting, option) = (format!("{word}=1"), format!("--{word}"));
        let in_one = format!("--memory={word}");
        for args in [
            vec![word],
            vec!["bench", word],
            vec!["run", &option, &script],
            vec!["run", &in_one, &script],
            vec!["run", "--memory", word, &script],
            vec!["run", "--privilege", word, &script],
            vec!["run", "--timeout", word, &script],
            vec!["run", "--set", &setting, &script],
            vec!["run", "--set", word, &script],
            vec!["run", "--let", &setting, &script],
            vec!["test", "--seeds", word, &script],
            vec!["test", "--filter", word, &script],
            vec!["inspect", &image, word],
            vec!["inspect", &image, "map", word],
            vec!["inspect", &image, "vtop", word],
            vec!["inspect", &image, "maps", word],
            vec!["inspect", &image, "pagetable", word],
        ] {
            let output = vmkern(&args);
            assert_eq!(status(&output), 2, "{args:?}: {output:?}");
            harmless(&output);
        }
        let output = vmkern(&["run", "--json", "--memory", word, &script]);
        harmless(&output);
        serde_json::from_slice::<Value>(&output.stdout).expect("it is JSON");
    }
}

#[test]
fn the_text_of_a_script_is_only_shown() {
    let scratch = Scratch::new();
    for hostile in &HOSTILE[2..] {
        for (number, text) in [
            format!("kmem_malloc kmem_map {hostile} NOWAIT\n"),
            format!("{hostile}\n"),
            format!("print \"{hostile}\"\n"),
            format!("# {hostile}\nlet a = 1 # {hostile}\nassert $a == 2 # {hostile}\n"),
            format!("read 0xffffff8000000000\nexpect panic \"{hostile}\"\n"),
        ]
        .iter()
        .enumerate()
        {
            let script = scratch.file(&format!("{number}.kmem"), text);
            for args in
                [vec!["run", &script], vec!["run", "-v", &script], vec!["test", "-v", &script]]
            {
                harmless(&vmkern(&args));
            }
            for args in [["inspect", "--script", &script], ["check", "--script", &script]] {
                harmless(&vmkern(&args));
            }
        }
    }
}

/// `bytes` with every `old` replaced by `new` of the same length. There is at least one.
fn replaced(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let places: Vec<_> =
        (0..bytes.len() - old.len()).filter(|&at| bytes[at..].starts_with(old)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|&at| bytes[at..at + new.len()].copy_from_slice(new));
    bytes
}

#[test]
fn names_and_messages_of_a_kernel_are_told_in_one_line() {
    let scratch = Scratch::new();
    let path = scratch.path("kernel.elf");
    assert_eq!(status(&vmkern(&["image", "-o", &path])), 0);
    let kernel = fs::read(&path).expect("it was written");
    let script = scratch.file("panics.kmem", "a = kmem_alloc_nofault kernel_map 4K\nread $a\n");
    // The start of the panic's message, and the name of a function in the symbols and the debug
    // information.
    for (new, told, called) in [
        (b"x\nok for" as &[u8; 8], "x\\nok for", "x\\nok for+0x"),
        // A name is shown up to its bracket.
        (b"x\x1b[2J\x1b[H", "x\\u{1b}[2J\\u{1b}[H", "x\\u{1b}+0x"),
        (b"x\x1b[8m\r\x07\x08", "x\\u{1b}[8m\\r\\u{7}\\u{8}", "x\\u{1b}+0x"),
    ] {
        let hostile = scratch.file("hostile.elf", replaced(kernel.clone(), b"vm_fault", new));
        let output = vmkern(&["run", "--kernel", &hostile, &script]);
        assert_eq!(status(&output), 3, "{output:?}");
        let text = harmless(&output);
        assert!(text.contains(&format!("panic: {told}: fault on nofault entry")), "{text}");
        assert!(text.contains(called), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("ok for")), "{text}");
        for args in [
            vec!["test", "--kernel", &hostile, &script],
            vec!["run", "--json", "--kernel", &hostile, &script],
            vec!["inspect", "--kernel", &hostile, "--script", &script, "cpus"],
        ] {
            let text = harmless(&vmkern(&args));
            assert!(!text.lines().any(|line| line.starts_with("ok for")), "{text}");
        }
    }
}

/// The offset of physical address `at` in the dump.
fn place(file: &[u8], at: u64) -> usize {
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let headers = usize::from(file[56]) | usize::from(file[57]) << 8;
    let holds =
        |header: &usize| (word(header + 24)..word(header + 24) + word(header + 32)).contains(&at);
    let header =
        (1..headers).map(|number| 64 + 56 * number).find(holds).expect("the file holds it");
    usize::try_from(word(header + 8) + at - word(header + 24)).expect("it is an offset")
}

#[test]
fn what_an_image_says_its_kernels_structures_are_called_is_told_in_one_line() {
    let scratch = Scratch::new();
    let (_, image) = good(&scratch);
    let good = fs::read(&image).expect("it was written");
    let word = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().expect("eight bytes"));
    let control = place(&good, word(usize::try_from(word(64 + 8)).expect("an offset") + 20 + 8));
    let field = |offset: usize| word(control + offset);
    let text_at = place(&good, field(core::mem::offset_of!(ControlRegion, description)));
    let text_len = usize::try_from(field(core::mem::offset_of!(ControlRegion, description_len)))
        .expect("it is short");
    let described = good[text_at..text_at + text_len].to_vec();
    for (new, told) in [
        (b"x\x1b[8m\x07" as &[u8; 6], "x\\u{1b}[8m\\u{7}"),
        (b"x\x1b[2JV", "x\\u{1b}[2JV"),
        (b"\rok fo", "ok"),
    ] {
        let text = replaced(described.clone(), b"VmPage", new);
        let mut lying = good.clone();
        lying[text_at..text_at + text_len].copy_from_slice(&text);
        let hash = control + core::mem::offset_of!(ControlRegion, abi_hash);
        lying[hash..hash + 8].copy_from_slice(&describe::hash(&text).to_le_bytes());
        let file = scratch.file("lying.img", lying);
        for args in [["inspect", &file], ["check", &file]] {
            let output = vmkern(&args);
            assert_eq!(status(&output), 2, "{output:?}");
            let text = harmless(&output);
            assert!(text.contains(told) || text.contains("makes no sense"), "{text}");
        }
    }
}
