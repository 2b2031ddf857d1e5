//! Names for the kernel's addresses, from the debug information in its ELF file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use addr2line::Context;
use gimli::{Dwarf, EndianArcSlice, RunTimeEndian};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use vmkern_abi::addr::GuestVirt;

use crate::text::one_line;

type Reader = EndianArcSlice<RunTimeEndian>;

/// A call in a backtrace. It is shown as `function+offset (file:line)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The address of the call, or where the CPU stood.
    pub address: GuestVirt,
    /// The function's name, without its path and its generic arguments.
    pub function: Option<String>,
    /// Bytes from the start of the symbol's function, into which this one may be inlined.
    pub offset: u64,
    /// The source file, relative to the sources of its crate.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            Some(function) => write!(f, "{function}+{:#x}", self.offset)?,
            None => write!(f, "{}", self.address)?,
        }
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, " ({file}:{line})"),
            (Some(file), None) => write!(f, " ({file})"),
            _ => Ok(()),
        }
    }
}

/// The kernel's function that calls the handlers of traps.
const TRAP_ENTRY: &str = "trap_entry";

/// The symbols of one kernel.
pub struct Symbols {
    /// Functions by start address: `(start, size, name)`.
    functions: Vec<(u64, u64, String)>,
    /// Where code is. Debug information also lists functions at 0 that are not in the file.
    code: Vec<Range<u64>>,
    /// Files and lines. It keeps what it has parsed, so that a look at it changes it.
    lines: Option<Mutex<Context<Reader>>>,
}

impl fmt::Debug for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Symbols({} functions)", self.functions.len())
    }
}

impl Symbols {
    /// The symbols in `kernel`, an ELF file's content. It may have none.
    #[must_use]
    pub fn of(kernel: &[u8]) -> Self {
        // 1. The functions, in order of addresses.
        let Ok(file) = ElfFile64::<object::Endianness>::parse(kernel) else {
            return Self::none();
        };
        let mut functions: Vec<_> = file
            .symbols()
            .filter(|symbol| {
                symbol.is_definition()
                    && matches!(
                        symbol.kind(),
                        SymbolKind::Text | SymbolKind::Unknown | SymbolKind::Label
                    )
            })
            .filter_map(|symbol| {
                Some((symbol.address(), symbol.size(), demangle(symbol.name().ok()?)))
            })
            .collect();
        functions.sort();
        // 2. Where code is.
        let sections = file.sections().filter(|section| section.kind() == SectionKind::Text);
        let code = sections
            .map(|section| section.address()..section.address().saturating_add(section.size()));
        let code = code.collect();
        // 3. Files and lines, if the kernel has debug information.
        let load = |section: gimli::SectionId| {
            let data =
                file.section_by_name(section.name()).and_then(|s| s.uncompressed_data().ok());
            Ok(EndianArcSlice::new(
                data.unwrap_or(Cow::Borrowed(&[])).into(),
                RunTimeEndian::Little,
            ))
        };
        let lines = Dwarf::load(load)
            .and_then(Context::from_dwarf)
            .map_err(|error: gimli::Error| log::warn!("debug information: {error}"));
        Self { functions, code, lines: lines.ok().map(Mutex::new) }
    }

    /// No symbols at all.
    #[must_use]
    pub fn none() -> Self {
        Self { functions: Vec::new(), code: Vec::new(), lines: None }
    }

    /// The function that `address` lies in, with the offset from its start in bytes.
    #[must_use]
    pub fn function(&self, address: GuestVirt) -> Option<(&str, u64)> {
        let at = self.functions.partition_point(|&(start, ..)| start <= address.get());
        let (start, size, name) = self.functions[..at].last()?;
        let offset = address.get() - start;
        // Hand-written code may have a symbol without a size. It extends to the next symbol.
        let inside = offset < *size || (*size == 0 && at < self.functions.len());
        inside.then_some((name, offset))
    }

    /// The address of the symbol called `name`.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<GuestVirt> {
        self.functions
            .iter()
            .find(|(.., symbol)| symbol == name)
            .map(|&(start, ..)| GuestVirt::new(start))
    }

    /// The calls at `address`: first the functions inlined there, then the function that contains
    /// it. At least one.
    #[must_use]
    pub fn frames(&self, address: GuestVirt) -> Vec<Frame> {
        // 1. The function, from the symbol table.
        let symbol = self.function(address);
        let offset = symbol.map_or(0, |(_, offset)| offset);
        let mut frames = Vec::new();
        // 2. The functions inlined there, innermost first, from the debug information.
        let is_code = self.code.iter().any(|code| code.contains(&address.get()));
        if let Some(lines) = self.lines.as_ref().filter(|_| is_code)
            && let lines = lines.lock().unwrap_or_else(PoisonError::into_inner)
            && let Ok(mut found) = lines.find_frames(address.get()).skip_all_loads()
        {
            while let Ok(Some(frame)) = found.next() {
                let name = frame.function.and_then(|f| Some(demangle(&f.raw_name().ok()?)));
                let place = frame.location;
                frames.push(Frame {
                    address,
                    function: name,
                    offset,
                    file: place
                        .as_ref()
                        .and_then(|l| l.file)
                        .map(|file| one_line(shorten(file).as_bytes())),
                    line: place.and_then(|l| l.line),
                });
            }
        }
        // 3. The outermost call is the symbol's function.
        let outer = symbol.map(|(name, _)| name.to_owned());
        match frames.last_mut() {
            // Without full debug information there are lines, but no names.
            Some(last) => last.function = outer.or_else(|| last.function.take()),
            None => frames.push(Frame { address, function: outer, offset, file: None, line: None }),
        }
        frames
    }

    /// Frames for a chain of addresses, innermost first. A return address is looked up one byte
    /// earlier, inside the call instruction. The caller of [`TRAP_ENTRY`] is the address at which
    /// the CPU stood when the trap came.
    pub(crate) fn backtrace(
        &self,
        addresses: impl Iterator<Item = GuestVirt>,
        innermost: AddressKind,
    ) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut kind = innermost;
        for address in addresses {
            let back = u64::from(kind == AddressKind::Called && address.get() > 0);
            let at = GuestVirt::new(address.get() - back);
            let is_trap = kind == AddressKind::Called
                && self.function(at).is_some_and(|(name, _)| name == TRAP_ENTRY);
            kind = if is_trap { AddressKind::Stopped } else { AddressKind::Called };
            let mut calls = self.frames(at);
            for call in &mut calls {
                call.address = address;
                call.offset += back;
            }
            frames.append(&mut calls);
        }
        frames
    }
}

/// The GNU build ID of an ELF file, which distinguishes it from every other; `None` if it has none.
#[must_use]
pub fn build_id(elf: &[u8]) -> Option<Vec<u8>> {
    let file = ElfFile64::<object::Endianness>::parse(elf).ok()?;
    file.build_id().ok().flatten().map(<[u8]>::to_vec)
}

/// The kind of an address in a backtrace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressKind {
    /// The instruction at which the CPU stood.
    Stopped,
    /// A return address.
    Called,
}

/// A function's name without its path, its crate's hash and its generic arguments. A closure keeps
/// the name of its enclosing function.
fn demangle(name: &str) -> String {
    let path = one_line(format!("{:#}", rustc_demangle::demangle(name)).as_bytes());
    let mut segments = vec![String::new()];
    let (mut depth, mut rest) = (0u32, path.as_str());
    while let Some(c) = rest.chars().next() {
        if depth == 0 && rest.starts_with("::") {
            segments.push(String::new());
            rest = &rest[2..];
            continue;
        }
        match c {
            '<' | '(' | '[' => depth += 1,
            // The `>` in the arrow of a function type closes nothing.
            '>' | ')' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => segments.last_mut().expect("it is never empty").push(c),
            _ => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    segments.retain(|segment| !segment.is_empty());
    let last = segments.iter().rposition(|segment| !segment.starts_with('{')).unwrap_or(0);
    match segments.get(last..) {
        Some(short) if !short.is_empty() => short.join("::"),
        _ => path,
    }
}

/// The part of a source path that is useful to a reader: relative to the crate for our own crates,
/// from the crate's name on for others.
fn shorten(path: &str) -> &str {
    const OURS: [&str; 3] = ["guest/kmem/src/", "guest/kernel/src/", "shared/src/"];
    for root in OURS {
        if let Some((_, rest)) = path.rsplit_once(root) {
            return rest;
        }
    }
    if let Some((_, rest)) = path.split_once("/library/") {
        return rest;
    }
    if let Some((_, rest)) = path.split_once("/registry/src/") {
        return rest.split_once('/').map_or(rest, |(_, rest)| rest);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_relative_to_their_crate() {
        assert_eq!(shorten("./guest/kmem/src/vm/kern.rs"), "vm/kern.rs");
        assert_eq!(shorten("/home/x/guest/kernel/src/main.rs"), "main.rs");
        assert_eq!(shorten("/rustc/59807616e1/library/core/src/fmt/mod.rs"), "core/src/fmt/mod.rs");
        assert_eq!(
            shorten("/h/.cargo/registry/src/index-1/bitflags-2.9/src/lib.rs"),
            "bitflags-2.9/src/lib.rs"
        );
        assert_eq!(shorten("plain.rs"), "plain.rs");
    }

    #[test]
    fn functions_are_shown_by_their_own_name() {
        assert_eq!(demangle("pvh_entry"), "pvh_entry");
        assert_eq!(demangle("_ZN4core9panicking9panic_fmt17h0123456789abcdefE"), "panic_fmt");
        assert_eq!(
            demangle("_ZN3foo3bar28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE"),
            "bar::{{closure}}"
        );
        let generic =
            "_ZN43_$LT$kmem..vm..Vm$LT$M$GT$$u20$as$u20$X$GT$11kmem_malloc17h0123456789abcdefE";
        assert_eq!(demangle(generic), "kmem_malloc");
    }

    #[test]
    fn an_address_without_symbols_is_still_a_frame() {
        let frames =
            Symbols::none().backtrace([GuestVirt::new(0x1234)].into_iter(), AddressKind::Called);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].to_string(), "0x1234");
    }
}
