//! Runs a script as a user does, and reports what went wrong.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// A command that runs for longer counts as hung, even on a busy machine.
const HANG: Duration = Duration::from_secs(600);

/// The result of a run that went right.
pub struct Ran {
    pub status: i32,
    /// The object of `--json`, if it was asked for.
    pub report: Option<Value>,
}

impl Ran {
    /// A field of the report; null if it is absent.
    pub fn get(&self, name: &str) -> &Value {
        self.report.as_ref().map_or(&Value::Null, |report| &report[name])
    }

    /// The elements of a list of the report.
    pub fn list(&self, name: &str) -> &[Value] {
        self.get(name).as_array().map_or(&[], Vec::as_slice)
    }
}

/// Whether any process of group `group` is alive.
fn group_lives(group: u32) -> bool {
    let stat = |path: PathBuf| fs::read_to_string(path.join("stat")).ok();
    let processes = fs::read_dir("/proc").expect("/proc is there");
    let mut all = processes.filter_map(|entry| stat(entry.ok()?.path()));
    all.any(|stat| {
        // After the name: state, parent, group.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        fields.split_whitespace().nth(2) == Some(&group.to_string())
    })
}

/// Files in `dir` that neither the options nor the script name.
fn strangers(dir: &Path, args: &[String], text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let named = |name: &str| {
        ["script.kmem", "stderr"].contains(&name)
            || args.iter().any(|arg| arg == name)
            || text.contains(&format!("dump {name}"))
    };
    let entries = fs::read_dir(dir).expect("the folder is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| !named(name)).collect()
}

/// Empties `dir`.
fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            .expect("it can be removed");
    }
}

/// The child's output until it ends, or `None` if it hangs.
fn written(child: &mut Child) -> Option<Vec<u8>> {
    let mut pipe = child.stdout.take().expect("it is a pipe");
    let (send, receive) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    let bytes = receive.recv_timeout(HANG).ok();
    if bytes.is_none() {
        child.kill().expect("the child can be killed");
    }
    reader.join().expect("it ends with the pipe");
    bytes
}

/// The object on standard output, which says how the run ended.
fn report(stdout: &[u8], status: i32) -> Result<Value, String> {
    let json: Value = serde_json::from_slice(stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(stdout)))?;
    let said = (json["schema"].as_u64(), json["status"].as_i64(), json["ok"].as_bool());
    if said != (Some(1), Some(i64::from(status)), Some(status == 0)) {
        return Err(format!("status {status}, and the report says {said:?}"));
    }
    let lists = ["steps", "failures"].map(|name| json[name].as_array());
    let [Some(steps), Some(failures)] = lists else { return Err(format!("no report: {json}")) };
    let is_step = |step: &Value| step["line"].is_u64() && step["result"]["kind"].is_string();
    if !steps.iter().all(is_step) || failures.is_empty() != (status == 0) {
        return Err(format!("an unlikely report: {json}"));
    }
    Ok(json)
}

/// Runs the script, and reports what went wrong.
pub fn run(dir: &Path, args: &[String], text: &[u8]) -> Result<Ran, String> {
    clear(dir);
    fs::write(dir.join("script.kmem"), text).expect("the script can be written");
    let log = fs::File::create(dir.join("stderr")).expect("the log can be made");
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmkern"))
        .arg("run")
        .args(args)
        .arg("script.kmem")
        .current_dir(dir)
        .env("TMPDIR", dir)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("the command can be started");
    let stdout = written(&mut child);
    let status = child.wait().expect("the child is ours");
    let Some(stdout) = stdout else { return Err("it hangs".to_owned()) };
    let words =
        String::from_utf8_lossy(&fs::read(dir.join("stderr")).unwrap_or_default()).into_owned();
    let strangers = strangers(dir, args, text);
    match (status.code(), status.signal()) {
        (_, Some(signal)) => Err(format!("signal {signal}\n{words}")),
        (Some(0..=3 | 5), None) if !strangers.is_empty() => {
            Err(format!("it leaves files: {strangers:?}"))
        }
        (Some(0..=3 | 5), None) if group_lives(child.id()) => Err("it leaves processes".to_owned()),
        (Some(status @ (0..=3 | 5)), None) => {
            let is_json = args.iter().any(|arg| arg == "--json");
            let report = is_json.then(|| report(&stdout, status)).transpose();
            report.map(|report| Ran { status, report }).map_err(|why| format!("{why}\n{words}"))
        }
        (code, None) => Err(format!("status {code:?}\n{words}")),
    }
}
