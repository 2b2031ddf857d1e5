//! Builds the guest kernel with a nested cargo and passes the path of its ELF file to the library.
//!
//! The nested build has its own target directory, shared by all profiles of the outer build, and a
//! clean environment: wrappers, flags and profile overrides of the outer build (clippy, coverage,
//! sanitizers) are meant for the host and would break a kernel. The target is named on the command
//! line although it is the host's, so the kernel's code model does not apply to build scripts and
//! procedural macros.
//!
//! `VMKERN_KERNEL_IMAGE=PATH` embeds an existing kernel instead of building one.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Code generation for a kernel that is linked at the top 2 GiB and takes traps on its own stack: a
/// flag a line.
const GUEST_FLAGS: &str = include_str!("../guest/kernel/rustflags");

fn main() -> ExitCode {
    println!("cargo:rustc-env=VMKERN_COMMIT={}", commit());
    match kernel_image() {
        Ok(image) => {
            println!("cargo:rustc-env=VMKERN_KERNEL_ELF={}", image.display());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("\nerror: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The commit for the version text. A debug build does not track it, because each commit would then
/// rebuild everything.
fn commit() -> String {
    if env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return "debug build".to_owned();
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        Some(commit) => format!("commit {commit}"),
        None => "built without git".to_owned(),
    }
}

fn kernel_image() -> Result<PathBuf, String> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("the vmkern crate must lie in its workspace, beside the guest's sources")?
        .to_path_buf();
    // 1. An existing kernel.
    println!("cargo:rerun-if-env-changed=VMKERN_KERNEL_IMAGE");
    if let Some(image) = env::var_os("VMKERN_KERNEL_IMAGE") {
        let image = PathBuf::from(image);
        println!("cargo:rerun-if-changed={}", image.display());
        return if image.is_file() {
            Ok(image)
        } else {
            Err(format!("VMKERN_KERNEL_IMAGE names `{}`, which is not a file", image.display()))
        };
    }
    // 2. Each change of the guest's sources rebuilds it.
    for source in ["guest", "shared", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }
    let target = variable("TARGET")?;
    if !target.starts_with("x86_64-") || !target.contains("linux") {
        return Err(format!("vmkern runs on x86_64 Linux only, and the build is for {target}"));
    }
    // 3. The build, in its own target directory: this build holds the lock of the outer one.
    let target_dir = guest_target_dir(Path::new(&variable("OUT_DIR")?))?;
    let status = guest_cargo(&workspace, &target, &target_dir)?
        .status()
        .map_err(|error| format!("cannot start cargo for the guest kernel: {error}"))?;
    if !status.success() {
        return Err(
            "the guest kernel (package vmkern-kernel) failed to build; its compiler's messages \
             stand above"
                .into(),
        );
    }
    Ok(target_dir.join(&target).join("guest").join("vmkern-kernel"))
}

fn guest_cargo(workspace: &Path, target: &str, target_dir: &Path) -> Result<Command, String> {
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if is_of_the_outer_build(&name) {
            cargo.env_remove(&name);
        }
    }
    let mut flags: Vec<String> = GUEST_FLAGS.lines().map(String::from).collect();
    flags.push(format!("--remap-path-prefix={}=.", workspace.display()));
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--package",
            "vmkern-kernel",
            "--features",
            "image",
            "--bin",
            "vmkern-kernel",
        ])
        .args(["--profile", "guest", "--target", target])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    Ok(cargo)
}

/// Whether a variable configures the outer build. The locations of cargo and rustup, and the
/// network's settings, are kept.
fn is_of_the_outer_build(name: &OsStr) -> bool {
    const KEPT: [&str; 5] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    const DROPPED: [&str; 13] = [
        "CARGO",
        "RUSTFLAGS",
        "RUSTC",
        "RUSTDOC",
        "CLIPPY_",
        "OUT_DIR",
        "TARGET",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "DEP_",
    ];
    let Some(name) = name.to_str() else { return false };
    !KEPT.iter().any(|kept| name.starts_with(kept))
        && DROPPED.iter().any(|dropped| name.starts_with(dropped))
}

/// The guest's target directory, inside the outer build's, which is the nearest directory above
/// `out_dir` with cargo's mark.
fn guest_target_dir(out_dir: &Path) -> Result<PathBuf, String> {
    out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .or_else(|| out_dir.ancestors().nth(4))
        .map(|dir| dir.join("guest-image"))
        .ok_or_else(|| {
            format!("OUT_DIR is `{}`, which is not inside a target directory", out_dir.display())
        })
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("the variable {name} of the build: {error}"))
}
