//! Writes the kernel's link script.
//!
//! The script is more than an arrangement of sections: the interrupt descriptor table, the TSS
//! descriptor and the page tables of the image hold addresses cut into pieces, which no relocation
//! can express but a link script can compute. So they become static data, and the boot path has no
//! table to build.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

/// Where the image appears in virtual memory, less its physical address
/// (`vmkern_abi::kva::KERNBASE`).
const KERNBASE: u64 = 0xffff_ffff_8000_0000;
/// Physical address of the image.
const IMAGE_PHYS: u64 = 0x10_0000;
/// Physical memory that the two page tables at KERNBASE can map.
const WINDOW_BYTES: u64 = 4 << 20;
/// Virtual page, relative to KERNBASE, through which the local APIC is reached: the window's last.
const APIC_PAGE: u64 = WINDOW_BYTES - 4096;
/// The local APIC's physical address.
const APIC_PHYS: u64 = 0xfee0_0000;

/// Last byte of the TSS with its I/O bitmap (`arch::x86_64::percpu::Tss`).
const TSS_LIMIT: u64 = 104 + 256 + 1 - 1;

/// Eight pages, aligned: a KVM that shadows page tables fills the entries of this many on one
/// fault. The pages that a boot touches lie in few such groups: the static tables are one, and the
/// boot stack, nine pages with its guard, ends with the first page of the group in which the zeroed
/// data follow.
const PREFETCH_BYTES: u64 = 8 << 12;

const V: u64 = 1;
const RW: u64 = 1 << 1;
const U: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const A: u64 = 1 << 5;
const M: u64 = 1 << 6;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=text.order");
    if env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let script =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernel.ld");
    fs::write(&script, link_script()).expect("the link script can be written to OUT_DIR");
    let script = script.display();
    for arg in [
        "-nostdlib",
        "-nostartfiles",
        "-static",
        "-no-pie",
        "-Wl,--build-id=sha1",
        "-Wl,-z,noexecstack",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-z,max-page-size=0x1000");
    println!("cargo:rustc-link-arg-bins=-Wl,-z,norelro");
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{script}");
}

/// Functions in the order of their first use, one name per line (`scripts/text-order.sh`). So the
/// functions of a boot and a first request lie side by side, in few groups of pages.
const TEXT_ORDER: &str = include_str!("text.order");

/// The lines that put the sections of [`TEXT_ORDER`]'s functions first. A mangled name of the list
/// lacks the hash at its end.
fn text_order() -> String {
    TEXT_ORDER.lines().fold(String::new(), |mut lines, name| {
        let _ =
            writeln!(lines, "        *(.text.{name} .text.{name}17h* .text.unlikely.{name}17h*)");
        lines
    })
}

fn link_script() -> String {
    let order = text_order();
    let mut s = String::new();
    let _ = write!(
        s,
        "ENTRY(pvh_entry)
KERNBASE = {KERNBASE:#x};
PHDRS {{
    note PT_NOTE FLAGS(4);
    text PT_LOAD FLAGS(5);
    rodata PT_LOAD FLAGS(4);
    data PT_LOAD FLAGS(6);
}}
SECTIONS {{
    . = KERNBASE + {IMAGE_PHYS:#x};
    __image_start = .;
    .text : AT(ADDR(.text) - KERNBASE) {{
        *(.nucleus .nucleus.*)
{order}        *(.text .text.*)
    }} :text
    . = ALIGN(4096);
    __text_end = .;
    . = ALIGN({PREFETCH_BYTES});
    .note.pvh : AT(ADDR(.note.pvh) - KERNBASE) {{ KEEP(*(.note.pvh)) }} :rodata :note
    .note.vmkern : AT(ADDR(.note.vmkern) - KERNBASE) {{ KEEP(*(.note.vmkern)) }} :rodata :note
    .note.gnu.build-id : AT(ADDR(.note.gnu.build-id) - KERNBASE) {{
        *(.note.gnu.build-id)
    }} :rodata :note
    .rodata : AT(ADDR(.rodata) - KERNBASE) {{
        *(.rodata .rodata.*)
        *(.data.rel.ro .data.rel.ro.*)
        . = ALIGN(16);
        idt = .;
"
    );
    for vector in 0..256u64 {
        let (stub, ist) = match vector {
            2 | 8 | 18 => (format!("(trap_stubs + {vector} * 16)"), 2),
            6 => ("ud_stub".to_string(), 1),
            14 => ("pf_stub".to_string(), 1),
            _ => (format!("(trap_stubs + {vector} * 16)"), 1),
        };
        // A DPL of 3 would allow nothing that CPL3 could not do anyway, but only vectors 3 and 4
        // need it, and neither is used.
        let _ = writeln!(
            s,
            "        QUAD(({stub} & 0xffff) | (8 << 16) | ({ist} << 32) | (0x8e << 40) \
             | ((({stub} >> 16) & 0xffff) << 48))
        QUAD({stub} >> 32)"
        );
    }
    s.push_str(
        "        idt_end = .;\n    } :rodata\n    . = ALIGN(4096);\n    __rodata_end = .;\n",
    );
    let _ = write!(
        s,
        "    .data : AT(ADDR(.data) - KERNBASE) {{
        *(.data .data.*)
        . = ALIGN(16);
        gdt = .;
        QUAD(0)
        QUAD(0x00af9b000000ffff)
        QUAD(0x00cf93000000ffff)
        QUAD(0x00cff3000000ffff)
        QUAD(0x00affb000000ffff)
        QUAD(0)
        QUAD({TSS_LIMIT} | ((PERCPU0 & 0xffffff) << 16) | (0x89 << 40) \
         | (((PERCPU0 >> 24) & 0xff) << 56))
        QUAD(PERCPU0 >> 32)
        gdt_end = .;
        *(.user_frame)
        *(.got .got.plt)
        . = ALIGN({PREFETCH_BYTES:#x});
        *(.tables)
"
    );
    for table in 0..2u64 {
        let _ = writeln!(s, "        image_pt{table} = .;");
        for entry in 0..512u64 {
            let page = (table * 512 + entry) * 4096;
            let _ = writeln!(s, "        QUAD({})", page_entry(page));
        }
    }
    let _ = write!(
        s,
        "    }} :data
    .bss : AT(ADDR(.bss) - KERNBASE) {{
        . = ALIGN({PREFETCH_BYTES:#x});
        *(.stacks.boot)
        *(.bss .bss.*)
        *(COMMON)
        . = ALIGN(4096);
        *(.stacks)
        . = ALIGN(4096);
    }} :data
    __image_end = .;
    ASSERT(__image_end <= KERNBASE + {APIC_PAGE:#x}, \"the image outgrew its window\")
    /DISCARD/ : {{
        *(.eh_frame .eh_frame.* .eh_frame_hdr .gcc_except_table .gcc_except_table.*)
        *(.comment .note.GNU-stack .note.gnu.property)
    }}
}}
"
    );
    s
}

/// The link-time expression for the page-table entry of the page at `KERNBASE + page`: text is
/// executable, read-only data is neither writable nor executable, data is not executable, guard
/// pages and pages past the image are not present. Low memory, which holds the loader's data and
/// the control region, is data.
fn page_entry(page: u64) -> String {
    let common = V | U | A | G;
    let data = common | RW | M | NX;
    if page < IMAGE_PHYS {
        return format!("{:#x}", page | data);
    }
    if page == APIC_PAGE {
        return format!("{:#x}", APIC_PHYS | data | PWT | PCD);
    }
    let va = KERNBASE + page;
    let guards = ["guard_trap_stack", "guard_emergency_stack", "guard_boot_stack"];
    let guard = guards.map(|g| format!("{va:#x} == {g}")).join(" || ");
    format!(
        "{va:#x} < __text_end ? {:#x} : {va:#x} < __rodata_end ? {:#x} \
         : ({guard} || {va:#x} >= __image_end) ? 0 : {:#x}",
        page | common,
        page | common | NX,
        page | data,
    )
}
