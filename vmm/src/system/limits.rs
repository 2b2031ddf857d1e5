//! The meaning of the host's errors: which limit was reached, its current value, and how to raise
//! it.

/// The name of a vCPU's creation in errors.
pub(crate) const CREATE_VCPU: &str = "KVM_CREATE_VCPU";

/// Whether `errno` reports a shortage that may end by itself when others release resources.
pub(crate) fn is_shortage(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM)
}

/// What would help after `operation` has failed with `errno`.
pub(crate) fn remedy(operation: &str, errno: i32) -> String {
    // 1. Limits on numbers: files, threads.
    match errno {
        libc::EMFILE => format!(
            "This process may not open more files ({}): raise the limit with `ulimit -n`, or ask \
             for fewer vCPUs or jobs.",
            limit("RLIMIT_NOFILE", libc::RLIMIT_NOFILE)
        ),
        libc::ENFILE => {
            "All programs together may not open more files: raise the limit with `sudo sysctl \
             fs.file-max=...`, or end programs."
                .to_owned()
        }
        libc::EAGAIN => format!(
            "The host allows no more threads for this user ({}, pids.max of the control group, \
             kernel.threads-max): raise the limit with `ulimit -u`, or end programs.",
            limit("RLIMIT_NPROC", libc::RLIMIT_NPROC)
        ),
        // 2. Limits on sizes: address space, files.
        libc::ENOMEM => format!(
            "The host is out of memory, or this process may not have more ({}, memory.max of the \
             control group, vm.max_map_count): raise the limit with `ulimit -v`, or ask for less \
             memory or fewer vCPUs.",
            limit("RLIMIT_AS", libc::RLIMIT_AS)
        ),
        libc::EFBIG => format!(
            "Guest RAM is a file in memory, and this process may not make one so large ({}): raise \
             the limit with `ulimit -f`, or ask for less memory.",
            limit("RLIMIT_FSIZE", libc::RLIMIT_FSIZE)
        ),
        // 3. KVM's own limits, and the rest.
        libc::EINVAL | libc::EEXIST if operation.starts_with(CREATE_VCPU) => {
            "This host's KVM does not support so many vCPUs (KVM_CAP_MAX_VCPUS): ask for \
             fewer."
                .to_owned()
        }
        _ => {
            "`vmkern doctor` tries everything that guests need; see `dmesg | grep -i kvm` for the \
             reason."
                .to_owned()
        }
    }
}

/// This process's limit of `resource`; `None` if there is none.
pub(crate) fn current(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure lives through the call, which writes nothing else. If it fails, no
    // limit is known.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn limit(name: &str, resource: libc::__rlimit_resource_t) -> String {
    current(resource)
        .map_or_else(|| format!("{name} is unlimited"), |value| format!("{name} is {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_with_the_way_to_raise_it() {
        let cases = [
            (libc::EMFILE, "RLIMIT_NOFILE", "ulimit -n"),
            (libc::ENFILE, "fs.file-max", "sysctl"),
            (libc::EAGAIN, "RLIMIT_NPROC", "ulimit -u"),
            (libc::ENOMEM, "RLIMIT_AS", "ulimit -v"),
            (libc::EFBIG, "RLIMIT_FSIZE", "ulimit -f"),
        ];
        for (errno, name, way) in cases {
            let text = remedy("KVM_CREATE_VCPU 3", errno);
            assert!(text.contains(name) && text.contains(way), "{text}");
        }
        let text = remedy("KVM_CREATE_VCPU 3", libc::EINVAL);
        assert!(text.contains("KVM_CAP_MAX_VCPUS"), "{text}");
        assert!(!remedy("KVM_SET_SREGS", libc::EINVAL).contains("KVM_CAP_MAX_VCPUS"));
        assert!(remedy("KVM_SET_SREGS", libc::EIO).contains("vmkern doctor"));
    }

    #[test]
    fn a_limit_stands_where_the_system_says() {
        let files = current(libc::RLIMIT_NOFILE).expect("files are limited on every Linux");
        assert!(remedy("eventfd", libc::EMFILE).contains(&format!("RLIMIT_NOFILE is {files}")));
    }
}
