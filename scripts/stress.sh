#!/usr/bin/env bash
# The stress tests of several CPUs for about ten minutes: two million operations on two CPUs, as many on four, with a thousand
# looks each, and 100,000 rounds of a reader under whom another CPU frees. Arguments go to the test program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export VMKERN_STRESS_OPERATIONS=${VMKERN_STRESS_OPERATIONS:-2000000}
export VMKERN_STRESS_PAUSES=${VMKERN_STRESS_PAUSES:-1000}
export VMKERN_STRESS_ROUNDS=${VMKERN_STRESS_ROUNDS:-100000}
export VMKERN_STRESS_SECONDS=${VMKERN_STRESS_SECONDS:-3600}
exec cargo test --release -p vmkern-tests --test stress -- --nocapture --test-threads 1 "$@"
