//! What the letters of page-table entries and the counts of cycles mean.

use std::fmt::Write as _;

use vmkern_abi::pte::PteFlags;

use super::wrapped;
use crate::guest::KvmKind;
use crate::script::FAINT;

/// Columns of an explanation behind its indent.
const WIDTH: usize = 74;

/// FreeBSD's letters, with what they mean.
const LETTERS: [(PteFlags, &str); 13] = [
    (PteFlags::V, "V valid"),
    (PteFlags::RW, "RW writable"),
    (PteFlags::U, "U open to CPL3, where the kernel's body runs"),
    (PteFlags::PWT, "PWT write-through"),
    (PteFlags::PCD, "PCD not cached"),
    (PteFlags::A, "A accessed"),
    (PteFlags::M, "M modified, which the manuals call D for dirty"),
    (PteFlags::PS, "PS a page of 2 MiB"),
    (PteFlags::G, "G global: it survives a reload of CR3"),
    (PteFlags::W, "W wired: the pagedaemon leaves it alone"),
    (PteFlags::MANAGED, "MANAGED known to the page's own list of mappings"),
    (PteFlags::KENTER, "KENTER entered by pmap_qenter, without a map's knowledge"),
    (PteFlags::NX, "NX never executed"),
];

/// The letters of `flags` explained; nothing for none.
pub(super) fn letters(flags: PteFlags) -> String {
    let known: Vec<&str> =
        LETTERS.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, text)| *text).collect();
    if known.is_empty() { String::new() } else { told(&format!("letters: {}.", known.join("; "))) }
}

/// Why an operation takes the cycles that it does on this kind of KVM.
pub(super) fn cycles(kvm: KvmKind) -> String {
    told(match kvm {
        KvmKind::Software => {
            "cycles: this KVM is software. It runs CPL3 natively, but emulates each instruction at \
             CPL0, for some 2,500 cycles; an interrupt, a fault or a flush costs more than a \
             dozen of them. It also shadows the page tables: the first touch of a page costs 8,000 \
             cycles and more. So a step that touches a thousand pages takes millions."
        }
        KvmKind::Hardware => {
            "cycles: this KVM is the processor's own, so all of the kernel runs natively. The \
             first touch of a page costs an exit to the host, which has to find memory for it."
        }
    })
}

fn told(text: &str) -> String {
    wrapped(text, WIDTH).into_iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "   {FAINT}{line}{FAINT:#}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_its_letter() {
        for (name, flag) in PteFlags::all().iter_names() {
            let text = letters(flag);
            assert!(text.contains(&format!("letters: {name} ")), "{name}: {text}");
        }
        assert_eq!(letters(PteFlags::empty()), "");
    }
}
