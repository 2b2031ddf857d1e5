//! The dump's format: an ELF64 core file for x86_64, with notes of our own.
//!
//! | part | content |
//! |---|---|
//! | ELF header | `ET_CORE`, `EM_X86_64`, little-endian |
//! | program headers | one `PT_NOTE`, then one `PT_LOAD` for each run of RAM |
//! | notes | `CORE` `NT_PRSTATUS` for each CPU; `VMKERN` notes ([`NoteType`]) |
//! | pages | from a page boundary on, each at a file offset that is a multiple of the page size |
//!
//! A `PT_LOAD` has the RAM's physical address in `p_paddr` and its direct-map address in `p_vaddr`;
//! zero pages at its end are left out (`p_memsz` is larger than `p_filesz`). Every page of RAM lies
//! in exactly one of them. A `PT_LOAD` with any other `p_vaddr` repeats such bytes at another
//! virtual address, for debuggers.
//!
//! Words are in the byte order of the host, which is the same as x86_64's.

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::addr::{GuestPhys, KPtr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cpu::Registers;
use crate::cpu::{CpuState, RunState};
use crate::source::Anchors;

/// Version of the notes' format.
pub(super) const FORMAT: u32 = 2;
/// The name in the notes that other tools understand.
pub(super) const CORE: &[u8] = b"CORE";
/// The name in our own.
pub(super) const VMKERN: &[u8] = b"VMKERN";

/// Types of the notes named [`VMKERN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum NoteType {
    /// A [`GuestNote`]: one, and the first of all.
    Guest = 1,
    /// A [`CpuNote`], one for each CPU, in the order of their `NT_PRSTATUS`.
    Cpu = 2,
    /// Which program the guest ran: text.
    Program = 3,
    /// The GNU build ID of the kernel's ELF file.
    BuildId = 4,
}

/// Where everything else begins.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GuestNote {
    /// [`FORMAT`].
    pub format: u32,
    /// The VMM's version of the ABI.
    pub abi_version: u32,
    pub control: u64,
    pub pml4: u64,
    pub roots: u64,
    /// Bytes of RAM.
    pub memory: u64,
    /// What the CPUs require of page-table entries ([`Paging::word`]); 0 in dumps that do not
    /// record it.
    pub paging: u32,
    pub zero: u32,
}

impl GuestNote {
    /// The smallest valid size of the note in bytes: `paging` was added later.
    pub const LEAST: usize = core::mem::offset_of!(Self, paging);

    /// The note with this content. Fields past its end are 0.
    pub fn of(content: &[u8]) -> Option<Self> {
        let mut note = Self::default();
        let known = content.len().min(size_of::<Self>());
        note.as_mut_bytes()[..known].copy_from_slice(&content[..known]);
        (content.len() >= Self::LEAST).then_some(note)
    }

    pub fn anchors(&self) -> Anchors {
        Anchors {
            control: GuestPhys::new(self.control),
            pml4: GuestPhys::new(self.pml4),
            roots: KPtr::new(GuestVirt::new(self.roots)),
        }
    }
}

/// What `NT_PRSTATUS` does not say about a CPU.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CpuNote {
    pub cpu: u32,
    /// 0 running, 1 halted, 2 ended.
    pub state: u32,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// The TSC when the dump was made, or when the CPU ended.
    pub tsc: u64,
}

impl CpuNote {
    pub fn of(state: &CpuState) -> Self {
        let registers = &state.registers;
        let code = match state.state {
            RunState::Running => 0,
            RunState::Halted => 1,
            RunState::Ended => 2,
        };
        Self {
            cpu: state.cpu,
            state: code,
            cr0: registers.cr0,
            cr2: registers.cr2.get(),
            cr3: registers.cr3,
            cr4: registers.cr4,
            efer: registers.efer,
            tsc: state.tsc,
        }
    }

    pub fn state(&self) -> Option<RunState> {
        Some(match self.state {
            0 => RunState::Running,
            1 => RunState::Halted,
            2 => RunState::Ended,
            _ => return None,
        })
    }
}

/// `struct elf_prstatus` of Linux on x86_64. Fields without a meaning for a guest are 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Prstatus {
    /// Signal information and masks.
    signal: [u64; 4],
    pub pid: u32,
    parents: [u32; 3],
    times: [u64; 8],
    /// `struct user_regs_struct`: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi
    /// orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs.
    pub registers: [u64; 27],
    fpvalid: u64,
}

const _: () = assert!(size_of::<Prstatus>() == 336);
const _: () = assert!(core::mem::offset_of!(Prstatus, registers) == 112);

/// Where each of [`Registers::gpr`] stands in [`Prstatus::registers`].
const GPR_PLACES: [usize; 16] = [10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0];
const RIP: usize = 16;
const CS: usize = 17;
const RFLAGS: usize = 18;

impl Prstatus {
    pub fn of(state: &CpuState) -> Self {
        let mut words = [0; 27];
        for (place, value) in GPR_PLACES.into_iter().zip(state.registers.gpr) {
            words[place] = value;
        }
        words[RIP] = state.registers.rip.get();
        words[CS] = state.registers.cs.into();
        words[RFLAGS] = state.registers.rflags;
        // Debuggers identify threads by this number, and 0 is not a thread.
        let pid = state.cpu.saturating_add(1);
        Self { signal: [0; 4], pid, parents: [0; 3], times: [0; 8], registers: words, fpvalid: 0 }
    }

    pub fn registers(&self, note: &CpuNote) -> Registers {
        Registers {
            rip: GuestVirt::new(self.registers[RIP]),
            rflags: self.registers[RFLAGS],
            gpr: GPR_PLACES.map(|place| self.registers[place]),
            cr0: note.cr0,
            cr2: GuestVirt::new(note.cr2),
            cr3: note.cr3,
            cr4: note.cr4,
            efer: note.efer,
            cs: u16::try_from(self.registers[CS] & 0xffff).unwrap_or(0),
        }
    }
}

/// A note: header, name and content, each padded to 4 bytes.
pub(super) fn push_note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    let pad = |notes: &mut Vec<u8>| notes.resize(notes.len().next_multiple_of(4), 0);
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    for word in [length(name.len() + 1), length(content.len()), kind] {
        notes.extend_from_slice(&word.to_le_bytes());
    }
    notes.extend_from_slice(name);
    notes.push(0);
    pad(notes);
    notes.extend_from_slice(content);
    pad(notes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_the_way_through_the_notes() {
        let registers = Registers {
            rip: GuestVirt::new(0xffff_ffff_8010_0000),
            rflags: 0x246,
            gpr: std::array::from_fn(|index| 100 + index as u64),
            cr0: 0x8000_0011,
            cr2: GuestVirt::new(0xdead),
            cr3: 0x13_1000,
            cr4: 0x20,
            efer: 0xd00,
            cs: 0x23,
        };
        let state = CpuState { cpu: 3, state: RunState::Halted, registers, tsc: 7 };
        let (status, note) = (Prstatus::of(&state), CpuNote::of(&state));
        assert_eq!(status.registers(&note), registers);
        assert_eq!(note.state(), Some(RunState::Halted));
        assert_eq!(status.registers[19], registers.rsp().get());
    }
}
