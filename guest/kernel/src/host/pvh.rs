//! The data from a PVH loader: `hvm_start_info` and its memory map (Xen,
//! `public/arch-x86/hvm/start_info.h`).

use core::slice;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::kva::KERNBASE;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// First physical address past low memory, the part that is mapped at KERNBASE besides the image.
const LOW_MEMORY_END: u64 = 0x10_0000;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist: GuestPhys,
    cmdline: GuestPhys,
    rsdp: GuestPhys,
    memmap: GuestPhys,
    memmap_entries: u32,
    reserved: u32,
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryMapEntry {
    /// First address.
    pub start: GuestPhys,
    /// Bytes.
    pub size: u64,
    kind: u32,
    reserved: u32,
}

impl MemoryMapEntry {
    /// Whether the range is RAM (E820 type 1).
    #[must_use]
    pub const fn is_ram(&self) -> bool {
        self.kind == 1
    }
}

/// The loader's data, found and checked.
#[derive(Clone, Copy, Debug)]
pub struct BootData {
    /// The command line.
    pub command_line: &'static str,
    /// The memory map.
    pub memory_map: &'static [MemoryMapEntry],
}

impl BootData {
    /// Reads `hvm_start_info` at `start_info`. All of its data must lie in low memory.
    ///
    /// # Errors
    /// The reason why it is not valid.
    pub fn read(start_info: GuestPhys) -> Result<Self, &'static str> {
        // SAFETY: low memory is mapped, never managed by the kernel, and nothing writes to the
        // loader's data any more; the types accept any bytes.
        let info = unsafe { low::<StartInfo>(start_info, 1) }
            .ok_or("hvm_start_info is not in low memory")?;
        let info = &info[0];
        if info.magic != MAGIC {
            return Err("hvm_start_info has a wrong magic number");
        }
        if info.version < 1 || info.memmap_entries == 0 {
            return Err("hvm_start_info has no memory map (version 0)");
        }
        let entries = info.memmap_entries as usize;
        // SAFETY: as above.
        let memory_map =
            unsafe { low(info.memmap, entries) }.ok_or("the memory map is not in low memory")?;
        let command_line = if info.cmdline.get() == 0 { "" } else { text(info.cmdline)? };
        Ok(Self { command_line, memory_map })
    }
}

fn text(at: GuestPhys) -> Result<&'static str, &'static str> {
    let room = usize::try_from(LOW_MEMORY_END.saturating_sub(at.get()).min(4096)).unwrap_or(0);
    // SAFETY: as in `BootData::read`.
    let bytes = unsafe { low::<u8>(at, room) }.ok_or("the command line is not in low memory")?;
    let end = bytes.iter().position(|&b| b == 0).ok_or("the command line is not terminated")?;
    str::from_utf8(&bytes[..end]).map_err(|_| "the command line is not UTF-8")
}

/// `count` values of type `T` at a physical address in low memory, or `None` if they are not there.
///
/// # Safety
/// `T` accepts any bytes, and nothing writes to them.
unsafe fn low<T>(at: GuestPhys, count: usize) -> Option<&'static [T]> {
    let bytes = (size_of::<T>() as u64).checked_mul(count as u64)?;
    let end = at.checked_add(bytes)?;
    let pointer = (KERNBASE.get() + at.get()) as *const T;
    (end.get() <= LOW_MEMORY_END && pointer.is_aligned()).then(|| {
        // SAFETY: mapped and aligned, as just checked; the rest by this function's contract.
        unsafe { slice::from_raw_parts(pointer, count) }
    })
}
