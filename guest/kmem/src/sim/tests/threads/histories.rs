//! Random histories of sleeps, wakeups and time against a model that is a list.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Sleep { channel: u64, timo: u64 },
    Wakeup { channel: u64 },
    WakeupOne { channel: u64 },
    Advance,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..3, 0u64..6).prop_map(|(channel, timo)| Step::Sleep { channel, timo }),
        1 => (0u64..3).prop_map(|channel| Step::Wakeup { channel }),
        2 => (0u64..3).prop_map(|channel| Step::WakeupOne { channel }),
        2 => Just(Step::Advance),
    ]
}

/// The threads that sleep, in the order in which they came.
#[derive(Debug, Default)]
struct Model {
    sleepers: Vec<(u32, u64, Option<u64>)>,
    woken: Vec<(u32, u64)>,
    now: u64,
}

impl Model {
    fn wake(&mut self, channel: u64, most: usize) {
        for _ in 0..most {
            let Some(at) = self.sleepers.iter().position(|sleeper| sleeper.1 == channel) else {
                return;
            };
            let (tid, ..) = self.sleepers.remove(at);
            self.woken.push((tid, 0));
        }
    }

    fn advance(&mut self) {
        let Some(first) = self.sleepers.iter().filter_map(|sleeper| sleeper.2).min() else {
            return;
        };
        self.now = first;
        self.woken.extend(
            self.sleepers
                .iter()
                .filter(|sleeper| sleeper.2 == Some(first))
                .map(|sleeper| (sleeper.0, 1)),
        );
        self.sleepers.retain(|sleeper| sleeper.2 != Some(first));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_of_sleeps_agree_with_a_list(steps in prop::collection::vec(step(), 1..60)) {
        let (sim, notes) = (boot(), Notes::default());
        let mut model = Model { now: sim.vm().cnt().ticks.get(), ..Model::default() };
        for (tid, step) in (100..).zip(steps) {
            match step {
                Step::Sleep { channel: number, timo } => {
                    let notes = notes.clone();
                    sim.spawn(tid, move |vm| {
                        let sleep = sleep(vm, channel(number), timo);
                        notes.note(tid, u64::from(sleep == Sleep::TimedOut));
                    });
                    model.sleepers.push((tid, number, (timo != 0).then(|| model.now + timo)));
                    sim.run();
                }
                Step::Wakeup { channel: number } => {
                    sim.vm().wakeup(channel(number));
                    sim.run();
                    model.wake(number, usize::MAX);
                }
                Step::WakeupOne { channel: number } => {
                    sim.vm().wakeup_one(channel(number));
                    sim.run();
                    model.wake(number, 1);
                }
                Step::Advance => {
                    sim.advance();
                    model.advance();
                }
            }
            prop_assert_eq!(notes.take(), std::mem::take(&mut model.woken));
            let asleep: Vec<_> = sim
                .waiting()
                .iter()
                .filter(|w| w.tid >= 100)
                .map(|w| (w.tid, w.deadline))
                .collect();
            let expected: Vec<_> =
                model.sleepers.iter().map(|&(tid, _, deadline)| (tid, deadline)).collect();
            prop_assert_eq!(asleep, expected);
        }
    }
}
