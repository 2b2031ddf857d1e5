//! Guests of a few bytes: 32-bit code in a PVH ELF file that is built here, so a test controls
//! every instruction of its guest.

use vmkern::abi::ABI_VERSION;
use vmkern::abi::control::{ControlRegion, DOORBELL_PORT, EXIT_PORT, Phase};
use vmkern::abi::describe::HASH;
use vmkern::guest::KernelImage;

/// Where the code lies.
pub const CODE: u32 = 0x10_0000;
/// Where the VMM puts the control region.
pub const CONTROL: u32 = 0x9000;

/// Address of a field of the control region.
macro_rules! control {
    ($($field:tt)+) => {
        u32::try_from(core::mem::offset_of!(ControlRegion, $($field)+))
            .expect("the region is small")
    };
}

/// 32-bit code, instruction by instruction.
#[derive(Default)]
pub struct Code(Vec<u8>);

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends raw bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov dword [address], value`
    pub fn store(self, address: u32, value: u32) -> Self {
        self.bytes(&[0xc7, 0x05]).bytes(&address.to_le_bytes()).bytes(&value.to_le_bytes())
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub fn out(self, port: u16, value: u8) -> Self {
        self.bytes(&[0x66, 0xba]).bytes(&port.to_le_bytes()).bytes(&[0xb0, value, 0xee])
    }

    /// Publishes everything that a ready kernel publishes, and rings the bell.
    pub fn ready(self) -> Self {
        let hash = |shift: u32| u32::try_from(HASH >> shift & 0xffff_ffff).expect("it has 32 bits");
        self.store(CONTROL + control!(guest_abi_version), ABI_VERSION)
            .store(CONTROL + control!(abi_hash), hash(0))
            .store(CONTROL + control!(abi_hash) + 4, hash(32))
            .store(CONTROL + control!(phase), Phase::Ready as u32)
            .out(DOORBELL_PORT, 0)
    }

    /// Stores a word of the control region, by its offset, and rings the bell.
    pub fn control_word(self, offset: u32, value: u32) -> Self {
        self.store(CONTROL + offset, value).out(DOORBELL_PORT, 0)
    }

    /// Exits through the exit port.
    pub fn exit(self, code: u8) -> Self {
        self.out(EXIT_PORT, code)
    }

    /// `jmp $`
    pub fn spin(self) -> Self {
        self.bytes(&[0xeb, 0xfe])
    }

    /// `hlt; jmp $-1`
    pub fn halt(self) -> Self {
        self.bytes(&[0xf4, 0xeb, 0xfd])
    }

    /// `ud2`, which is a triple fault without an IDT.
    pub fn triple_fault(self) -> Self {
        self.bytes(&[0x0f, 0x0b])
    }

    pub fn image(self) -> KernelImage {
        KernelImage::from_bytes(pvh_elf(&self.0, Note::Pvh))
    }
}

/// Whether the ELF has an entry note.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Note {
    Pvh,
    None,
}

/// An ELF with `code` at [`CODE`].
pub fn pvh_elf(code: &[u8], note: Note) -> Vec<u8> {
    const EHDR: u64 = 64;
    const PHDR: u64 = 56;
    let note_bytes: Vec<u8> = match note {
        Note::Pvh => [4u32, 4, 18]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .chain(*b"Xen\0")
            .chain(CODE.to_le_bytes())
            .collect(),
        Note::None => [4u32, 4, 1]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .chain(*b"GNU\0")
            .chain([0; 4])
            .collect(),
    };
    let note_at = EHDR + 2 * PHDR;
    let code_at = note_at + note_bytes.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [u64::from(CODE), EHDR, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, flags: u32, offset: u64, address: u64, size: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            elf.extend(word.to_le_bytes());
        }
    };
    header(1, 7, code_at, CODE.into(), code.len() as u64);
    header(4, 4, note_at, 0, note_bytes.len() as u64);
    elf.extend(note_bytes);
    elf.extend(code);
    elf
}
