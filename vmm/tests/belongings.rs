//! A guest without further devices has what it needs and no more: what a device needs exists from
//! its first use on. One test in a process of its own, because it counts what the process has.

use vmkern::{Guest, Op, ThreadId};

/// Open files.
fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs is mounted").count()
}

/// The names of this program's threads. The test harness and KVM have threads here as well.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs is mounted");
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.flatten().filter_map(name).map(|name| name.trim_end().to_owned());
    let mut ours: Vec<String> = names.filter(|name| name.starts_with("vmkern-")).collect();
    ours.sort_unstable();
    ours
}

#[test]
fn a_guest_without_further_devices_has_no_event_line_or_thread_for_them() {
    drop(Guest::builder().launch().expect("this host can run guests"));
    let before = files();
    for vcpus in [1, 2] {
        let mut guest = Guest::builder().vcpus(vcpus).launch().expect("this host can run guests");
        guest.call(ThreadId::MAIN, Op::Nop).expect("it lives");
        let names: Vec<String> = (0..vcpus).map(|id| format!("vmkern-vcpu{id}")).collect();
        assert_eq!(threads(), names);
        // The device, the VM, the memory, the bell, and each vCPU.
        assert_eq!(files() - before, 4 + names.len());
    }
}
