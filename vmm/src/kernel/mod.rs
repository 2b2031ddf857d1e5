//! Guest kernels: the one that is built into this library, or another one.

pub(crate) mod elf;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::text::name;
use vmkern_abi::addr::GuestPhys;
use vmkern_inspect::ram::HOLE_START;
use vmkern_inspect::symbols::build_id;

use self::elf::Plan;
use crate::input::read_regular;

/// The longest file that is read as a kernel, in bytes. A kernel with full debug information takes
/// a tenth of it.
const IMAGE_MAX: u64 = 256 << 20;

/// Bytes aligned for every ELF structure.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("VMKERN_KERNEL_ELF")));

/// An ELF executable with a PVH entry note, and where it came from.
#[derive(Clone)]
pub struct KernelImage {
    bytes: Bytes,
    origin: Origin,
}

/// The file's content. Clones share it.
#[derive(Clone)]
enum Bytes {
    Embedded(&'static [u8]),
    Shared(Arc<Vec<u8>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Embedded,
    Memory,
    File(PathBuf),
}

impl KernelImage {
    /// The kernel that was built together with this library.
    #[must_use]
    pub fn embedded() -> Self {
        Self { bytes: Bytes::Embedded(&EMBEDDED.0), origin: Origin::Embedded }
    }

    /// An image held in memory.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: Bytes::Shared(Arc::new(bytes)), origin: Origin::Memory }
    }

    /// The image in the file `path`.
    ///
    /// # Errors
    /// [`KernelError`] with [`KernelFault::Unreadable`] when the file cannot be read, is not
    /// a regular file, or is longer than 256 MiB.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        let path = path.as_ref();
        let origin = Origin::File(path.to_path_buf());
        match read_regular(path, IMAGE_MAX) {
            Ok(bytes) => Ok(Self { bytes: Bytes::Shared(Arc::new(bytes)), origin }),
            Err(error) => Err(KernelError {
                image: origin.to_string(),
                fault: KernelFault::Unreadable(error.to_string()),
            }),
        }
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Embedded(bytes) => bytes,
            Bytes::Shared(bytes) => bytes,
        }
    }

    /// The GNU build ID, which distinguishes the image from every other; `None` if it has none.
    #[must_use]
    pub fn build_id(&self) -> Option<Vec<u8>> {
        build_id(self.bytes())
    }

    /// Checks that the image can be booted in a guest with `memory` bytes. A launch checks the
    /// same.
    ///
    /// # Errors
    /// The first rule that is violated.
    pub fn check(&self, memory: u64) -> Result<(), KernelError> {
        self.plan(memory).map(drop)
    }

    /// Where the image is loaded in a guest with `memory` bytes.
    pub(crate) fn plan(&self, memory: u64) -> Result<Plan, KernelError> {
        let limit = GuestPhys::new(memory.min(HOLE_START));
        Plan::of(self.bytes(), limit).map_err(|fault| self.error(fault))
    }

    /// `fault` as an error of this image.
    pub(crate) fn error(&self, fault: KernelFault) -> KernelError {
        KernelError { image: self.origin.to_string(), fault }
    }
}

impl std::fmt::Debug for KernelImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KernelImage({}, {} bytes)", self.origin, self.bytes().len())
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("the built-in kernel image"),
            Self::Memory => f.write_str("the kernel image in memory"),
            Self::File(path) => write!(f, "kernel image `{}`", name(path)),
        }
    }
}

/// A kernel image cannot be booted.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("{image}: {fault}")]
#[non_exhaustive]
pub struct KernelError {
    /// Which image.
    pub image: String,
    /// What is wrong with it.
    pub fault: KernelFault,
}

/// Why a kernel image is not valid.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KernelFault {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It is not a 64-bit little-endian ELF executable, or it is damaged.
    #[error("is not an ELF executable for x86_64: {0}")]
    NotElf(String),
    /// It has no PVH entry.
    #[error(
        "has no PVH entry point; a bootable kernel carries an ELF note of type 18 with the name \
         \"Xen\""
    )]
    NoPvhNote,
    /// Its PVH entry note does not name a valid entry.
    #[error("has a bad PVH entry note: {0}")]
    PvhNote(String),
    /// Its note for vmkern's loader ([`vmkern_abi::entry`]) is not valid.
    #[error("has a bad vmkern entry note: {0}")]
    EntryNote(String),
    /// A program header contradicts itself, the file or another one.
    #[error("program header {index}: {problem}")]
    Segment {
        /// Its number, from 0.
        index: usize,
        /// What is wrong, with the field.
        problem: String,
    },
    /// A segment lies outside the guest's memory.
    #[error(
        "ends at physical address {end:#x}, but must end below {limit:#x} in a guest of this size"
    )]
    DoesNotFit {
        /// First physical address past the image.
        end: u64,
        /// First physical address past the guest's low memory.
        limit: u64,
    },
    /// A segment would overwrite the loader's data in the first MiB.
    #[error(
        "has a segment at physical address {start:#x}, but must start at {minimum:#x} or above"
    )]
    TooLow {
        /// The segment's physical address.
        start: u64,
        /// The lowest address that is allowed.
        minimum: u64,
    },
}

vmkern_inspect::debug_as_printed!(KernelError, KernelFault);

#[cfg(test)]
mod tests {
    use vmkern_abi::addr::GuestVirt;

    use super::*;
    use crate::inspect::{Frame, Symbols};

    #[test]
    fn an_address_at_which_no_code_is_has_a_frame_without_a_name() {
        let symbols = Symbols::of(KernelImage::embedded().bytes());
        for address in [0, 1, 0x100, 0x1000, u64::MAX - 1, u64::MAX].map(GuestVirt::new) {
            let frames = symbols.frames(address);
            let shown: Vec<String> = frames.iter().map(Frame::to_string).collect();
            assert_eq!((frames[0].address, shown), (address, vec![address.to_string()]));
        }
    }

    #[test]
    fn the_kernels_own_functions_have_names_and_lines() {
        let symbols = Symbols::of(KernelImage::embedded().bytes());
        let entry = symbols.address("pvh_entry").expect("the image has an entry");
        assert_eq!(symbols.function(entry.add(1)), Some(("pvh_entry", 1)));
        assert_eq!(symbols.function(GuestVirt::new(8)), None);
    }
}
