//! The threads on which statements run, and their order.

use super::Generator;

impl Generator<'_> {
    /// The number of a thread with nothing outstanding, as far as is known.
    pub(super) fn free_thread(&mut self) -> u64 {
        let last = if self.dice.once_in(9) { 63 } else { 4 };
        (0..9).map(|_| self.dice.between(1, last)).find(|one| !self.busy.contains(one)).unwrap_or(0)
    }

    /// A thread in a script's syntax.
    pub(super) fn thread(&mut self, number: u64) -> String {
        match self.dice.between(0, 9) {
            0 => format!("t[{number}]"),
            1 if number > 0 => format!("t[{} + 1]", number - 1),
            _ => format!("t{number}"),
        }
    }

    /// The prefix of a statement that names its thread, if any.
    pub(super) fn runner(&mut self) -> String {
        match self.dice.between(0, 9) {
            0..=4 => String::new(),
            5 | 6 => {
                let number = self.free_thread();
                format!("{}: ", self.thread(number))
            }
            7 | 8 if self.depth == 0 => {
                let number = self.free_thread();
                self.busy.push(number);
                format!("start {}: ", self.thread(number))
            }
            _ => "intr: ".to_owned(),
        }
    }

    pub(super) fn threads(&mut self) {
        if self.dice.once_in(9) {
            // It may have nothing outstanding.
            let number = self.dice.between(0, 5);
            let thread = self.thread(number);
            let verb = self.dice.word(&["join", "abandon"]);
            return self.say(format!("{verb} {thread}"));
        }
        if self.busy.is_empty() || self.depth > 0 || self.dice.once_in(3) {
            let number = self.free_thread();
            let (thread, (call, _)) = (self.thread(number), self.allocation());
            self.say(format!("start {thread}: {call}"));
            return self.say(format!("join {thread}"));
        }
        let number = self.busy.swap_remove(0);
        let thread = self.thread(number);
        let line = match self.dice.between(0, 5) {
            0 => format!("j{} = join {thread}", self.dice.between(0, 3)),
            1 => {
                self.busy.push(number);
                format!("abandon {thread}")
            }
            _ => format!("join {thread}"),
        };
        self.say(line);
    }

    pub(super) fn repeat(&mut self) {
        let count = match self.dice.between(0, 9) {
            0 => "0".to_owned(),
            1 => "ncpu + 1".to_owned(),
            2 => {
                // The count does not matter: the body is empty.
                self.say("repeat 18446744073709551615".to_owned());
                return self.say("end".to_owned());
            }
            _ => self.dice.between(1, 4).to_string(),
        };
        self.say(format!("repeat {count}"));
        self.depth += 1;
        for _ in 0..self.dice.between(1, 4) {
            self.statement();
        }
        self.depth -= 1;
        self.say("end".to_owned());
    }

    pub(super) fn on_lowmem(&mut self) {
        let (call, _) = self.allocation();
        let call = match self.dice.between(0, 2) {
            0 => call,
            1 => "uma_reclaim".to_owned(),
            _ => self.dice.word(&["settle", "sleep 1ms", "read 0"]).to_owned(),
        };
        self.say(format!("on_lowmem {call}"));
    }

    pub(super) fn wait(&mut self) {
        let runner = self.runner();
        let call = match self.dice.between(0, 4) {
            0 => "uma_reclaim".to_owned(),
            1 => "settle".to_owned(),
            2 => format!("sleep {}us", self.dice.between(0, 1000 * self.style.sleep)),
            3 if self.style.sleep > 1000 => "sleep 18446744073709551615s".to_owned(),
            _ => format!("sleep {}ms", self.dice.between(0, self.style.sleep)),
        };
        self.say(format!("{runner}{call}"));
    }
}
