//! The end of a history: everything is freed, and every page must be back.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::Op;

use super::World;
use crate::sim::check::check;
use crate::sim::histories::naive::{Range, What};

impl World {
    /// Frees everything, lets all threads finish that can, and checks that all pages are free
    /// again.
    pub fn finish(mut self) {
        if self.over {
            return;
        }
        self.script.borrow_mut().remark("In the end everything is freed.");
        if !self.doomed.is_empty() {
            self.script
                .borrow_mut()
                .close("Stored operations run first here, for which there is no statement.");
            self.sim.vm().vm_lowmem();
            self.settle();
        }
        let mut patience = 3;
        while patience > 0 {
            while let Some((map, start, bytes)) = self.anything() {
                self.give_back(map, start, bytes);
                self.settle();
            }
            if self.sleepers.is_empty() {
                break;
            }
            // Sleepers are now woken for room that came without a wakeup.
            for map in std::mem::take(&mut self.quiet) {
                let (id, addr) =
                    (self.naive.maps[map].id, GuestVirt::new(self.naive.maps[map].min));
                self.ok(Op::KmemFreeWakeup { map: id, addr, size: 0 });
            }
            self.settle();
            // The pagedaemon may have to make a pass.
            self.wait();
            self.settle();
            patience -= 1;
        }
        // Together they may hold all pages, each waiting for the others.
        let wanted = [What::Kernel, What::Kmem, What::Pageable]
            .map(|what| self.underway(what))
            .iter()
            .sum::<u64>();
        if !self.sleepers.is_empty() && wanted + 100 > self.whole {
            return;
        }
        assert!(self.sleepers.is_empty(), "who could go on sleeps: {:?}", self.sleepers);
        check(&self.sim);
        assert_eq!(self.free_and_used_by_itself(), self.whole, "pages are lost");
    }

    /// A range that must be freed.
    fn anything(&self) -> Option<(usize, u64, u64)> {
        let free = |range: &Range| !matches!(range.what, What::Fixed | What::Submap);
        let of = |map: usize| {
            let all = self.naive.maps[map].ranges.iter();
            all.filter(|&(at, range)| free(range) && !self.is_asleep_in(*at))
                .map(move |(&at, range)| (map, at, range.bytes))
                .next()
        };
        (0..self.naive.maps.len()).find_map(of)
    }

    /// Frees a whole range, and wakes the threads that wait.
    fn give_back(&mut self, map: usize, start: u64, bytes: u64) {
        self.verify(start, start + bytes);
        self.take_down(start, bytes);
        let addr = GuestVirt::new(start);
        self.ok(Op::KmemFreeWakeup { map: self.naive.maps[map].id, addr, size: bytes });
        self.naive.free(map, start, start + bytes);
        self.quiet.remove(&map);
    }

    /// Removes entered pages from a range that is about to be freed, as a kernel would.
    pub fn take_down(&mut self, start: u64, bytes: u64) {
        let within = self.naive.memory.range(start..start + bytes);
        let entered: Vec<u64> =
            within.filter(|(_, memory)| memory.what == What::Nofault).map(|(&va, _)| va).collect();
        for run in entered.chunk_by(|low, high| low + PAGE_SIZE == *high) {
            self.ok(Op::PmapQremove { addr: GuestVirt::new(run[0]), count: run.len() as u64 });
            for va in run {
                self.naive.memory.remove(va);
            }
        }
    }
}
