use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;

fn go_on() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn write_whole(path: &Path, bytes: &[u8]) {
    let mut output = Destination::of(path)
        .and_then(|to| to.whole(Readers::Owner))
        .unwrap_or_else(|e| panic!("{e}"));
    output.write(bytes, &mut go_on).expect("it can be written");
    output.finish().expect("it can get its name");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it can be read").flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

#[test]
fn a_new_file_is_its_owners_alone_and_one_that_is_replaced_keeps_its_mode() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("image");
    write_whole(&path, b"one");
    assert_eq!(mode(&path), 0o600);
    for kept in [0o644, 0o640, 0o444 | 0o200] {
        fs::set_permissions(&path, Permissions::from_mode(kept)).expect("it is ours");
        write_whole(&path, b"another");
        assert_eq!(
            (mode(&path), fs::read(&path).expect("it can be read")),
            (kept, b"another".to_vec())
        );
    }
    assert_eq!(names(dir.path()), ["image"]);
}

#[test]
fn a_link_to_a_file_stays_and_the_file_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    fs::create_dir(dir.path().join("far")).expect("a directory can be made");
    fs::write(dir.path().join("far/file"), "old").expect("it can be written");
    let link = dir.path().join("link");
    symlink("far/file", &link).expect("a link can be made");
    write_whole(&link, b"new");
    assert_eq!(fs::read_link(&link).expect("it is a link"), Path::new("far/file"));
    assert_eq!(fs::read(dir.path().join("far/file")).expect("it can be read"), b"new");
    let mut log =
        Destination::of(&link).and_then(|to| to.grows(Readers::Umask)).expect("it is a file");
    log.write(b"l", &mut go_on).expect("it can be written");
    assert_eq!(fs::read(&link).expect("it can be read"), b"l", "what was there is gone at once");
    assert_eq!(
        (names(dir.path()), names(&dir.path().join("far"))),
        (vec!["far".into(), "link".into()], vec!["file".into()])
    );
}

#[test]
fn what_is_no_file_and_cannot_take_bytes_is_refused_and_stays() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let at = |name: &str| dir.path().join(name);
    symlink("nowhere", at("dangling")).expect("a link can be made");
    symlink("loop", at("loop")).expect("a link can be made");
    let _socket = UnixListener::bind(at("socket")).expect("a socket can be made");
    assert!(Command::new("mkfifo").arg(at("fifo")).status().expect("there is mkfifo").success());
    let before = names(dir.path());
    for (name, why) in [
        ("dangling", "a symbolic link to `nowhere`, which does not exist"),
        ("loop", "symbolic links"),
        ("socket", "is a socket"),
        ("fifo", "is a FIFO without a reader"),
        ("", "is a directory"),
        ("new/", "no file name"),
        ("no/such", "No such file or directory"),
        ("socket/file", "Not a directory"),
    ] {
        let error = Destination::of(at(name)).expect_err("it is refused").to_string();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(names(dir.path()), before);
}

#[test]
fn a_pipe_gets_zeros_for_holes_and_a_reader_that_leaves_is_no_error() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().expect("there is mkfifo").success());
    let mut options = OpenOptions::new();
    let mut reader =
        options.read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("it can be read");
    let mut output =
        Destination::of(&path).and_then(|to| to.whole(Readers::Owner)).expect("it has a reader");
    output.write(b"a", &mut go_on).expect("there is room");
    output.skip(5000, &mut go_on).expect("there is room");
    output.write(b"z", &mut go_on).expect("there is room");
    let mut got = vec![0xff; 6000];
    let mut len = 0;
    while len < 5002 {
        len += io::Read::read(&mut reader, &mut got[len..]).expect("it was written");
    }
    assert_eq!((len, got[0], got[5001]), (5002, b'a', b'z'));
    assert!(got[1..5001].iter().all(|&byte| byte == 0));
    // The reader no longer reads, and the caller ends the wait.
    let mut asked = 0;
    let mut enough = || {
        asked += 1;
        if asked < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let full = output.write(&vec![1; 1 << 20], &mut enough).expect_err("the pipe is full");
    assert_eq!((full.kind(), asked), (io::ErrorKind::TimedOut, 3));
    drop(output);
    let mut output =
        Destination::of(&path).and_then(|to| to.whole(Readers::Owner)).expect("it has a reader");
    drop(reader);
    output.write(&vec![1; 1 << 20], &mut go_on).expect("output without a reader is dropped");
    output.skip(1 << 20, &mut go_on).expect("output without a reader is dropped");
    output.finish().expect("output without a reader is dropped");
    assert!(io::Result::is_ok(&fs::symlink_metadata(&path).map(|there| assert!(!there.is_file()))));
}

#[test]
fn a_partial_file_that_a_killed_process_left_is_removed_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let left = dir.path().join(".image.Ab12Cd.partial");
    for name in [
        ".image.Ab12Cd.partial",
        ".image.partial",
        ".image.toolong1.partial",
        ".other.Ab12Cd.partial",
    ] {
        fs::write(dir.path().join(name), "left").expect("it can be written");
    }
    let wanted = dir.path().join("image");
    let first =
        Destination::of(&wanted).and_then(|to| to.whole(Readers::Owner)).expect("there is room");
    assert!(!left.exists());
    let second =
        Destination::of(&wanted).and_then(|to| to.whole(Readers::Owner)).expect("there is room");
    assert_eq!(names(dir.path()).len(), 5, "three that are not of this name, and two in use");
    first.finish().expect("it is in use");
    drop(second);
    assert_eq!(
        names(dir.path()),
        [".image.partial", ".image.toolong1.partial", ".other.Ab12Cd.partial", "image"]
    );
}

#[test]
fn a_file_with_a_long_name_can_be_replaced() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("x".repeat(250));
    write_whole(&path, b"1");
    write_whole(&path, b"2");
    assert_eq!(fs::read(&path).expect("it can be read"), b"2");
}
