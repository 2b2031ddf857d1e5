//! The size of kmem_map (`kmeminit` of `kern_malloc.c`).

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::kmem::MapId;

use crate::machine::Machine;
use crate::vm::Vm;

/// Least size before the mbuf clusters are added (`VM_KMEM_SIZE`).
const VM_KMEM_SIZE: u64 = 12 << 20;
/// `VM_KMEM_SIZE_SCALE`.
const VM_KMEM_SIZE_SCALE: u64 = 3;
/// `VM_KMEM_SIZE_MAX` on amd64.
const VM_KMEM_SIZE_MAX: u64 = 400 << 20;

/// Bytes of kmem_map for a machine of `pages` pages.
#[must_use]
pub fn vm_kmem_size(pages: u64, tunables: &Tunables) -> u64 {
    let maxusers =
        tunables.kern_maxusers.filter(|&n| n != 0).unwrap_or_else(|| (pages / 512).clamp(32, 384));
    let nmbclusters = tunables
        .kern_ipc_nmbclusters
        .unwrap_or_else(|| maxusers.saturating_mul(64).saturating_add(1024));
    let mut size = nmbclusters.saturating_mul(PAGE_SIZE).saturating_add(VM_KMEM_SIZE);
    let scale = tunables.vm_kmem_size_scale.unwrap_or(VM_KMEM_SIZE_SCALE);
    if let Some(scaled) = pages.checked_div(scale).filter(|&scaled| scaled > size / PAGE_SIZE) {
        size = scaled * PAGE_SIZE;
    }
    size = size.max(tunables.vm_kmem_size_min.unwrap_or(0));
    let max = tunables.vm_kmem_size_max.unwrap_or(VM_KMEM_SIZE_MAX);
    if max > 0 && size >= max {
        size = max;
    }
    size = tunables.vm_kmem_size.unwrap_or(size);
    if (size / 2) / PAGE_SIZE > pages { 2 * pages * PAGE_SIZE } else { size }
}

impl<M: Machine> Vm<M> {
    /// Makes kmem_map, a system submap of kernel_map (`kmeminit`). The page tables of its range
    /// come with it, so that `kmem_malloc` there needs pages for nothing but the memory itself.
    pub(crate) fn kmeminit(&self, tunables: &Tunables) {
        let size = vm_kmem_size(self.cnt().v_page_count.get(), tunables);
        let kmem_map = self.kmem_suballoc(self.kernel_map(), size);
        self.get(kmem_map).system_map.set(1);
        self.named_map(MapId::KMEM).set(kmem_map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn default_size(mib: u64) -> u64 {
        vm_kmem_size(mib * 256, &Tunables::default())
    }

    #[test]
    fn kmem_map_has_the_sizes_of_freebsd() {
        for (mib, kib) in [
            (16, 24 << 10),
            (64, 24 << 10),
            (128, 43_688),
            (256, 87_380),
            (512, 174_760),
            (1024, 349_524),
            (2048, 400 << 10),
            (65_536, 400 << 10),
        ] {
            assert_eq!(default_size(mib), kib << 10, "{mib} MiB");
        }
        assert_eq!(default_size(8), 16 * MIB, "twice the memory at most");
    }

    #[test]
    fn every_tunable_of_the_size_is_obeyed() {
        let size = |name: &str, value| {
            let mut tunables = Tunables::default();
            tunables.set(name, value).expect("the tunable exists");
            vm_kmem_size(64 * 256, &tunables)
        };
        assert_eq!(size("vm.kmem_size", 5 * MIB), 5 * MIB);
        assert_eq!(size("vm.kmem_size", 500 * MIB), 128 * MIB);
        assert_eq!(size("vm.kmem_size_min", 30 * MIB), 30 * MIB);
        assert_eq!(size("vm.kmem_size_max", 20 * MIB), 20 * MIB);
        assert_eq!(size("vm.kmem_size_max", 0), 24 * MIB);
        assert_eq!(size("vm.kmem_size_scale", 2), 32 * MIB);
        assert_eq!(size("vm.kmem_size_scale", 0), 24 * MIB);
        assert_eq!(size("kern.maxusers", 64), 12 * MIB + (1024 + 64 * 64) * PAGE_SIZE);
        assert_eq!(size("kern.ipc.nmbclusters", 0), 64 * MIB / 3 / PAGE_SIZE * PAGE_SIZE);
        assert_eq!(size("kern.ipc.nmbclusters", (1 << 31) - 1), 128 * MIB);
    }
}
