//! `vmkern image`: the embedded kernel as a file, for other loaders and for debuggers.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use vmkern::KernelImage;
use vmkern::script::Status;

const EXAMPLES: &str = "\
Example: the same kernel under QEMU's own CPU emulation, checking itself
  vmkern image --output vmkern.elf
  qemu-system-x86_64 -accel tcg -M microvm,x-option-roms=off,isa-serial=on -nodefaults -no-user-config \\
      -display none -serial stdio -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=1 \\
      -kernel vmkern.elf -append 'privilege=supervisor selftest'";

/// Writes the embedded kernel image, an ELF file with a PVH entry and symbols.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImageArgs {
    /// Where to.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &ImageArgs) -> Status {
    let written = fs::write(&args.output, KernelImage::embedded().bytes())
        .with_context(|| format!("cannot write the kernel image to {}", args.output.display()));
    match written {
        Ok(()) => Status::Ok,
        Err(error) => {
            super::complain(&error);
            Status::Usage
        }
    }
}
