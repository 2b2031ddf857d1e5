//! Several CPUs: threads that mix all functions in nearly full maps, with and without a host that
//! takes free pages away meanwhile, and reads of memory that another CPU frees.
//!
//! The amount is counted in operations of [`Workload::Stress`]: about half of them allocate, the
//! others verify and free. `VMKERN_STRESS_OPERATIONS` (on two CPUs; four do a tenth of them),
//! `VMKERN_STRESS_PAUSES`, `VMKERN_STRESS_ROUNDS` and `VMKERN_STRESS_SECONDS` (the time limit of a
//! run) set it; `scripts/soak.sh stress` uses larger values.

use std::time::{Duration, Instant};

use vmkern::abi::layout::KernelRoots;
use vmkern::guest::{Pages, PressureTarget, Workload};
use vmkern::inspect::What;
use vmkern::inspect::draw::draw;
use vmkern::testing::Balance;
use vmkern::{
    Context, Guest, GuestBuilder, GuestError, GuestVirt, MallocFlags, MapId, MapKind, Op, Outcome,
    Response, ThreadId, TimeMode,
};
use vmkern_tests::kern::{Calls as _, KernGuest, PAGE};
use vmkern_tests::{Run, launch, launch_within};

/// How long the guest runs undisturbed between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A number from the environment.
fn asked(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// The number of operations on two CPUs.
fn operations() -> u64 {
    asked("VMKERN_STRESS_OPERATIONS", 240_000)
}

/// A guest in which threads spread over `vcpus` CPUs.
fn builder(vcpus: u32) -> GuestBuilder {
    Guest::builder().vcpus(vcpus).time(TimeMode::Real)
}

/// The time limit of a run.
fn limit() -> Duration {
    Duration::from_secs(asked("VMKERN_STRESS_SECONDS", 900))
}

/// Saves a dump of the guest for `vmkern inspect` in the file `VMKERN_STRESS_IMAGE`, if that is
/// set.
fn leave_image(guest: &Guest) {
    if let Ok(path) = std::env::var("VMKERN_STRESS_IMAGE")
        && let Err(error) = guest.save_dump(&path)
    {
        println!("{path}: {error}");
    }
}

/// Fails the test with the state of the guest's threads, and with the owners of locks.
fn fail(guest: &Guest, why: &str) -> ! {
    leave_image(guest);
    let threads = match guest.inspect("guest", &What::Threads) {
        Ok(inspection) => draw(&inspection),
        Err(error) => error.to_string(),
    };
    let locks = match guest.check() {
        Ok(report) => report.to_string(),
        Err(error) => error.to_string(),
    };
    panic!("{why}\n{threads}\n{locks}");
}

/// The number of pages that are page tables, which are never freed, or that maps keep for entries,
/// including those that clipping may need.
fn pages_for_maps(guest: &Guest) -> u64 {
    let roots = guest.look(|view| view.copy::<KernelRoots>("kernel roots", view.roots()));
    let roots = roots.expect("the roots can be read");
    roots.kernel_pmap.table_count.get() + roots.map_pages.get()
}

fn next(guest: &mut Guest) -> Response {
    match guest.next_response() {
        Ok(response) => response,
        Err(error @ GuestError::Crashed(_)) => {
            leave_image(guest);
            panic!("{error}")
        }
        Err(error) => fail(guest, &error.to_string()),
    }
}

/// A host that takes free pages and gives them back, by a seed.
struct Squeeze {
    state: u64,
    seizures: u64,
    back: u64,
}

impl Squeeze {
    fn new(seed: u64) -> Self {
        Self { state: seed, seizures: 0, back: 0 }
    }

    /// A number below `end` (Knuth's generator).
    fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) % end
    }

    /// One step: takes all pages but a few, or some, or gives some or all back.
    fn step(&mut self, guest: &mut Guest) {
        let (choice, pages) = (self.below(4), Pages(self.below(4000)));
        let result = match choice {
            0 => guest.pressure().seize(PressureTarget::Leave(Pages(pages.0 % 400))),
            1 => guest.pressure().seize(PressureTarget::More(pages)),
            choice => {
                let pages = if choice == 2 { pages } else { Pages::ALL };
                let _ = guest.pressure().release(pages).expect("pages come back");
                return;
            }
        };
        let report = result.expect("pages are taken");
        assert!(report.taken <= report.asked && report.taken <= report.held, "{report:?}");
        self.seizures += u64::from(report.taken > Pages(0));
        self.back += report.back.0;
    }
}

/// A run of [`Workload::Stress`] on `parties` threads.
struct Stress {
    guest: KernGuest,
    parties: u16,
    pageable: MapId,
    system: MapId,
    squeeze: Option<Squeeze>,
}

impl Stress {
    fn new(vcpus: u32, parties: u16) -> Self {
        let builder = builder(vcpus).memory(64 << 20).tunable("vm.kmem_size", 8 << 20);
        let mut guest = KernGuest::from(launch_within(limit(), builder));
        let pageable =
            guest.kmem_suballoc(MapId::KERNEL, u64::from(parties) * 16 * PAGE, MapKind::User);
        let system =
            guest.kmem_suballoc(MapId::KERNEL, u64::from(parties) * 32 * PAGE, MapKind::System);
        (0..parties).for_each(|thread| guest.make_thread(thread));
        Self { guest, parties, pageable, system, squeeze: None }
    }

    /// A host takes pages away and gives them back between two looks, by `seed`.
    fn squeezed(self, seed: u64) -> Self {
        Self { squeeze: Some(Squeeze::new(seed)), ..self }
    }

    /// Asks for the final answers of threads that were reported blocked.
    fn join_blocked(&mut self) {
        let blocked: Vec<_> = self.guest.blocked().map(|(thread, _)| thread.number()).collect();
        for thread in blocked {
            let join = self.guest.submit_in(Context::Thread(thread), Op::Join { thread });
            join.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// The host gives everything back.
    fn relax(&mut self) {
        let Some(squeeze) = &self.squeeze else { return };
        let held = self.guest.pressure().release(Pages::ALL).expect("pages come back");
        assert_eq!(held, Pages(0));
        println!("{} seizures, {} pages back at the host", squeeze.seizures, squeeze.back);
        assert!(squeeze.seizures > 0, "nothing was ever seized");
    }

    /// Whether any of the threads still works.
    fn is_at_work(&self) -> bool {
        let threads = self.guest.threads().expect("the threads can be read");
        threads
            .iter()
            .filter(|thread| thread.tid < self.parties.into())
            .any(|thread| thread.waits_for.is_none_or(|why| why.to_string() != "request"))
    }

    /// The used part of the map, in percent.
    fn fill(&mut self, map: MapId) -> u64 {
        let stats = self.guest.stats(map);
        stats.size * 100 / stats.max.since(stats.min)
    }

    /// Makes the threads perform `operations` operations in total, and checks the guest up to
    /// `pauses` times in the meantime: nothing may be lost then or at the end.
    fn run(mut self, operations: u64, pauses: u64) {
        let (before, for_maps) = (Balance::of(&self.guest), pages_for_maps(&self.guest));
        let maps = [MapId::KMEM, self.system, MapId::EXEC, self.pageable];
        let sizes = maps.map(|map| self.guest.stats(map).size);
        let each = operations.div_ceil(self.parties.into());
        let (pageable, system, parties) = (self.pageable, self.system, self.parties.into());
        for thread in 0..self.parties {
            let op = Op::Work(Workload::Stress {
                seed: thread.into(),
                operations: each,
                parties,
                pageable,
                system,
            });
            self.guest
                .submit_in(Context::Thread(thread), op)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let (mut looks, mut full, mut since_full, mut updating) = (0, 0, 0, 0);
        let begun = Instant::now();
        while !self.is_at_work() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no thread begins");
        }
        while looks < pauses && self.is_at_work() {
            let report = match self.guest.check() {
                Ok(report) if report.is_clean() => report,
                Ok(report) => fail(&self.guest, &format!("after {looks} looks: {report}")),
                Err(error) => fail(&self.guest, &error.to_string()),
            };
            updating += u64::from(!report.updating.is_empty());
            let fill = self.fill(MapId::KMEM);
            assert!(fill <= 95, "kmem_map is {fill} percent full");
            full += u64::from(fill >= 70);
            since_full += u64::from(full > 0);
            looks += 1;
            if let Some(squeeze) = &mut self.squeeze {
                squeeze.step(&mut self.guest);
            }
            // Let them work between looks: that is the point of the test.
            std::thread::sleep(BETWEEN_LOOKS);
        }
        self.relax();
        let mut done = 0;
        while self.guest.in_flight() > 0 {
            match next(&mut self.guest).outcome {
                Outcome::Value(operations) => done += operations,
                // While all threads waited for pages, none could go on.
                Outcome::Blocked { .. } if self.squeeze.is_some() => self.join_blocked(),
                other => fail(&self.guest, &format!("{other:?}")),
            }
        }
        assert!(done >= operations, "{done} operations");
        assert!(
            full * 2 > since_full || self.squeeze.is_some(),
            "kmem_map was 70 percent full at {full} of {since_full} looks, of {looks} in all"
        );
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{done} operations in {seconds:.1} s, {looks} looks, \
             {updating} of them while a lock was owned"
        );
        let (after, for_maps_after) = (Balance::of(&self.guest), pages_for_maps(&self.guest));
        let without_maps = |balance: Balance, pages: u64| Balance {
            free: balance.free + pages,
            wired: balance.wired - pages,
            ..balance
        };
        assert_eq!(without_maps(after, for_maps_after), without_maps(before, for_maps));
        assert_eq!(maps.map(|map| self.guest.stats(map).size), sizes);
        self.guest.assert_whole();
    }
}

#[test]
fn two_cpus_lose_nothing_in_a_mix_of_16_threads_in_nearly_full_maps() {
    Stress::new(2, 16).run(operations(), asked("VMKERN_STRESS_PAUSES", 120));
}

#[test]
fn four_cpus_lose_nothing_in_a_mix_of_32_threads_in_nearly_full_maps() {
    Stress::new(4, 32).run(operations() / 10, asked("VMKERN_STRESS_PAUSES", 60));
}

#[test]
fn four_cpus_lose_nothing_while_the_host_takes_free_pages_and_gives_them_back() {
    let seed = asked("VMKERN_STRESS_SEED", 1);
    let pauses = asked("VMKERN_STRESS_SQUEEZES", 120);
    Stress::new(4, 32).squeezed(seed).run(operations() / 10, pauses);
}

#[test]
fn a_reader_on_another_cpu_faults_at_its_first_access_after_the_free_has_returned() {
    let wanted = asked("VMKERN_STRESS_ROUNDS", 2_000);
    let mut guest = KernGuest::from(launch_within(limit(), builder(2)));
    let mailbox = guest.kmem_malloc(MapId::KMEM, PAGE, MallocFlags::ZERO).expect("there is room");
    guest.make_thread(1);
    let before = Balance::of(&guest);
    let free = guest
        .submit(ThreadId::MAIN, Op::Work(Workload::SpinFree { mailbox, map: MapId::KMEM }))
        .expect("the guest lives");
    let read = guest
        .submit(ThreadId::nth::<1>(), Op::Work(Workload::SpinRead { mailbox, rounds: wanted }))
        .expect("the guest lives");
    let (first, second) = (next(&mut guest), next(&mut guest));
    let of = |tag| {
        [first, second]
            .into_iter()
            .find(|response| response.tag == tag)
            .expect("one of ours")
            .outcome
    };
    let Outcome::Value(rounds) = of(read) else { panic!("{:?}", of(read)) };
    assert!(rounds >= wanted, "{rounds} rounds");
    assert_eq!(of(free), Outcome::Ok);
    assert_eq!(Balance::of(&guest), before);
    guest.assert_whole();
}

#[test]
fn a_reader_and_who_frees_under_it_are_refused_on_one_cpu_where_each_would_wait_for_ever() {
    let mut guest = KernGuest::from(launch(Guest::builder()));
    let mailbox = guest.kmem_malloc(MapId::KMEM, PAGE, MallocFlags::ZERO).expect("there is room");
    let ops = [
        Op::Work(Workload::SpinRead { mailbox, rounds: 1 }),
        Op::Work(Workload::SpinFree { mailbox, map: MapId::KMEM }),
    ];
    assert!(ops.map(|op| guest.run(op)).iter().all(|outcome| matches!(outcome, Outcome::Error(_))));
    let stray = GuestVirt::new(mailbox.get() + 8);
    assert!(matches!(
        guest.run(Op::Work(Workload::SpinRead { mailbox: stray, rounds: 1 })),
        Outcome::Error(_)
    ));
}
