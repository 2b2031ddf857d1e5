//! The command's output: nothing else is destroyed, and no lost output goes unreported.

mod scratch;
#[expect(dead_code, reason = "kernels are written to files here, byte by byte")]
mod tiny;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use scratch::Scratch;
use vmkern::dump::Dump;

fn vmkern<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmkern"));
    command.args(args).stdin(Stdio::null());
    command
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed by a signal: {output:?}"))
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn make(scratch: &Scratch, name: &str, program: &str, rest: &[&str]) -> bool {
    let made =
        Command::new(program).arg(scratch.path(name)).args(rest).stderr(Stdio::null()).status();
    made.expect("the program is there").success()
}

/// A FIFO with a reader that reads everything until the last writer has gone.
fn read_fifo(scratch: &Scratch, name: &str) -> thread::JoinHandle<Vec<u8>> {
    assert!(make(scratch, name, "mkfifo", &[]));
    let mut options = OpenOptions::new();
    // Opened before the writer, which would be refused otherwise.
    let mut reader =
        options.read(true).custom_flags(libc::O_NONBLOCK).open(scratch.path(name)).expect("a FIFO");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut piece = [0; 65536];
        loop {
            match reader.read(&mut piece) {
                // No writer has written yet, or all have gone.
                Ok(0) if !bytes.is_empty() => return bytes,
                Ok(0) => thread::yield_now(),
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// Every way to name a file for output, each a command line that succeeds.
fn ways_to_write(scratch: &Scratch, to: &str) -> Vec<Vec<String>> {
    let good = scratch.file("good.kmem", "print 1\n");
    let dump = scratch.file("dump.kmem", format!("dump {to}\n"));
    fs::create_dir_all(scratch.path("suite")).expect("a directory can be made");
    let _ = scratch.file("suite/good.kmem", "settle\n");
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    vec![
        words(&["run", "--memory", "8M", "--save-dump", to, &good]),
        words(&["run", "--memory", "8M", &dump]),
        words(&["run", "--memory", "8M", "--console", to, &good]),
        words(&["test", "--memory", "8M", "--junit", to, &scratch.path("suite")]),
        words(&["image", "-o", to]),
    ]
}

#[test]
fn a_device_is_written_to_and_stays_a_device() {
    let scratch = Scratch::new();
    if !make(&scratch, "null", "mknod", &["c", "1", "3"]) {
        // A user who may not create a device cannot replace one either.
        let error = File::create("/dev/vmkern-test")
            .expect_err("a user who may write there may create devices, too");
        return eprintln!("devices were not tried: {error}");
    }
    for args in ways_to_write(&scratch, &scratch.path("null")) {
        let output = vmkern(&args).output().expect("it can be started");
        assert_eq!(status(&output), 0, "{args:?}: {}", err(&output));
        let there = fs::symlink_metadata(scratch.path("null")).expect("it is there");
        assert!(there.file_type().is_char_device(), "{args:?}");
    }
}

#[test]
fn a_fifo_that_is_read_gets_everything_and_one_that_is_not_is_refused() {
    let scratch = Scratch::new();
    for (number, args) in ways_to_write(&scratch, "FIFO").into_iter().enumerate() {
        let name = format!("fifo{number}");
        let fifo = scratch.path(&name);
        let _ = scratch.file("dump.kmem", format!("dump {fifo}\n"));
        let args: Vec<_> =
            args.into_iter().map(|word| if word == "FIFO" { fifo.clone() } else { word }).collect();
        let reader = read_fifo(&scratch, &name);
        let output = vmkern(&args).output().expect("it can be started");
        assert_eq!(status(&output), 0, "{args:?}: {}", err(&output));
        let bytes = reader.join().expect("the reader has not failed");
        if args.iter().any(|word| word == "--save-dump" || word.ends_with("dump.kmem")) {
            fs::write(scratch.path("copy"), &bytes).expect("it can be written");
            assert_eq!(
                Dump::open(scratch.path("copy")).map(|_| ()).map_err(|e| e.to_string()),
                Ok(())
            );
        }
        assert!(!bytes.is_empty(), "{args:?}");
        // It has no reader any more.
        let output = vmkern(&args).output().expect("it can be started");
        assert_ne!(status(&output), 0);
        assert!(err(&output).contains("a FIFO without a reader"), "{args:?}: {}", err(&output));
        let there = fs::symlink_metadata(scratch.path(&name)).expect("it is there");
        assert!(there.file_type().is_fifo(), "{args:?}");
    }
}

#[test]
fn a_link_stays_a_link_and_one_to_nothing_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("far")).expect("a directory can be made");
    symlink("far/file", scratch.path("link")).expect("a link can be made");
    for args in ways_to_write(&scratch, &scratch.path("link")) {
        let output = vmkern(&args).output().expect("it can be started");
        assert!([1, 2].contains(&status(&output)), "{args:?}");
        assert!(
            err(&output).contains("a symbolic link to `far/file`, which does not exist"),
            "{}",
            err(&output)
        );
        assert!(!fs::exists(scratch.path("far/file")).expect("it can be told"), "{args:?}");
        fs::write(scratch.path("far/file"), "old").expect("it can be written");
        let output = vmkern(&args).output().expect("it can be started");
        assert_eq!(status(&output), 0, "{args:?}: {}", err(&output));
        assert_eq!(
            fs::read_link(scratch.path("link")).expect("it is a link"),
            Path::new("far/file")
        );
        assert_ne!(fs::read(scratch.path("far/file")).expect("it is there"), b"old", "{args:?}");
        fs::remove_file(scratch.path("far/file")).expect("it can be removed");
    }
}

#[test]
fn a_dash_is_standard_output_unless_a_report_goes_there() {
    let scratch = Scratch::new();
    for args in ways_to_write(&scratch, "-") {
        let output = vmkern(&args).output().expect("it can be started");
        assert_eq!(status(&output), 0, "{args:?}: {}", err(&output));
        assert!(output.stdout.len() > 2, "{args:?}");
    }
    assert!(!Path::new("-").exists());
    let good = scratch.path("good.kmem");
    for option in ["--save-dump", "--console"] {
        let output =
            vmkern(&["run", "--json", option, "-", &good]).output().expect("it can be started");
        assert_eq!(status(&output), 2);
        assert!(
            err(&output).contains("standard output holds the object of --json"),
            "{}",
            err(&output)
        );
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("it is the object alone");
        assert_eq!(report["status"], 2);
    }
    let dump = scratch.file("dump.kmem", "dump -\n");
    for args in [
        &["run", "--json", &dump][..],
        &["check", "--script", &dump],
        &["inspect", "--script", &dump],
    ] {
        let output = vmkern(args).output().expect("it can be started");
        assert_eq!(status(&output), 1, "{args:?}");
        assert!(!output.stdout.windows(4).any(|bytes| bytes == b"\x7fELF"), "{args:?}");
    }
}

#[test]
fn an_image_is_its_owners_alone_and_one_that_is_replaced_keeps_its_mode() {
    let scratch = Scratch::new();
    let image = scratch.path("guest.img");
    let saving = &ways_to_write(&scratch, &image)[..2];
    let mode = || fs::metadata(&image).expect("it is there").mode() & 0o7777;
    for args in saving {
        assert_eq!(status(&vmkern(args).output().expect("it can be started")), 0);
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o640))
            .expect("it is ours");
        assert_eq!(status(&vmkern(args).output().expect("it can be started")), 0);
        assert_eq!(mode(), 0o640);
        fs::remove_file(&image).expect("it can be removed");
    }
}

#[test]
fn output_that_cannot_be_written_gives_status_7_and_says_so_in_every_subcommand() {
    let scratch = Scratch::new();
    let good = scratch.file("good.kmem", "print 1\n");
    let image = scratch.path("guest.img");
    assert_eq!(
        status(
            &vmkern(&["run", "--save-dump", &image, &good]).output().expect("it can be started")
        ),
        0
    );
    fs::create_dir(scratch.path("suite")).expect("a directory can be made");
    let _ = scratch.file("suite/good.kmem", "print 1\n");
    let suite = scratch.path("suite");
    let full =
        || Stdio::from(OpenOptions::new().write(true).open("/dev/full").expect("it is there"));
    let commands: &[&[&str]] = &[
        &["run", &good],
        &["run", "--json", &good],
        &["run", "--console", "-", &good],
        &["run", "--save-dump", "-", &good],
        &["run", "--save-dump", "/dev/full", &good],
        &["run", "--console", "/dev/full", &good],
        &["run"],
        &["inspect", &image, "pages"],
        &["inspect", "--json", &image, "pages"],
        &["inspect", "--script", &good],
        &["check", "--json", &image],
        &["check", "--json", "--script", &good],
        &["test", "--json", &suite],
        &["test", "--junit", "-", &suite],
        &["test", "--junit", "/dev/full", &suite],
        &["doctor"],
        &["doctor", "--json"],
        &["image", "-o", "-"],
        &["image", "-o", "/dev/full"],
        &["bench", "boot", "--rounds", "1"],
        &["--help"],
        &["--version"],
        &["run", "--help"],
        &["bench", "ring", "--help"],
    ];
    for args in commands {
        let output =
            vmkern(args).stdout(full()).stderr(Stdio::piped()).output().expect("it can be started");
        assert_eq!(status(&output), 7, "{args:?}: {}", err(&output));
        assert!(err(&output).contains("No space left on device"), "{args:?}: {}", err(&output));
    }
    // The status of the run itself takes precedence.
    for (text, expected) in
        [("print 1\nassert 1 == 2\n", 1), ("print 1\nread 0xffffff8000000000\n", 3)]
    {
        let bad = scratch.file("bad.kmem", text);
        let output = vmkern(&["run", &bad])
            .stdout(full())
            .stderr(Stdio::piped())
            .output()
            .expect("it starts");
        assert_eq!(status(&output), expected);
        assert!(err(&output).contains("No space left on device"), "{}", err(&output));
    }
    // There is nowhere to print it, but the status shows it.
    for args in [&["run", "-v", &good][..], &["test", &suite]] {
        assert_eq!(
            status(&vmkern(args).stderr(full()).output().expect("it can be started")),
            7,
            "{args:?}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_changes_nothing_and_is_no_news() {
    let scratch = Scratch::new();
    let good =
        scratch.file("good.kmem", "repeat 3000\nprint \"a line that fills the pipe\" $i\nend\n");
    let bad = scratch.file(
        "bad.kmem",
        "repeat 3000\nprint \"a line that fills the pipe\" $i\nend\nassert 1 == 2\n",
    );
    let cases: &[(&[&str], i32)] = &[
        (&["run", &good], 0),
        (&["run", "--json", &good], 0),
        (&["run", &bad], 1),
        (&["run", "--save-dump", "-", &good], 0),
        (&["image", "-o", "-"], 0),
        (&["--help"], 0),
        (&["doctor"], 0),
    ];
    for (args, expected) in cases {
        let mut child = vmkern(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be started");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(status(&output), *expected, "{args:?}: {}", err(&output));
        assert!(
            !err(&output).contains("error:") && !err(&output).contains("pipe"),
            "{args:?}: {}",
            err(&output)
        );
    }
}

/// Sends `signal` to `child`.
fn kill(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .expect("there is kill");
    assert!(sent.success());
}

/// The least number of bytes in a full pipe: the last line may not fit.
const FULL: u64 = 60_000;

const SIGNALS: [(&str, i32); 3] = [("-INT", 130), ("-TERM", 143), ("-HUP", 129)];

#[test]
fn a_signal_ends_a_run_whose_output_nobody_reads_with_128_and_its_number() {
    let scratch = Scratch::new();
    let busy =
        "repeat 1000000000\na = kmem_malloc kmem_map 4K NOWAIT\nkmem_free kmem_map $a 4K\nend\n";
    let to_stderr = scratch.file("stderr.kmem", busy);
    let to_stdout =
        scratch.file("stdout.kmem", "repeat 1000000000\nprint \"fills the pipe\" $i\nend\n");
    for (signal, expected) in SIGNALS {
        for args in [
            &["run", "-v", &to_stderr][..],
            &["run", &to_stdout],
            &["inspect", "--script", &to_stdout],
        ] {
            let mut child = vmkern(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it can be started");
            let full = |pipe: &dyn Fn() -> u64| {
                while pipe() < FULL {
                    thread::yield_now();
                }
            };
            let waiting =
                |fd: &dyn AsFd| rustix::io::ioctl_fionread(fd.as_fd()).expect("it is a pipe");
            match args.len() {
                2 => full(&|| waiting(child.stdout.as_ref().expect("a pipe"))),
                _ => full(&|| waiting(child.stderr.as_ref().expect("a pipe"))),
            }
            kill(&child, signal);
            assert_eq!(child.wait().expect("it ends").code(), Some(expected), "{args:?}");
        }
    }
}

#[test]
fn a_signal_ends_every_subcommand_that_runs_guests_in_order() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("suite")).expect("a directory can be made");
    let endless = "print \"go\"\nrepeat 1000000000\nsettle\nend\n";
    let script = scratch.file("suite/endless.kmem", endless);
    let suite = scratch.path("suite");
    let console = scratch.path("log");
    for (signal, expected) in SIGNALS {
        let commands: [&[&str]; 3] = [
            &["run", "--console", &console, &script],
            &["check", "--script", &script],
            &["test", "--console", &suite, &suite],
        ];
        for args in commands {
            let log = if args[0] == "test" {
                scratch.path("suite/endless.log")
            } else {
                scratch.path("log")
            };
            let _ = fs::remove_file(&log);
            let mut child = vmkern(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it can be started");
            match args[0] {
                "run" => {
                    let mut line = String::new();
                    let stdout = child.stdout.take().expect("a pipe");
                    BufReader::new(stdout).read_line(&mut line).expect("the script prints");
                }
                "check" => {
                    let mut first = [0];
                    child
                        .stderr
                        .as_mut()
                        .expect("a pipe")
                        .read_exact(&mut first)
                        .expect("the script prints");
                }
                // The kernel has booted once its log has content.
                _ => {
                    while fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
                        thread::yield_now();
                    }
                }
            }
            kill(&child, signal);
            let output = child.wait_with_output().expect("it ends");
            assert_eq!(status(&output), expected, "{args:?}: {}", err(&output));
            assert!(err(&output).contains("vmkern: "), "{args:?}: {}", err(&output));
        }
    }
}

#[test]
fn a_time_limit_ends_a_run_whose_output_nobody_reads() {
    let scratch = Scratch::new();
    let loud = scratch.file("loud.kmem", "repeat 1000000000\nprint \"fills the pipe\" $i\nend\n");
    let quiet = scratch.file("quiet.kmem", "repeat 1000000000\nsettle\nend\n");
    for args in [&["run", &loud][..], &["run", "-v", &quiet], &["inspect", "--script", &loud]] {
        let mut child = vmkern(args)
            .args(["--timeout", "1s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be started");
        assert_eq!(child.wait().expect("it ends").code(), Some(5), "{args:?}");
    }
}

#[test]
fn a_kernel_that_dies_or_hangs_in_its_boot_leaves_its_log_and_its_memory() {
    let scratch = Scratch::new();
    let good = scratch.file("good.kmem", "settle\n");
    // Before a kernel has a ring, its output goes over the serial line: `mov dx, 0x3f8; mov al,
    // byte; out dx, al`.
    let kernel = |name: &str, byte: u8, then: &[u8]| {
        let code = [&[0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee], then].concat();
        fs::write(scratch.path(name), tiny::pvh_elf(&code, tiny::Note::Pvh))
            .expect("it can be written");
        scratch.path(name)
    };
    // `jmp $`, and `ud2` without an IDT.
    let hangs = kernel("hangs", b'h', &[0xeb, 0xfe]);
    let dies = kernel("dies", b'd', &[0x0f, 0x0b]);
    let cases: [(&[&str], i32, &str); 3] = [
        (&["--set", "kern.maxbcache=1"], 3, "panic: "),
        (&["--kernel", &hangs, "--timeout", "1s"], 5, "h"),
        (&["--kernel", &dies], 6, "d"),
    ];
    for (args, expected, said) in cases {
        let (log, image) = (scratch.path("log"), scratch.path("image"));
        let output = vmkern(&["run", "--memory", "16M", "--console", &log, "--save-dump", &image])
            .args(args)
            .arg(&good)
            .output()
            .expect("it can be started");
        assert_eq!(status(&output), expected, "{args:?}: {}", err(&output));
        let log = fs::read_to_string(&log).expect("it is there");
        assert!(log.contains(said), "{args:?}: {log:?}");
        let opened = Dump::open(&image).map_err(|error| error.to_string());
        assert_eq!(opened.map(|image| image.program().to_owned()), Ok(good.clone()), "{args:?}");
        fs::remove_file(&image).expect("it can be removed");
    }
}

/// A script whose one operation logs `lines` lines.
fn flood(lines: u32) -> String {
    format!(
        "a = kmem_malloc kmem_map (kmem_map.max-kmem_map.min) NOWAIT\nrepeat {lines}\n\
         on_lowmem kmem_malloc kmem_map (4K*($i+1)) NOWAIT\nend\n\
         on_lowmem kmem_free kmem_map $a 4K\nb = kmem_malloc kmem_map 4K\n\
         assert lowmem_failures == {lines}\n"
    )
}

#[test]
fn the_console_has_every_line_however_many_one_operation_logs_and_however_slow_its_reader_is() {
    let scratch = Scratch::new();
    let script = scratch.file("flood.kmem", flood(2000));
    let is_whole = |log: &str, how: &str| {
        assert_eq!(log.matches("failed: Null").count(), 2000, "{how}");
        assert!(!log.contains("overwritten") && !log.contains("dropped"), "{how}");
    };
    for options in [&["--vcpus", "1"][..], &["--vcpus", "2"], &["--vcpus", "2", "--time", "real"]] {
        let log = scratch.path("log");
        let output = vmkern(&["run", "--console", &log])
            .args(options)
            .arg(&script)
            .output()
            .expect("it starts");
        assert_eq!(status(&output), 0, "{}", err(&output));
        is_whole(&fs::read_to_string(&log).expect("it is there"), &options.join(" "));
    }
    // The ring and the pipe are full long before the reader begins.
    let mut child = vmkern(&["run", "--console", "-", &script])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdout = BufReader::with_capacity(1, child.stdout.take().expect("a pipe"));
    let mut log = String::new();
    for _ in 0..200 {
        stdout.read_line(&mut log).expect("it can be read");
        thread::yield_now();
    }
    stdout.read_to_string(&mut log).expect("it can be read");
    assert!(child.wait().expect("it ends").success());
    is_whole(&log, "a slow reader");
}

#[test]
fn a_console_that_nobody_reads_keeps_no_run_from_its_end() {
    let scratch = Scratch::new();
    let script = scratch.file("flood.kmem", flood(2000));
    let mut child = vmkern(&["run", "--timeout", "10s", "--console", "-", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    assert_eq!(child.wait().expect("it ends").code(), Some(5));
    let mut text = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut text).expect("it is text");
    assert!(text.contains("cannot write the kernel's log"), "{text}");
}
