//! What a boot has made: the page tables of the image and of the direct map, and the pages.

use std::fmt::Write as _;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::Op;
use vmkern_abi::kva::{KERNBASE, phys_to_dmap};
use vmkern_abi::pte::{Level, PteFlags};

use super::{Shown, Stage, Tour, TourError};
use crate::GuestPhys;
use crate::tour::window::{count, flags};

/// Where the kernel's text begins.
const TEXT: GuestPhys = GuestPhys::new(1 << 20);

pub(super) fn show(tour: &mut Tour<'_>) -> Shown {
    // 1. Pages.
    let meter = tour.guest.meter()?;
    let text = format!(
        "\nThe boot has put {} under management.\nOf these {} are wired and {} are free.\n",
        count(meter.v_page_count.get(), "page"),
        meter.v_wire_count.get(),
        meter.v_free_count.get()
    );
    tour.say(&text);
    // 2. The smallest request.
    tour.ok(&Stage::new(
        "nop()".to_owned(),
        Op::Nop,
        "nop",
        "Nothing, to see what a request costs by itself: it comes over a ring in \
         shared memory, and the kernel's first thread answers in the same way.",
    ))?;
    // 3. One page at two addresses.
    tour.walk(
        KERNBASE.add(TEXT.get()),
        "The first page of the kernel's text, at 1 MiB of physical memory. Four \
         tables lead there from CR3. Each page has its own protection: text may \
         be executed, not written.",
    )?;
    tour.walk(
        phys_to_dmap(TEXT),
        "The same page in the direct map, at which the kernel reaches all of \
         physical memory, its own tables included. There it is data.",
    )?;
    Ok(None)
}

impl Tour<'_> {
    /// The stop at which the kernel translates `addr`, and the tables on the way.
    fn walk(&mut self, addr: GuestVirt, story: &'static str) -> Result<(), TourError> {
        self.value(&Stage::new(format!("vtop({addr})"), Op::Vtop { addr }, "vtop", story))?;
        let walk = self.guest.vtop(addr)?;
        let (mut text, mut seen) = (String::new(), PteFlags::empty());
        for step in walk.steps() {
            let level = match step.level {
                Level::Pml4 => "PML4",
                Level::Pdpt => "PDPT",
                Level::Pd => "PD",
                Level::Pt => "PT",
            };
            let (table, index, pte) = (step.table, step.index, step.pte);
            let entry = format!("{level}[{index}]");
            let _ =
                writeln!(text, "   {entry:<10} at {table}: {} {}", pte.frame(), flags(pte.flags()));
            seen |= pte.flags();
        }
        text.push_str(&self.letters(seen));
        self.say(&text);
        Ok(())
    }
}
