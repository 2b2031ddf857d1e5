//! `guest KEY=VALUE...`.

use std::time::Duration;

use crate::TimeMode;
use crate::script::{GuestOptions, Source, parse};

fn options(text: &str) -> GuestOptions {
    let source = Source::new("test.kmem", text);
    match parse(&source) {
        Ok(script) => script.guest().clone(),
        Err(errors) => panic!("{}", errors[0].render(&source)),
    }
}

#[test]
fn a_script_can_ask_for_its_guest_by_the_names_of_the_command_line() {
    let text = "# first\n\nguest memory=256M vcpus=2 time=real timeout=20s seed=7 vm.kmem_size=32M \
                policy=classic # last\nsettle";
    let wanted = GuestOptions {
        memory: Some(256 << 20),
        vcpus: Some(2),
        time: Some(TimeMode::Real),
        timeout: Some(Duration::from_secs(20)),
        seed: Some(7),
        tunables: vec![("vm.kmem_size".to_owned(), 32 << 20)],
        ..GuestOptions::default()
    };
    assert_eq!(options(text), wanted);
    assert!(options("settle").is_empty());
}

#[test]
fn a_guest_line_that_makes_no_sense_names_the_place() {
    let cases = [
        ("guest", 6, "`guest` lacks an argument"),
        ("guest # memory=8M", 7, "`guest` lacks an argument"),
        ("guest memory = 8M", 7, "`memory` is not KEY=VALUE"),
        ("guest memory=", 7, "`memory=` is not KEY=VALUE"),
        ("guest vcpus=1 vcpus=2", 15, "`vcpus` is given twice"),
        ("guest memory=1M", 7, "bad value of `memory`"),
        ("guest memory=12k", 7, "bad value of `memory`"),
        ("guest vcpus=65", 7, "bad value of `vcpus`"),
        ("guest vcpus=0", 7, "bad value of `vcpus`"),
        ("guest time=fast", 7, "bad value of `time`"),
        ("guest timeout=5K", 7, "bad value of `timeout`"),
        ("guest kern.hz=0", 7, "bad value of `kern.hz`"),
        ("guest kern.hertz=1", 7, "unknown key `kern.hertz`"),
        ("guest kernel=x", 7, "`kernel` can be given on the command line only"),
        (
            "guest policy=modern",
            7,
            "`policy=modern` is part of the language, but not yet of this kernel",
        ),
        ("guest policy=x", 7, "bad value of `policy`"),
    ];
    for (text, column, message) in cases {
        let source = Source::new("test.kmem", text);
        let errors = parse(&source).expect_err(text);
        let found: Vec<_> = errors
            .iter()
            .map(|error| (source.column(error.span), error.message.as_str()))
            .collect();
        assert_eq!(found, [(column, message)], "{text}");
    }
}

#[test]
fn a_guest_line_stands_before_every_other_statement() {
    for before in ["settle", "let a = 1", "print 1", "repeat 1\nend", "guest vcpus=1"] {
        let text = format!("{before}\nguest vcpus=2");
        let errors = parse(&Source::new("test.kmem", &text)).expect_err(before);
        assert_eq!(errors[0].message, "`guest` stands before every other statement", "{before}");
    }
}
