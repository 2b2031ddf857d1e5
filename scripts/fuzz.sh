#!/usr/bin/env bash
# Runs CASES cases of damaged images through everything that looks into images, from case FIRST on. A case is its number;
# one that fails is printed, and belongs into REGRESSIONS of tests/tests/fuzz/main.rs.
#   scripts/fuzz.sh CASES [FIRST]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export FUZZ_CASES=${1:-1000000}
export FUZZ_FIRST=${2:-0}
# Not the release build: this one finds additions that overflow.
exec cargo test --locked --package vmkern-tests --test fuzz -- --nocapture
