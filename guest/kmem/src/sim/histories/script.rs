//! A history as a `.kmem` script.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_abi::fail::{FailSite, FailSpec};
use vmkern_abi::layout::Protection;

use super::step::Shape;

/// The statements so far.
#[derive(Debug, Default)]
pub struct Script {
    lines: Vec<String>,
    /// Blocks by address: name and bytes.
    blocks: BTreeMap<u64, (String, u64)>,
    maps: BTreeMap<u64, String>,
    /// Names of operations that have not answered, by thread.
    owed: BTreeMap<u32, String>,
    named: u32,
    /// The machine.
    pub(super) shape: Option<Shape>,
    /// Whether nothing more can be written.
    closed: bool,
    /// The number of operations that slept.
    pub(super) slept: u64,
    /// Whether the kernel has panicked, as it should.
    pub(super) panicked: bool,
    /// What has happened, of [`FORMS`](super::FORMS).
    seen: BTreeSet<&'static str>,
    /// Counters that were written, if they should be.
    counters: Option<BTreeMap<String, u64>>,
}

/// What performs a statement: a thread, an interrupt, or a shortage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Thread(u32),
    Interrupt,
    Lowmem,
}

fn flags(flags: MallocFlags) -> String {
    let names = [
        (MallocFlags::NOWAIT, "NOWAIT"),
        (MallocFlags::WAITOK, "WAITOK"),
        (MallocFlags::ZERO, "ZERO"),
        (MallocFlags::USE_RESERVE, "USE_RESERVE"),
    ];
    names
        .iter()
        .filter(|&&(flag, _)| flags.contains(flag))
        .map(|&(_, name)| name)
        .collect::<Vec<_>>()
        .join("|")
}

impl Script {
    /// The script of a machine that behaves exactly like a guest with as many managed pages. It
    /// contains the counters after each step.
    #[must_use]
    pub fn exact() -> Self {
        Self { counters: Some(BTreeMap::new()), ..Self::default() }
    }

    /// Whether the machine must behave exactly like a guest.
    pub(super) fn is_exact(&self) -> bool {
        self.counters.is_some()
    }

    fn line(&mut self, text: impl Into<String>) {
        if !self.closed {
            self.lines.push(text.into());
        }
    }

    fn map(&self, id: MapId) -> String {
        let named =
            MapId::NAMED.iter().find(|&&(_, named)| named == id).map(|&(name, _)| name.to_owned());
        named
            .or_else(|| self.maps.get(&id.0).map(|name| format!("${name}")))
            .unwrap_or_else(|| format!("{:#x}", id.0))
    }

    fn address(&self, va: u64) -> String {
        match self.blocks.range(..=va).next_back() {
            Some((&start, (name, _))) if va == start => format!("${name}"),
            Some((&start, (name, bytes))) if va - start < *bytes => {
                format!("${name}+{:#x}", va - start)
            }
            _ => format!("{va:#x}"),
        }
    }

    /// The statement for `op`, with a name for its result.
    fn statement(&mut self, op: &Op) -> (Option<String>, String) {
        let (map, at) =
            (|id| self.map(id), |va: vmkern_abi::addr::GuestVirt| self.address(va.get()));
        let (prefix, text) = match *op {
            Op::Nop => ("", "settle".to_owned()),
            Op::KmemAlloc { map: id, size } => ("b", format!("kmem_alloc {} {size:#x}", map(id))),
            Op::KmemAllocNofault { map: id, size } => {
                ("b", format!("kmem_alloc_nofault {} {size:#x}", map(id)))
            }
            Op::KmemMalloc { map: id, size, flags: f } => (
                "b",
                format!("kmem_malloc {} {size:#x} {}", map(id), flags(f)).trim_end().to_owned(),
            ),
            Op::KmemAllocWait { map: id, size } => {
                ("b", format!("kmem_alloc_wait {} {size:#x}", map(id)))
            }
            Op::KmemFree { map: id, addr, size } => {
                ("", format!("kmem_free {} {} {size:#x}", map(id), at(addr)))
            }
            Op::KmemFreeWakeup { map: id, addr, size } => {
                ("", format!("kmem_free_wakeup {} {} {size:#x}", map(id), at(addr)))
            }
            Op::KmemSuballoc { parent, size, kind } => {
                let system = if kind == MapKind::System { " system" } else { "" };
                ("m", format!("kmem_suballoc {} {size:#x}{system}", map(parent)))
            }
            Op::UmaReclaim => ("", "uma_reclaim".to_owned()),
            Op::Protect { map: id, addr, size, protection } => {
                let allows = match (protection.contains(Protection::READ), protection) {
                    (false, _) => "none",
                    (true, Protection::READ) => "r",
                    (true, _) => "rw",
                };
                ("", format!("protect {} {} {size:#x} {allows}", map(id), at(addr)))
            }
            Op::PmapQenter { addr, count } => ("", format!("pmap_qenter {} {count}", at(addr))),
            Op::PmapQremove { addr, count } => ("", format!("pmap_qremove {} {count}", at(addr))),
            Op::Read { addr } => ("", format!("read {}", at(addr))),
            Op::Write { addr, value } => ("", format!("write {} {value:#x}", at(addr))),
            Op::Touch { addr, size } => ("", format!("touch {} {size:#x}", at(addr))),
            Op::Fill { addr, size, seed } => ("", format!("fill {} {size:#x} {seed}", at(addr))),
            Op::Verify { addr, size, seed } => {
                ("", format!("verify {} {size:#x} {seed}", at(addr)))
            }
            Op::VerifyZero { addr, size } => ("", format!("verify {} {size:#x} zero", at(addr))),
            Op::Vtop { addr } => ("", format!("vtop {}", at(addr))),
            Op::Sleep { micros } => ("", format!("sleep {micros}us")),
            Op::Settle => ("", "settle".to_owned()),
            Op::Join { thread } => ("", format!("join t{thread}")),
            // No history draws another one.
            ref other => ("", format!("# {other:?}")),
        };
        let name = (!prefix.is_empty()).then(|| {
            self.named += 1;
            format!("{prefix}{}", self.named)
        });
        (name, text)
    }

    /// Records that `who` performed `op` with `outcome`.
    pub fn note(&mut self, who: Who, op: &Op, outcome: &Outcome) {
        let (name, text) = self.statement(op);
        let thread = match who {
            Who::Thread(0) => String::new(),
            Who::Thread(tid) => format!("t{tid}: "),
            Who::Interrupt => "intr: ".to_owned(),
            Who::Lowmem => "on_lowmem ".to_owned(),
        };
        let binding = name.as_ref().map(|name| format!("{name} = ")).unwrap_or_default();
        self.line(format!("{thread}{binding}{text}"));
        self.result(op, outcome);
        match (outcome, name, who) {
            (Outcome::Value(value), Some(name), _) => self.bind(name, op, *value),
            (Outcome::Blocked { .. }, name, Who::Thread(tid)) if !self.closed => {
                self.owed.insert(tid, name.unwrap_or_default());
                self.slept += 1;
            }
            _ => {}
        }
    }

    /// The expected result of a statement.
    fn result(&mut self, op: &Op, outcome: &Outcome) {
        match (outcome, op) {
            // Where the structure of a map lies depends on the machine.
            (Outcome::Value(_), Op::KmemSuballoc { .. }) => {}
            (Outcome::Value(value), _) => self.line(format!("expect {value:#x}")),
            (Outcome::Null, _) => self.line("expect null"),
            (Outcome::Error(code), _) => self.line(format!("expect error {code}")),
            (Outcome::Blocked { .. }, _) => self.line("expect blocked"),
            _ => {}
        }
    }

    fn bind(&mut self, name: String, op: &Op, value: u64) {
        match *op {
            Op::KmemSuballoc { .. } => drop(self.maps.insert(value, name)),
            Op::KmemAlloc { size, .. }
            | Op::KmemAllocNofault { size, .. }
            | Op::KmemMalloc { size, .. }
            | Op::KmemAllocWait { size, .. } => {
                self.blocks.insert(value, (name, size.next_multiple_of(4096)));
            }
            _ => {}
        }
    }

    /// Records that the operation of a blocked thread has answered.
    pub fn join(&mut self, tid: u32, op: &Op, outcome: &Outcome) {
        if self.closed {
            return;
        }
        self.line(format!("join t{tid}"));
        self.result(op, outcome);
        let name = self.owed.remove(&tid).unwrap_or_default();
        if let Outcome::Value(value) = *outcome {
            self.bind(name, op, value);
        }
    }

    /// Records that `op` panics with a message that contains `text`.
    pub fn panics(&mut self, op: &Op, text: &str) {
        let (_, statement) = self.statement(op);
        self.line(statement);
        self.line(format!("expect panic \"{text}\""));
        self.panicked = true;
    }

    /// Notes that something of [`FORMS`](super::FORMS) has happened.
    pub(super) fn saw(&mut self, form: &'static str) {
        self.seen.insert(form);
    }

    /// What has happened so far, of [`FORMS`](super::FORMS).
    #[must_use]
    pub fn seen(&self) -> &BTreeSet<&'static str> {
        &self.seen
    }

    /// Arms `site` with `spec` from here on.
    pub fn fail(&mut self, site: FailSite, spec: &FailSpec) {
        self.line(format!("fail {} {spec}", site.name()));
    }

    /// A remark.
    pub fn remark(&mut self, text: &str) {
        self.line(format!("# {text}"));
    }

    /// Ends the script with a remark that gives the reason.
    pub fn close(&mut self, text: &str) {
        self.remark(text);
        self.closed = true;
    }

    /// Records the expected value of a counter, if counters are requested.
    pub fn counter(&mut self, name: &str, value: u64) {
        let Some(told) = self.counters.as_mut() else { return };
        if told.insert(name.to_owned(), value) != Some(value) {
            self.line(format!("assert {name} == {value}"));
        }
    }

    /// [`Script::counter`] of a map.
    pub fn map_counter(&mut self, id: MapId, field: &str, value: u64) {
        if self.is_exact() {
            let name = format!("{}.{field}", self.map(id));
            self.counter(&name, value);
        }
    }

    /// Records how many bytes of kernel_map must be in use, when it was `at_first` after the boot:
    /// the image, whose size is not known, is among them.
    pub fn kernel_size(&mut self, at_first: u64, value: u64) {
        let Some(told) = self.counters.as_mut() else { return };
        if told.insert("kernel_map.size".to_owned(), value) != Some(value) {
            self.line(format!("assert kernel_map.size + {at_first} == $at_first + {value}"));
        }
    }

    /// The script.
    #[must_use]
    pub fn text(&self) -> String {
        let Some(shape) = self.shape else { return String::new() };
        let mut text = String::from("# vmkern run --memory 8M");
        for (name, value) in shape.settings() {
            let _ = write!(text, " --set {name}={value}");
        }
        text.push('\n');
        if !self.is_exact() {
            let _ = writeln!(
                text,
                "# The simulated machine had {}K. Its pages run out elsewhere.",
                shape.memory >> 10
            );
        }
        // The threads exist from the beginning.
        text.push_str("settle\n");
        for tid in 1..=shape.workers {
            let _ = writeln!(text, "t{tid}: settle");
        }
        if self.is_exact() {
            text.push_str("let at_first = kernel_map.size\n");
        }
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        for tid in self.owed.keys() {
            let _ = writeln!(text, "abandon t{tid}");
        }
        text
    }
}
