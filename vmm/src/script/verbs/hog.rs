//! `hog` and `unhog`: fragment a map, and undo it.
//!
//! A hog allocates pieces until they make up the asked part of the map, or the map refuses one, and
//! then frees every other one. Which half goes is one draw of the run's random numbers.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, MapId, Op, Outcome};

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::script::ast::Runner;
use crate::script::eval::Run;
use crate::script::names::MapField;
use crate::script::target::{Reply, TargetError};

pub(super) const HOG: Verb = Verb {
    name: "hog",
    params: &[Param::Map("MAP"), Param::Number("PERCENT"), Param::Chunk],
    does: "fills PERCENT of MAP in pieces of CHUNK bytes (16K), and frees every other one again, \
           by the run's seed",
    result: "bytes that it holds now in MAP",
    gives: Gives::Number,
    action: Action::Host(&Hog),
};

pub(super) const UNHOG: Verb = Verb {
    name: "unhog",
    params: &[Param::Map("MAP")],
    does: "frees what `hog` holds in MAP",
    result: "bytes that it holds now in MAP: 0",
    gives: Gives::Number,
    action: Action::Host(&Unhog),
};

/// The bytes of a piece, unless the script says otherwise.
pub(in crate::script) const CHUNK: u64 = 16 << 10;

/// A piece that a hog holds.
#[derive(Clone, Copy, Debug)]
pub(in crate::script) struct Piece {
    map: MapId,
    addr: GuestVirt,
    size: u64,
}

/// The answer of a verb after which `hog` holds what it holds in `map`.
fn held(run: &Run<'_>, map: MapId) -> Answer {
    let sizes = run.hogged.iter().filter(|piece| piece.map == map).map(|piece| piece.size);
    Answer::number(sizes.sum())
}

/// Lets the guest do `op` for a hog. The outcome, or the reply of a guest that died of it.
fn work(run: &mut Run<'_>, op: Op) -> Result<Result<Outcome, Reply>, TargetError> {
    run.stop.check()?;
    Ok(match run.execute(Runner::DEFAULT.context(), op)? {
        Reply::Completed { outcome, .. } => Ok(outcome),
        panicked => Err(panicked),
    })
}

#[derive(Debug)]
struct Hog;

impl HostVerb for Hog {
    fn needs_guest(&self) -> bool {
        true
    }

    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let &[Value::Map(map), Value::Number(percent), Value::Chunk(size)] = values else {
            return Err(TargetError::Broken("`hog` without its arguments".to_owned()));
        };
        // 1. What makes sense.
        if !(1..=100).contains(&percent) {
            let message = format!("`hog` fills 1 to 100 percent of a map, not {percent}");
            return Err(TargetError::Unable(message));
        }
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            let message = format!("a piece of `hog` has whole pages, not {size} bytes");
            return Err(TargetError::Unable(message));
        }
        let (min, max) =
            (run.target.map_field(map, MapField::Min)?, run.target.map_field(map, MapField::Max)?);
        // 2. Pieces, until there are enough or the map refuses one.
        let mut pieces = Vec::new();
        for _ in 0..max.saturating_sub(min).saturating_mul(percent) / 100 / size {
            match allocate(run, map, size)? {
                Ok(Outcome::Value(addr)) => {
                    pieces.push(Piece { map, addr: GuestVirt::new(addr), size });
                }
                Ok(Outcome::Null) => break,
                Ok(outcome) => return Ok(Reply::Completed { outcome, cycles: 0 }.into()),
                Err(panicked) => return Ok(panicked.into()),
            }
        }
        // 3. Every other one goes.
        let goes = run.random.between(0, 1);
        let (freed, kept): (Vec<_>, Vec<_>) =
            pieces.into_iter().zip(0_u64..).partition(|(_, number)| number % 2 == goes);
        run.hogged.extend(kept.into_iter().map(|(piece, _)| piece));
        match free(run, freed.into_iter().map(|(piece, _)| piece))? {
            Some(panicked) => Ok(panicked.into()),
            None => Ok(held(run, map)),
        }
    }
}

/// Allocates a piece: of a map for `kmem_malloc` without a wait, of others only the addresses.
fn allocate(
    run: &mut Run<'_>,
    map: MapId,
    size: u64,
) -> Result<Result<Outcome, Reply>, TargetError> {
    let addresses = Op::KmemAllocNofault { map, size };
    if map == MapId::KERNEL {
        return work(run, addresses);
    }
    match work(run, Op::KmemMalloc { map, size, flags: MallocFlags::NOWAIT })? {
        Ok(Outcome::Error(KernReturn::InvalidArgument)) => work(run, addresses),
        other => Ok(other),
    }
}

/// Frees `pieces`. The reply of a guest that died of it.
fn free(
    run: &mut Run<'_>,
    pieces: impl Iterator<Item = Piece>,
) -> Result<Option<Reply>, TargetError> {
    for Piece { map, addr, size } in pieces {
        if let Err(panicked) = work(run, Op::KmemFree { map, addr, size })? {
            return Ok(Some(panicked));
        }
    }
    Ok(None)
}

#[derive(Debug)]
struct Unhog;

impl HostVerb for Unhog {
    fn needs_guest(&self) -> bool {
        true
    }

    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let &[Value::Map(map)] = values else {
            return Err(TargetError::Broken("`unhog` without its map".to_owned()));
        };
        let (of_map, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut run.hogged).into_iter().partition(|piece| piece.map == map);
        run.hogged = others;
        match free(run, of_map.into_iter())? {
            Some(panicked) => Ok(panicked.into()),
            None => Ok(held(run, map)),
        }
    }
}
