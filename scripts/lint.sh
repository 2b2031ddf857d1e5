#!/usr/bin/env bash
# All static checks of the sources, cheapest first: formatting, the book, clippy for the workspace
# and for the kernel image, rustdoc. Warnings are errors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() {
    printf '\n+ %s\n' "$*"
    "$@"
}

# The inspector depends on the layout of memory, but not on a hypervisor.
no_kvm() {
    local tree
    tree=$(cargo tree --locked --package vmkern-inspect --edges normal,build --prefix none)
    ! grep -E '^(kvm-|vm-memory|linux-loader|vmm-sys-util|vm-superio)' <<<"$tree"
}

run cargo fmt --all --check
run scripts/check-docs.sh
run scripts/rooms.sh
run scripts/house.sh --check
run no_kvm
run cargo clippy --locked --workspace --all-targets -- -D warnings
# The kernel's binary needs a feature, so the line above skips it. Its panic handler needs a profile
# that aborts on panic.
run cargo clippy --locked --package vmkern-kernel --features image --bin vmkern-kernel --profile guest -- -D warnings
# The library by itself, as a dependency of an empty project: at most 42 crates, including that
# project and ours.
run cargo clippy --locked --package vmkern --lib --no-default-features -- -D warnings
crates=$(cargo tree --locked --package vmkern --no-default-features --edges normal,build --prefix none | sed 's/ (\*)$//' | sort -u | wc -l)
echo "crates: $((crates + 1)) for the library"
[ "$((crates + 1))" -le 42 ]
RUSTDOCFLAGS="-D warnings" run cargo doc --locked --workspace --no-deps
