//! A history as a `.kmem` script.

use std::collections::BTreeMap;
use std::fmt::Write;

use vmkern_abi::control::{MallocFlags, MapId, MapKind, Op, Outcome};

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
    pub shape: Option<Shape>,
}

/// Who performs a statement: a thread, an interrupt, or a shortage.
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
    names.iter().filter(|&&(flag, _)| flags.contains(flag)).map(|&(_, name)| name).collect::<Vec<_>>().join("|")
}

impl Script {
    fn map(&self, id: MapId) -> String {
        let named = MapId::NAMED.iter().find(|&&(_, named)| named == id).map(|&(name, _)| name.to_owned());
        named.or_else(|| self.maps.get(&id.0).map(|name| format!("${name}"))).unwrap_or_else(|| format!("{:#x}", id.0))
    }

    fn address(&self, va: u64) -> String {
        match self.blocks.range(..=va).next_back() {
            Some((&start, (name, _))) if va == start => format!("${name}"),
            Some((&start, (name, bytes))) if va - start < *bytes => format!("${name}+{:#x}", va - start),
            _ => format!("{va:#x}"),
        }
    }

    /// The statement for `op`, with a name for what it gives.
    fn statement(&mut self, op: &Op) -> (Option<String>, String) {
        let (map, at) = (|id| self.map(id), |va: vmkern_abi::addr::GuestVirt| self.address(va.get()));
        let (prefix, text) = match *op {
            Op::Nop => ("", "settle".to_owned()),
            Op::KmemAlloc { map: id, size } => ("b", format!("kmem_alloc {} {size:#x}", map(id))),
            Op::KmemAllocNofault { map: id, size } => ("b", format!("kmem_alloc_nofault {} {size:#x}", map(id))),
            Op::KmemMalloc { map: id, size, flags: f } => {
                ("b", format!("kmem_malloc {} {size:#x} {}", map(id), flags(f)).trim_end().to_owned())
            }
            Op::KmemAllocWait { map: id, size } => ("b", format!("kmem_alloc_wait {} {size:#x}", map(id))),
            Op::KmemFree { map: id, addr, size } => ("", format!("kmem_free {} {} {size:#x}", map(id), at(addr))),
            Op::KmemFreeWakeup { map: id, addr, size } => {
                ("", format!("kmem_free_wakeup {} {} {size:#x}", map(id), at(addr)))
            }
            Op::KmemSuballoc { parent, size, kind } => {
                let system = if kind == MapKind::System { " system" } else { "" };
                ("m", format!("kmem_suballoc {} {size:#x}{system}", map(parent)))
            }
            Op::UmaReclaim => ("", "uma_reclaim".to_owned()),
            Op::PmapQenter { addr, count } => ("", format!("pmap_qenter {} {count}", at(addr))),
            Op::PmapQremove { addr, count } => ("", format!("pmap_qremove {} {count}", at(addr))),
            Op::Read { addr } => ("", format!("read {}", at(addr))),
            Op::Write { addr, value } => ("", format!("write {} {value:#x}", at(addr))),
            Op::Touch { addr, size } => ("", format!("touch {} {size:#x}", at(addr))),
            Op::Fill { addr, size, seed } => ("", format!("fill {} {size:#x} {seed}", at(addr))),
            Op::Verify { addr, size, seed } => ("", format!("verify {} {size:#x} {seed}", at(addr))),
            Op::VerifyZero { addr, size } => ("", format!("verify {} {size:#x} zero", at(addr))),
            Op::Vtop { addr } => ("", format!("vtop {}", at(addr))),
            Op::Sleep { micros } => ("", format!("sleep {micros}us")),
            // No verb does this, and no history.
            Op::Pairs { .. } => ("", "# pairs".to_owned()),
            Op::Settle => ("", "settle".to_owned()),
            Op::Join { thread } => ("", format!("join t{thread}")),
            Op::Stress { .. } | Op::SpinRead { .. } | Op::SpinFree { .. } => ("", format!("# {op:?}")),
        };
        let name = (!prefix.is_empty()).then(|| {
            self.named += 1;
            format!("{prefix}{}", self.named)
        });
        (name, text)
    }

    /// Notes that `op` was asked of `who`, who gave `outcome`.
    pub fn note(&mut self, who: Who, op: &Op, outcome: &Outcome) {
        let (name, text) = self.statement(op);
        let thread = match who {
            Who::Thread(0) => String::new(),
            Who::Thread(tid) => format!("t{tid}: "),
            Who::Interrupt => "intr: ".to_owned(),
            Who::Lowmem => "on_lowmem ".to_owned(),
        };
        let binding = name.as_ref().map(|name| format!("{name} = ")).unwrap_or_default();
        self.lines.push(format!("{thread}{binding}{text}"));
        if let (Some(name), Outcome::Value(value)) = (&name, outcome) {
            self.bind(name.clone(), op, *value);
        }
        match outcome {
            Outcome::Null => self.lines.push("expect null".to_owned()),
            Outcome::Error(code) => self.lines.push(format!("expect error {code}")),
            Outcome::Blocked { .. } => {
                self.lines.push("expect blocked".to_owned());
                if let Who::Thread(tid) = who {
                    self.owed.insert(tid, name.unwrap_or_default());
                }
            }
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

    /// Notes that the operation of a blocked thread has answered.
    pub fn join(&mut self, tid: u32, op: &Op, outcome: &Outcome) {
        self.lines.push(format!("join t{tid}"));
        let name = self.owed.remove(&tid).unwrap_or_default();
        if let Outcome::Value(value) = *outcome {
            self.bind(name, op, value);
        }
    }

    /// Notes that `op` panics with a message in which `text` stands.
    pub fn panics(&mut self, op: &Op, text: &str) {
        let (_, statement) = self.statement(op);
        self.lines.push(statement);
        self.lines.push(format!("expect panic \"{text}\""));
    }

    /// A remark.
    pub fn remark(&mut self, text: &str) {
        self.lines.push(format!("# {text}"));
    }

    /// The script.
    pub fn text(&self) -> String {
        let Some(shape) = self.shape else { return String::new() };
        let tunables = shape.tunables();
        let settings = [
            ("vm.kmem_size", tunables.vm_kmem_size),
            ("kern.nbuf", tunables.kern_nbuf),
            ("kern.nswbuf", tunables.kern_nswbuf),
            ("vm.exec_map_entries", tunables.vm_exec_map_entries),
            ("kern.ipc.maxpipekva", tunables.kern_ipc_maxpipekva),
        ];
        let mut text = String::from("# vmkern run --memory 8M");
        for (name, value) in settings {
            let _ = write!(text, " --set {name}={}", value.unwrap_or(0));
        }
        let _ = write!(text, "\n# The simulated machine had {}M, so that its pages ran out earlier.\n", shape.mib);
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        for tid in self.owed.keys() {
            let _ = writeln!(text, "abandon t{tid}");
        }
        text
    }
}
