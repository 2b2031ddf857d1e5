//! A guest leaves nothing behind. One test in its own process, because it counts the process's
//! resources.

mod tiny;

use std::time::Duration;

use tiny::{Code, Note, pvh_elf};
use vmkern::abi::control::{ControlRegion, ExitCode};
use vmkern::doctor::DoctorReport;
use vmkern::guest::KernelImage;
use vmkern::{Guest, Op, ThreadId};

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).expect("procfs is mounted").count()
}

/// Open files, threads, and mappings of guest RAM.
fn belongings() -> (usize, usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs is mounted");
    let ram = maps
        .lines()
        .filter(|line| line.contains("vmkern-guest-ram") || line.contains("kvm"))
        .count();
    (count("/proc/self/fd"), count("/proc/self/task"), ram)
}

fn every_way_to_end_a_guest() {
    let tiny = |code: Code| {
        Guest::builder().memory(8 << 20).timeout(Duration::from_millis(50)).kernel(code.image())
    };
    drop(tiny(Code::new().ready().halt()).launch().expect("it says that it is ready"));
    drop(tiny(Code::new().ready().spin()).launch().expect("it says that it is ready"));
    let mut guest = tiny(Code::new().ready().spin()).launch().expect("it says that it is ready");
    guest.submit(ThreadId::MAIN, Op::Nop).expect("the ring is empty");
    drop(guest);
    let mut guest = tiny(Code::new().ready().spin()).launch().expect("it says that it is ready");
    guest.call(ThreadId::MAIN, Op::Nop).expect_err("the guest does not answer");
    drop(guest);
    tiny(Code::new().spin()).launch().expect_err("it never becomes ready");
    tiny(Code::new().triple_fault()).launch().expect_err("it never becomes ready");
    tiny(Code::new().exit(ExitCode::Success as u8)).run_selftest().expect("it leaves");
    let no_kernel = KernelImage::from_bytes(pvh_elf(&[0xf4], Note::None));
    Guest::builder().kernel(no_kernel).launch().expect_err("it has no entry");
    let tail = u32::try_from(core::mem::offset_of!(ControlRegion, responses))
        .expect("the region is small");
    let mut guest = tiny(Code::new().ready().control_word(tail, u32::MAX).spin())
        .launch()
        .expect("it says that it is ready");
    guest.call(ThreadId::MAIN, Op::Nop).expect_err("its ring is damaged");
    // The doctor's guest has a device with a thread, an event and an interrupt line.
    let report = DoctorReport::examine();
    let served = report.checks.iter().find(|check| check.name == "serve a device");
    assert!(served.is_some_and(|check| check.remedy.is_none()), "{report}");
}

#[test]
fn a_guest_that_is_gone_leaves_no_file_thread_or_mapping() {
    every_way_to_end_a_guest();
    let before = belongings();
    for _ in 0..3 {
        every_way_to_end_a_guest();
    }
    assert_eq!(belongings(), before);
}
