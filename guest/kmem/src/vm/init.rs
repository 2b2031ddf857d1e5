//! The submaps of kernel_map that are created at boot: kmem_map (`kmeminit` of `kern_malloc.c`),
//! and the others (`vm_ksubmap_init` of `vm_init.c`, `kern_vfs_bio_buffer_alloc` of `vfs_bio.c`).
//!
//! | map | parent | bytes | locked by |
//! |---|---|---|---|
//! | clean_map | kernel_map | `nbuf * BKVASIZE + nswbuf * MAXPHYS` | sx |
//! | buffer_map | clean_map | `nbuf * BKVASIZE` | mutex |
//! | pager_map | clean_map | `nswbuf * MAXPHYS` | mutex |
//! | exec_map | kernel_map | `exec_map_entries * (ARG_MAX + 3 pages)` | sx |
//! | pipe_map | kernel_map | `maxpipekva` | sx |
//!
//! In this order, behind kmem_map. FreeBSD allocates tables for timers and buffers in between,
//! which do not exist here.

use vmkern_abi::addr::{KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::kmem::MapId;
use vmkern_abi::layout::VmMap;

use super::{Vm, VmMachine};

/// Bytes of address space of a buffer (`BKVASIZE`).
const BKVASIZE: u64 = 16 << 10;
/// Bytes of address space of a transfer (`MAXPHYS`).
const MAXPHYS: u64 = 128 << 10;
/// Most bytes of buffer_map (`VM_BCACHE_SIZE_MAX` on amd64).
const VM_BCACHE_SIZE_MAX: u64 = 400 << 20;
/// Buffers for the arguments of a new process (`exec_map_entries`).
const EXEC_MAP_ENTRIES: u64 = 16;
/// Bytes of arguments (`ARG_MAX`).
const ARG_MAX: u64 = 262_144;
/// Least bytes of pipe_map.
const PIPE_KVA_MIN: u64 = 512 << 10;

/// Least size before the mbuf clusters are added (`VM_KMEM_SIZE`).
const VM_KMEM_SIZE: u64 = 12 << 20;
/// `VM_KMEM_SIZE_SCALE`.
const VM_KMEM_SIZE_SCALE: u64 = 3;
/// `VM_KMEM_SIZE_MAX` on amd64.
const VM_KMEM_SIZE_MAX: u64 = 400 << 20;

/// Sizes of the submaps behind kmem_map, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    buffer_map: u64,
    pager_map: u64,
    exec_map: u64,
    pipe_map: u64,
}

/// The sizes for a machine with `pages` pages of usable memory (`physmem`), with kernel_map of
/// `kernel` and kmem_map of `kmem` bytes.
fn sizes(pages: u64, kernel: u64, kmem: u64, tunables: &Tunables) -> Sizes {
    let kib = pages.min(kernel / PAGE_SIZE) * (PAGE_SIZE / 1024);
    // Parts of memory: one in 64 up to 64 MiB, one in 160 of the rest.
    let factor = 4 * BKVASIZE / 1024;
    let nbuf = tunables.kern_nbuf.filter(|&n| n != 0).unwrap_or_else(|| {
        let low = (kib.saturating_sub(4096) / factor).min(65536 / factor);
        let high = kib.saturating_sub(65536) * 2 / (factor * 5);
        let nbuf = 50 + low + high;
        match tunables.kern_maxbcache.unwrap_or(VM_BCACHE_SIZE_MAX) {
            0 => nbuf,
            max => nbuf.min(max / BKVASIZE),
        }
    });
    // At most half of kernel_map, as in FreeBSD of later years.
    let nbuf = nbuf.min(kernel / (BKVASIZE * 2));
    let nswbuf =
        tunables.kern_nswbuf.filter(|&n| n != 0).unwrap_or_else(|| (nbuf / 4).clamp(16, 256));
    let exec_map_entries = tunables.vm_exec_map_entries.unwrap_or(EXEC_MAP_ENTRIES);
    let pipe = tunables
        .kern_ipc_maxpipekva
        .unwrap_or_else(|| (kmem / PAGE_SIZE / 20 * PAGE_SIZE).max(PIPE_KVA_MIN));
    Sizes {
        buffer_map: nbuf * BKVASIZE,
        pager_map: nswbuf.saturating_mul(MAXPHYS),
        exec_map: exec_map_entries.saturating_mul(ARG_MAX + 3 * PAGE_SIZE),
        pipe_map: pipe,
    }
}

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

impl<M: VmMachine> Vm<M> {
    /// Makes kmem_map, a system submap of kernel_map (`kmeminit`). The page tables of its range are
    /// allocated with it, so `kmem_malloc` there needs pages only for the memory itself.
    pub(crate) fn kmeminit(&self, tunables: &Tunables) {
        let size = vm_kmem_size(self.cnt().v_page_count.get(), tunables);
        let kmem_map = self.kmem_suballoc(self.kernel_map(), size);
        self.get(kmem_map).system_map.raise();
        self.named_map(MapId::KMEM).set(kmem_map);
    }

    /// Makes the submaps (`vm_ksubmap_init`), for `physmem` pages of usable memory. They are more
    /// than the managed pages, because the page array takes some. Panics when kernel_map has no
    /// room for them, or memory for their page tables is short.
    pub(crate) fn vm_ksubmap_init(&self, physmem: u64, tunables: &Tunables) {
        let length =
            |map: KPtr<VmMap>| self.get(map).max_offset().since(self.get(map).min_offset());
        let kernel_map = self.kernel_map();
        let sizes = sizes(physmem, length(kernel_map), length(self.kmem_map()), tunables);
        let state = self.state();
        let name = |id: MapId, map| self.named_map(id).set(map);

        let clean_map =
            self.kmem_suballoc(kernel_map, sizes.buffer_map.saturating_add(sizes.pager_map));
        state.clean_map.set(clean_map);
        let buffer_map = self.kmem_suballoc(clean_map, sizes.buffer_map);
        self.get(buffer_map).system_map.raise();
        name(MapId::BUFFER, buffer_map);
        let pager_map = self.kmem_suballoc(clean_map, sizes.pager_map);
        self.get(pager_map).system_map.raise();
        state.pager_map.set(pager_map);
        name(MapId::EXEC, self.kmem_suballoc(kernel_map, sizes.exec_map));
        name(MapId::PIPE, self.kmem_suballoc(kernel_map, sizes.pipe_map));
    }
}

#[cfg(test)]
mod tests {
    use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn of(mib: u64, tunables: &Tunables) -> Sizes {
        let kernel = VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS);
        sizes(mib * 256, kernel, vm_kmem_size(mib * 256, tunables), tunables)
    }

    #[test]
    fn buffer_map_and_pager_map_have_the_sizes_of_freebsd() {
        for (mib, nbuf, nswbuf) in [
            (4, 50, 16),
            (16, 242, 60),
            (64, 1010, 252),
            (256, 2302, 256),
            (1024, 7218, 256),
            (65_536, 25_600, 256),
        ] {
            let sizes = of(mib, &Tunables::default());
            assert_eq!(
                (sizes.buffer_map, sizes.pager_map),
                (nbuf * BKVASIZE, nswbuf * MAXPHYS),
                "{mib} MiB"
            );
        }
    }

    #[test]
    fn exec_map_holds_16_argument_buffers_and_pipe_map_a_twentieth_of_kmem_map() {
        assert_eq!(of(64, &Tunables::default()).exec_map, 4_390_912);
        assert_eq!(of(64, &Tunables::default()).pipe_map, 24 * MIB / 4096 / 20 * 4096);
        assert_eq!(of(4, &Tunables::default()).pipe_map, 512 << 10);
        assert_eq!(of(2048, &Tunables::default()).pipe_map, 20 * MIB);
    }

    #[test]
    fn nbuf_never_takes_more_than_half_of_kernel_map() {
        let kernel = VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS);
        for nbuf in [1 << 24, 1 << 30, (1 << 31) - 1] {
            let tunables = Tunables { kern_nbuf: Some(nbuf), ..Tunables::default() };
            assert_eq!(
                of(64, &tunables).buffer_map,
                kernel / 2 / BKVASIZE * BKVASIZE,
                "kern.nbuf {nbuf}"
            );
        }
        let most = Tunables { kern_nbuf: Some(kernel / 2 / BKVASIZE), ..Tunables::default() };
        assert_eq!(of(64, &most).buffer_map, kernel / 2 / BKVASIZE * BKVASIZE);
    }

    #[test]
    fn every_tunable_of_the_sizes_is_obeyed() {
        let with = |name: &str, value| {
            let mut tunables = Tunables::default();
            tunables.set(name, value).expect("the tunable exists");
            of(256, &tunables)
        };
        assert_eq!(
            with("kern.nbuf", 80),
            Sizes { buffer_map: 80 * BKVASIZE, pager_map: 20 * MAXPHYS, ..with("kern.nbuf", 0) }
        );
        assert_eq!(with("kern.nswbuf", 17).pager_map, 17 * MAXPHYS);
        assert_eq!(with("kern.maxbcache", 16 * MIB).buffer_map, 16 * MIB);
        assert_eq!(with("kern.maxbcache", 0).buffer_map, 2302 * BKVASIZE);
        assert_eq!(with("vm.exec_map_entries", 3).exec_map, 3 * 274_432);
        assert_eq!(with("kern.ipc.maxpipekva", 5).pipe_map, 5);
    }

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
