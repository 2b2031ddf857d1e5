//! Random histories of all functions against a naive model.
//!
//! A history is a small machine, a list of steps, and, if threads run concurrently, a seed for
//! their interleaving. Every step's result, every address and every counter must be what the model
//! says; memory must hold what was written to it; and in the end, when everything has been freed,
//! every page must be back.
//!
//! A history can be written as a `.kmem` script. If operations come one at a time, a guest runs it
//! with the same results, even where one fails at a fail point, as [`replay`] shows.

mod apply;
mod explain;
mod failing;
mod naive;
mod protect;
mod race;
mod refused;
mod replay;
mod script;
mod step;
mod world;

use std::cell::RefCell;
use std::rc::Rc;

use vmkern_abi::control::{MallocFlags, MapId};
use vmkern_abi::layout::VmMap;

pub use self::failing::sites;
pub use self::protect::FORMS;
pub use self::race::{Race, at_once, race};
pub use self::refused::{Refused, everything, refused};
pub use self::replay::{Replay, replay};
pub use self::script::Script;
pub use self::step::{History, STEPS, history};
use self::world::World;
use super::Sim;

/// The writer of a history's script.
pub type Telling = Rc<RefCell<Script>>;

const ZEROED: MallocFlags = MallocFlags::NOWAIT.union(MallocFlags::ZERO);

impl Sim {
    pub(crate) fn map(&self, id: MapId) -> &VmMap {
        self.vm().get(self.vm().map_by_id(id).expect("the map exists"))
    }

    pub(crate) fn free_pages(&self) -> u64 {
        self.vm().cnt().v_free_count.get()
    }
}

/// An empty script for a history that is drawn: an exact one where `VMKERN_MODEL_PAGES` asks for a
/// guest's machine.
#[must_use]
pub fn telling() -> Telling {
    let script = if step::guest_pages().is_some() { Script::exact() } else { Script::default() };
    Rc::new(RefCell::new(script))
}

/// Performs a history, one operation at a time, up to the end or the failure, which is a panic.
pub fn in_turn(history: &History, telling: &Telling) {
    let mut world = World::new(history.shape, telling);
    for (on, step) in &history.steps {
        world.step(*on, step);
    }
    world.finish();
}
