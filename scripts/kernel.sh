#!/usr/bin/env bash
# Builds a kernel image with cargo features of the kernel's own, beside the built-in one: for
# `vmkern bench --against`, for `--kernel`, and for tests that need a kernel with a mistake.
#   scripts/kernel.sh FEATURES OUTPUT
# FEATURES are those of guest/kernel/Cargo.toml, joined by commas; `image` alone is the built-in one.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: scripts/kernel.sh FEATURES OUTPUT" >&2; exit 2; }
output=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The flags are separated by the ASCII unit separator, as cargo wants them.
flags=$(paste -sd $'\x1f' guest/kernel/rustflags)
target=x86_64-unknown-linux-gnu
directory=${CARGO_TARGET_DIR:-target}/guest-variants
env -u RUSTFLAGS CARGO_ENCODED_RUSTFLAGS="$flags"$'\x1f'"--remap-path-prefix=$PWD=." \
    cargo build --locked --quiet --package vmkern-kernel --features "image,$1" --bin vmkern-kernel \
    --profile guest --target "$target" --target-dir "$directory"
cp "$directory/$target/guest/vmkern-kernel" "$output"
