//! Checks that kernel and host interpret the same bytes in the same way.
//!
//! The kernel publishes a version, a hash over the description of all its structures, and the place
//! of that description ([`vmkern_abi::describe`]). If the hashes are equal, nothing else is
//! compared. Otherwise the kernel's own description is read and compared, so the error says which
//! fields of which structures differ. The description is not trusted, like everything else: it is
//! text of bounded length, and the error says what of it cannot be read.

use std::collections::BTreeMap;
use std::fmt;

use vmkern_abi::addr::GuestPhys;
use vmkern_abi::control::{CONTROL_MAGIC, ControlRegion};
use vmkern_abi::{ABI_VERSION, describe};

use crate::ram::NotRam;
use crate::source::Source;
use crate::text::one_line;

/// The longest description that is read.
const TEXT_MAX: u64 = 1 << 20;
/// The most differences that are listed.
const TOLD_MAX: usize = 40;

/// The kernel's structures differ from this host's.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AbiMismatch {
    /// The kernel's version.
    pub guest_version: u32,
    /// The hash of the kernel's description.
    pub guest_hash: u64,
    /// The differences, one structure or field each, as far as the kernel's description could be
    /// read.
    pub differences: Vec<String>,
    /// Why the kernel's description could not be read.
    pub unreadable: Option<String>,
}

crate::debug_as_printed!(AbiMismatch);

impl std::error::Error for AbiMismatch {}

impl fmt::Display for AbiMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest_version, guest_hash, differences, unreadable } = self;
        write!(
            f,
            "the kernel speaks version {guest_version} of the ABI with structures \
             {guest_hash:016x}, this host version {ABI_VERSION} with structures {:016x}",
            describe::HASH
        )?;
        if let Some(why) = unreadable {
            return write!(f, "; the differences are unknown: {why}");
        }
        for difference in differences.iter().take(TOLD_MAX) {
            write!(f, "\n  {difference}")?;
        }
        match differences.len().saturating_sub(TOLD_MAX) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// What the kernel publishes about its ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Published {
    version: u32,
    hash: u64,
    description: GuestPhys,
    len: u64,
}

impl Published {
    fn read(source: &dyn Source) -> Result<Option<Self>, NotRam> {
        let control = source.anchors().control;
        let word = |offset: usize| {
            let at = control.checked_add(offset as u64).unwrap_or(GuestPhys::new(u64::MAX));
            source.load(at)
        };
        macro_rules! at {
            ($field:ident) => {
                core::mem::offset_of!(ControlRegion, $field)
            };
        }
        if word(at!(magic))? != CONTROL_MAGIC {
            return Ok(None);
        }
        // One word holds two versions of 32 bits, the kernel's in the high half.
        let versions = word(at!(host_abi_version))?;
        let [.., a, b, c, d] = versions.to_le_bytes();
        Ok(Some(Self {
            version: u32::from_le_bytes([a, b, c, d]),
            hash: word(at!(abi_hash))?,
            description: GuestPhys::new(word(at!(description))?),
            len: word(at!(description_len))?,
        }))
    }
}

/// Whether a kernel has published what its structures look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It has, and they are the same as this host's.
    Agreed,
    /// It has not published anything yet: there is nothing to inspect either.
    Silent,
}

/// Compares the kernel's ABI with this host's.
///
/// # Errors
/// [`AbiMismatch`] when they differ.
pub fn shake(source: &dyn Source) -> Result<Handshake, Box<AbiMismatch>> {
    let Ok(Some(published)) = Published::read(source) else { return Ok(Handshake::Silent) };
    let Published { version, hash, .. } = published;
    match (version, hash) {
        (ABI_VERSION, describe::HASH) => Ok(Handshake::Agreed),
        (0, 0) => Ok(Handshake::Silent),
        _ => Err(Box::new(mismatch(source, &published))),
    }
}

fn mismatch(source: &dyn Source, published: &Published) -> AbiMismatch {
    let read = description(source, published).and_then(|text| Ok((structures(&text)?, ours()?)));
    let (differences, unreadable) = match read {
        Ok((theirs, ours)) => (differences(&theirs, &ours), None),
        Err(why) => (Vec::new(), Some(why)),
    };
    AbiMismatch {
        guest_version: published.version,
        guest_hash: published.hash,
        differences,
        unreadable,
    }
}

fn description(source: &dyn Source, published: &Published) -> Result<String, String> {
    let Published { description, len, hash, .. } = *published;
    if len == 0 || len > TEXT_MAX {
        return Err(format!("its description has a length of {len} bytes"));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|error| error.to_string())?];
    source
        .read(description, &mut bytes)
        .map_err(|error| format!("its description cannot be read: {error}"))?;
    if describe::hash(&bytes) != hash {
        return Err(format!("its description at {description} does not have that hash"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| format!("its description is not text: {error}"))?;
    Ok(text.lines().map(|line| one_line(line.as_bytes()) + "\n").collect())
}

/// A field: offset, size, kind.
type Place = (u64, u64, String);

/// A structure: its size and its fields by name.
type Shape = (u64, BTreeMap<String, Place>);

fn ours() -> Result<BTreeMap<String, Shape>, String> {
    let text = core::str::from_utf8(&describe::TEXT).map_err(|error| error.to_string())?;
    structures(text)
}

/// Reads a description.
fn structures(text: &str) -> Result<BTreeMap<String, Shape>, String> {
    let mut structures: BTreeMap<String, Shape> = BTreeMap::new();
    let mut current = None;
    let wrong = |number: usize| format!("line {} of its description makes no sense", number + 1);
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let parse = |word: &str| word.parse::<u64>().map_err(|_| wrong(number));
        match (words.as_slice(), line.starts_with(' ')) {
            (&["vmkern", "abi", _], false) if number == 0 => {}
            (&[name, size], false) => {
                structures.insert(name.to_owned(), (parse(size)?, BTreeMap::new()));
                current = Some(name.to_owned());
            }
            (&[name, offset, size, kind], true) => {
                let shape = current
                    .as_ref()
                    .and_then(|name| structures.get_mut(name))
                    .ok_or_else(|| wrong(number))?;
                shape.1.insert(name.to_owned(), (parse(offset)?, parse(size)?, kind.to_owned()));
            }
            _ => return Err(wrong(number)),
        }
    }
    Ok(structures)
}

fn differences(theirs: &BTreeMap<String, Shape>, ours: &BTreeMap<String, Shape>) -> Vec<String> {
    // 1. The kernel's structures: compare sizes and fields with this host's.
    let mut told = Vec::new();
    for (name, (size, fields)) in theirs {
        let Some((our_size, our_fields)) = ours.get(name) else {
            told.push(format!("{name}: the kernel has it, this host does not"));
            continue;
        };
        if size != our_size {
            told.push(format!("{name}: {size} bytes in the kernel, {our_size} here"));
        }
        for (field, place) in fields {
            match our_fields.get(field) {
                None => told
                    .push(format!("{name}.{field}: {} in the kernel, nothing here", show(place))),
                Some(ours) if ours != place => {
                    told.push(format!(
                        "{name}.{field}: {} in the kernel, {} here",
                        show(place),
                        show(ours)
                    ));
                }
                Some(_) => {}
            }
        }
        // 2. Fields that only this host has.
        for (field, place) in our_fields.iter().filter(|(field, _)| !fields.contains_key(*field)) {
            told.push(format!("{name}.{field}: nothing in the kernel, {} here", show(place)));
        }
    }
    // 3. Structures that only this host has.
    for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
        told.push(format!("{name}: this host has it, the kernel does not"));
    }
    told
}

fn show((offset, size, kind): &Place) -> String {
    format!("{kind} at {offset} of {size} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestRam, mapped_ram};

    const TEXT_AT: GuestPhys = GuestPhys::new(0x20_0000);

    /// RAM with a control region at 0, in which a kernel describes itself with `text`.
    fn kernel(version: u32, text: &str) -> TestRam {
        let ram = mapped_ram();
        let put = |at: usize, bytes: &[u8]| {
            ram.write(GuestPhys::new(at as u64), bytes).expect("it is RAM")
        };
        put(core::mem::offset_of!(ControlRegion, magic), &CONTROL_MAGIC.to_le_bytes());
        put(core::mem::offset_of!(ControlRegion, guest_abi_version), &version.to_le_bytes());
        put(
            core::mem::offset_of!(ControlRegion, abi_hash),
            &describe::hash(text.as_bytes()).to_le_bytes(),
        );
        put(core::mem::offset_of!(ControlRegion, description), &TEXT_AT.get().to_le_bytes());
        put(
            core::mem::offset_of!(ControlRegion, description_len),
            &(text.len() as u64).to_le_bytes(),
        );
        ram.write(TEXT_AT, text.as_bytes()).expect("it is RAM");
        ram
    }

    fn good() -> String {
        String::from_utf8(describe::TEXT.to_vec()).expect("it is text")
    }

    #[test]
    fn a_kernel_with_the_same_description_is_understood() {
        assert_eq!(shake(&kernel(ABI_VERSION, &good())), Ok(Handshake::Agreed));
        assert_eq!(shake(&mapped_ram()), Ok(Handshake::Silent));
    }

    #[test]
    fn a_kernel_with_another_layout_is_refused_field_by_field() {
        let text = good()
            .replace(" wchan 48 8 virt\n", " wchan 56 8 virt\n")
            .replace(" timestamp ", " stamp ")
            .replace("SleepQueue 64\n", "SleepQueue 72\n")
            .replace("Callout ", "Timeout ");
        let error =
            shake(&kernel(ABI_VERSION, &text)).expect_err("its structures are others").to_string();
        for line in [
            "Thread.wchan: virt at 56 of 8 bytes in the kernel, virt at 48 of 8 bytes here",
            "in the kernel, nothing here",
            "VmMap.timestamp: nothing in the kernel",
            "SleepQueue: 72 bytes in the kernel, 64 here",
            "Callout: this host has it, the kernel does not",
            "Timeout: the kernel has it, this host does not",
        ] {
            assert!(error.contains(line), "`{line}` is not in:\n{error}");
        }
        assert!(!error.contains("VmPage"), "{error}");
    }

    #[test]
    fn a_kernel_of_another_version_is_refused_although_its_layout_is_the_same() {
        let error = shake(&kernel(ABI_VERSION + 1, &good())).expect_err("it is another version");
        assert_eq!(
            (error.guest_version, error.differences.len(), &error.unreadable),
            (ABI_VERSION + 1, 0, &None)
        );
    }

    #[test]
    fn a_description_that_lies_or_leads_nowhere_is_refused_all_the_same() {
        let nowhere = kernel(ABI_VERSION, "vmkern abi 1\n");
        let put = |at: usize, word: u64| {
            nowhere.write(GuestPhys::new(at as u64), &word.to_le_bytes()).expect("it is RAM");
        };
        for (at, word) in [
            (core::mem::offset_of!(ControlRegion, description), 0xdead_0000_0000),
            (core::mem::offset_of!(ControlRegion, description), u64::MAX - 3),
            (core::mem::offset_of!(ControlRegion, description_len), u64::MAX),
            (core::mem::offset_of!(ControlRegion, description_len), 0),
        ] {
            put(at, word);
            let error = shake(&nowhere).expect_err("it is another description");
            assert!(error.unreadable.is_some(), "{error}");
        }
        for text in ["VmMap", " field 1 2 x\n", "VmMap x\n", "VmMap 1\n f 1 2\n", "\0\0"] {
            let error = shake(&kernel(ABI_VERSION, text)).expect_err("it is another description");
            assert!(error.unreadable.is_some(), "{text:?}: {error}");
        }
    }
}
