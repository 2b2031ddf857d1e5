#!/usr/bin/env bash
# Runs the models of rings, doorbells, the log, fail points, locks, pages, sleep queues, idle CPUs
# and TLB shootdowns: loom tries every order of events, with at most three preemptions (fewer where
# a model's module says so), and every value that weak memory allows a load to see. A model is a
# test in a module `loom`, which runs the same code that host and kernel use, under `cfg(loom)`.
#
#     scripts/loom.sh [FILTER]
#
# To examine a model that fails, set LOOM_LOG=info and LOOM_LOCATION=1 in the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export RUSTFLAGS="--cfg loom"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/loom
export CARGO_PROFILE_DEV_OPT_LEVEL=1
export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3}

cargo test --locked --package vmkern-abi --package kmem --lib -- "loom::${1:-}"
