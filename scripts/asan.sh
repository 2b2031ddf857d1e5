#!/usr/bin/env bash
# Runs the memory system's tests on the simulated machine under AddressSanitizer. Besides the
# process's own memory it watches the simulated memory: free pages, and free structures of zones and
# maps (see `PhysMem::mark`). First it proves that it finds errors: each deed of
# guest/kmem/examples/asan_finds.rs must end in the right report.
#
# The compiler is the stable one: RUSTC_BOOTSTRAP makes it accept the flag, and the runtime comes
# with the toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=address --cfg asan"
# Naming the target keeps the flags away from build scripts and procedural macros.
export CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/asan
# Unoptimized, the tests take three times as long.
export CARGO_PROFILE_DEV_OPT_LEVEL=1
# Leaks count, too.
export ASAN_OPTIONS=detect_leaks=1

kmem=(--locked --package kmem --features sim)

passed=0
failed=0
must_find() {
    local deed=$1 report=$2 output
    if output=$("$CARGO_TARGET_DIR/$CARGO_BUILD_TARGET/debug/examples/asan_finds" "$deed" 2>&1); then
        echo "asan: $deed was not found: $output" >&2
        failed=$((failed + 1))
    elif grep -q "ERROR: AddressSanitizer: $report" <<<"$output"; then
        echo "found $deed: $report"
        passed=$((passed + 1))
    else
        printf 'asan: expected %s to cause %s, but got:\n%s\n' "$deed" "$report" "$output" >&2
        failed=$((failed + 1))
    fi
}

cargo build "${kmem[@]}" --example asan_finds
must_find out-of-bounds heap-buffer-overflow
must_find machine-gone heap-use-after-free
must_find freed-page use-after-poison
must_find fresh-page use-after-poison
must_find freed-structure use-after-poison
printf 'AddressSanitizer finds what it must: %d passed; %d failed\n\n' "$passed" "$failed"
[ "$failed" -eq 0 ]

cargo test "${kmem[@]}" --lib
