//! The number of shadow pages that KVM may keep for a guest.
//!
//! A KVM with shadow page tables (no EPT or NPT) keeps a page of its own for each guest table that
//! it has followed, and for each 2 MiB that the guest maps by one entry, because it maps them by
//! pages of the host. By default it keeps one for every fifty pages of the guest, at least 64, and
//! evicts the oldest when it needs another. With that, a guest of 8 MiB with 64 CPUs never boots:
//! each CPU has a root of its own, and they evict each other; sparse page tables thrash in the same
//! way. So KVM may keep as many as can be useful:
//!
//! - one for each page of the guest, because each may be a table. The cost for the host is bounded
//!   by the guest's tables: a shadow page is created when its table is first walked, so a guest
//!   with few tables never comes near the limit;
//! - [`PER_CPU`] for each CPU: a table that several CPUs use is shadowed once, but the modes in
//!   which a CPU runs before it uses the kernel's own tables (no paging, 32 bits) have their own
//!   roots, and their own shadow pages at each level below.
//!
//! The call itself takes a microsecond. It sets a limit and allocates nothing.

use kvm_ioctls::VmFd;
use vmkern_abi::addr::PAGE_SIZE;
use vmm_sys_util::ioctl::ioctl_with_val;

use super::KvmError;
use super::ioctl::{ioctl, number};

/// `KVM_SET_NR_MMU_PAGES`, `_IO(0xae, 0x44)` (`linux/kvm.h`). kvm-ioctls does not have it.
const KVM_SET_NR_MMU_PAGES: libc::c_ulong = 0xae44;

/// A root and three levels below it, once for the tables in long mode and once for the modes
/// before.
const PER_CPU: u64 = 8;

/// How many shadow pages a guest with `memory` bytes and `vcpus` CPUs may have.
fn enough(memory: u64, vcpus: u32) -> u32 {
    let pages = memory / PAGE_SIZE + PER_CPU * u64::from(vcpus);
    u32::try_from(pages).unwrap_or(u32::MAX)
}

/// Lets KVM keep all shadow pages that a guest with `memory` bytes and `vcpus` CPUs can use.
pub(super) fn allow_all(vm: &VmFd, memory: u64, vcpus: u32) -> Result<(), KvmError> {
    let pages = enough(memory, vcpus);
    ioctl(format!("KVM_SET_NR_MMU_PAGES of {pages}"), || {
        // SAFETY: the request takes a number and touches no memory of this process.
        let answer = unsafe { ioctl_with_val(vm, KVM_SET_NR_MMU_PAGES, pages.into()) };
        number(answer).map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_may_be_a_table_and_every_cpu_has_roots_of_its_own() {
        assert_eq!(enough(8 << 20, 64), 2048 + 512);
        assert_eq!(enough(64 << 30, 1), (16 << 20) + 8);
        assert_eq!(enough(u64::MAX, 64), u32::MAX);
    }
}
