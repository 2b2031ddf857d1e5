#!/usr/bin/env bash
# The stress tests of several CPUs for about ten minutes on two cores: twelve million operations of
# 16 threads on two CPUs, 1.2 million of 32 threads on four, with five thousand looks each, and
# 10,000 rounds of a reader whose memory another CPU frees. Arguments go to the test program. If a
# guest fails, its dump is saved in the file VMKERN_STRESS_IMAGE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export VMKERN_STRESS_OPERATIONS=${VMKERN_STRESS_OPERATIONS:-12000000}
export VMKERN_STRESS_PAUSES=${VMKERN_STRESS_PAUSES:-5000}
export VMKERN_STRESS_ROUNDS=${VMKERN_STRESS_ROUNDS:-10000}
export VMKERN_STRESS_SECONDS=${VMKERN_STRESS_SECONDS:-3600}
exec cargo test --release -p vmkern-tests --test stress -- --nocapture --test-threads 1 "$@"
