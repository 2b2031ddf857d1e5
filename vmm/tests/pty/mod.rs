//! A command at a terminal of its own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Far more than anything takes that a test waits for.
pub const LONG: Duration = Duration::from_secs(30);

/// A command with its terminal.
pub struct Pty {
    pub child: Child,
    /// Our side of the terminal.
    pub keys: File,
    screen: Arc<Mutex<String>>,
}

impl Pty {
    /// Starts `vmkern ARGS` with `environment`, as the leader of a session at a new terminal.
    pub fn new(args: &[&str], environment: &[(&str, &str)]) -> Self {
        // 1. The terminal. No other command inherits our side of it: it would keep it open.
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there are terminals");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs =
            open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("it can be opened");
        // 2. The command.
        let stream = || Stdio::from(theirs.try_clone().expect("there is room for a descriptor"));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_vmkern")])
            .args(args)
            .envs(environment.iter().copied())
            .env("NO_COLOR", "1")
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("setsid of util-linux is there");
        drop(theirs);
        // 3. What it writes, as it comes.
        let keys = File::from(ours);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (keys.try_clone().expect("there is room"), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error when the other side is closed.
            while let Ok(len @ 1..) = from.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..len]);
                to.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { child, keys, screen }
    }

    /// Everything that has come so far.
    pub fn text(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("somebody reads them");
    }

    /// Waits until `find` finds something in the text that has come; panics with `missing` of the
    /// text after a long time.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        find: impl Fn(&str) -> Option<T>,
        missing: impl Fn(&str) -> String,
    ) -> T {
        let end = Instant::now() + LONG;
        loop {
            let text = self.text();
            if let Some(found) = find(&text) {
                return found;
            }
            assert!(Instant::now() < end, "{}", missing(&text));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end of the command.
    #[track_caller]
    pub fn status(&mut self) -> ExitStatus {
        let end = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status;
            }
            assert!(Instant::now() < end, "it does not end: {}", self.text());
            thread::sleep(Duration::from_millis(10));
        }
    }
}
