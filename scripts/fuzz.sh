#!/usr/bin/env bash
# Runs every kind of inspection on CASES damaged dumps, from case FIRST on. A case is its number.
# Failed cases are printed; add them to REGRESSIONS in tests/tests/fuzz/main.rs.
#   scripts/fuzz.sh CASES [FIRST]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export FUZZ_CASES=${1:-1000000}
export FUZZ_FIRST=${2:-0}
# The release build is eight times as fast as the tests' build, but must also find additions that
# overflow.
export CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/fuzz
exec cargo test --locked --release --package vmkern-tests --test fuzz -- --nocapture
