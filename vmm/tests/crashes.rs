//! Every way in which the real kernel can die reaches the host as a record with a symbolized
//! backtrace.

use vmkern::guest::CrashKind;
use vmkern::{Crash, Guest, GuestError, LaunchError, Privilege};

/// The privileges that make sense on this host: both on hardware, CPL3 where CPL0 is emulated.
fn crash(kind: CrashKind) -> Box<Crash> {
    match Guest::builder().crash(kind).privilege(Privilege::Auto).launch() {
        Err(LaunchError::Guest(GuestError::Crashed(crash))) => crash,
        Err(error) => panic!("{kind:?}: {error}"),
        Ok(mut guest) => {
            panic!("{kind:?}: the guest lives: {}", String::from_utf8_lossy(&guest.take_log()))
        }
    }
}

#[test]
fn every_way_to_die_is_reported_with_a_backtrace() {
    for kind in [
        CrashKind::Panic,
        CrashKind::PageFault,
        CrashKind::Trap,
        CrashKind::StackOverflow,
        CrashKind::Nucleus,
    ] {
        let crash = crash(kind);
        println!("--- {kind:?}\n{crash}\n");
        assert_eq!(crash.kind, kind, "{crash}");
        assert!(!crash.message.is_empty(), "{crash}");
        assert!(crash.backtrace.iter().any(|frame| frame.function.is_some()), "{crash}");
        assert_eq!(crash.cpu, 0, "{crash}");
    }
}

#[test]
fn a_panics_backtrace_names_file_and_line() {
    let crash = crash(CrashKind::Panic);
    let placed =
        crash.backtrace.iter().filter(|frame| frame.file.is_some() && frame.line.is_some()).count();
    assert!(placed >= 2, "{crash}");
}
