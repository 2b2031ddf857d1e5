#!/usr/bin/env bash
# What fail points cost while none is armed: instructions of a pair of an allocation and a free on
# the simulated machine, with the sites and with the sites compiled out, by cachegrind. The bound is
# 1 %.
#   scripts/fail-cost.sh
# PAIRS (2,000) is the number of pairs over which the instructions are counted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pairs=${PAIRS:-2000}

# Builds the example with the features $1, and keeps it as $2.
build() {
    cargo build --locked --quiet --release --package kmem --example pairs --features "$1"
    cp target/release/examples/pairs "$work/$2"
}

# Instructions that the program $1 executes for $3 pairs of the kind $2.
instructions() {
    local out
    out=$(valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null "$work/$1" "$2" "$3" 2>&1)
    sed -nE 's/.*I *refs: *//p' <<<"$out" | tr -d ', '
}

# Instructions of one pair: the boot is the same for both counts.
of_a_pair() {
    local few many
    few=$(instructions "$1" "$2" 100)
    many=$(instructions "$1" "$2" $((pairs + 100)))
    awk -v d=$((many - few)) -v n="$pairs" 'BEGIN { printf "%.1f", d / n }'
}

build sim with
build sim,no-fail-sites without
status=0
for kind in malloc alloc; do
    with=$(of_a_pair with "$kind")
    without=$(of_a_pair without "$kind")
    awk -v k="$kind" -v w="$with" -v o="$without" 'BEGIN {
        p = (w / o - 1) * 100
        printf "kmem_%s and kmem_free: %s instructions with fail points, %s without: %+.2f %%\n", k, w, o, p
        exit p > 1
    }' || status=1
done
exit "$status"
