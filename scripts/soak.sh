#!/usr/bin/env bash
# Long versions of tests that continuous integration runs in a short form, in sections: those named,
# or all.
#   scripts/soak.sh [SECTION...]
# A section prints its progress and lines with "N passed, M failed", which are added up at the end;
# the status is 0 if nothing failed. A section is a function soak_NAME. Each lists its environment
# variables.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# 5,000 guests on 1, 2 and 4 CPUs, half of them beside two busy loops, that are stopped at random
# instants or die in one of sixteen ways: the check has no findings. A failed case is named by its
# number: STOPPED_FIRST=NUMBER STOPPED_CASES=1 repeats it, and VMKERN_STOPPED_IMAGES=DIRECTORY saves
# a dump of it.
soak_check() {
    STOPPED_CASES=${STOPPED_CASES:-5000} cargo test --locked --release --package vmkern-tests --test stopped -- \
        --nocapture nothing_is_found
}

# The corpus with a check at the end of each script, SOAK_CORPUS times (20) on 1, 2 and 4 CPUs,
# beside two busy loops.
soak_corpus() {
    cargo build --locked --release || return
    local loops=() round cpus passed=0 failed=0 output
    for _ in 1 2; do
        # However this script ends, they end, too.
        (while [ -d "/proc/$$" ]; do :; done) &
        loops+=($!)
    done
    for cpus in 1 2 4; do
        for ((round = 1; round <= ${SOAK_CORPUS:-20}; round++)); do
            if output=$(target/release/vmkern test --check --vcpus "$cpus" --timeout 600s tests/scripts 2>&1); then
                passed=$((passed + 1))
            else
                failed=$((failed + 1))
                printf '%s\n' "$output"
            fi
        done
        printf '%s CPUs: %d rounds\n' "$cpus" "$((round - 1))"
    done
    kill "${loops[@]}"
    wait "${loops[@]}" 2>/dev/null
    printf 'rounds of the corpus: %d passed, %d failed\n' "$passed" "$failed"
}

# 3,000 random scripts and 3,000 mutations of the corpus: each ends by itself, reports no bug of the
# VMM or of the guest, and leaves nothing behind; repeatable runs have the same results again.
# SCRIPTS is the number of each kind, SCRIPTS_SEED the first seed; a failed script is printed with
# its seed.
soak_scripts() {
    VMKERN_SCRIPTS=${SCRIPTS:-3000} VMKERN_SCRIPTS_SEED=${SCRIPTS_SEED:-0} cargo test --locked --release --package vmkern \
        --test random_scripts -- --nocapture
}

# The random histories of the memory system on the simulated machine and in guests, HISTORIES (5)
# times as many as in the tests: 100,000 on the simulated machine, 1,000 in guests.
soak_histories() {
    local output status=0
    output=$(VMKERN_MODEL_FACTOR=${HISTORIES:-5} cargo test --locked --package kmem --package vmkern-tests \
        --lib --test replay -- --nocapture histories 2>&1) || status=$?
    printf '%s\n' "$output" | grep -E 'histories|^test result|panicked'
    [ "$status" -eq 0 ] || return "$status"
    awk '/: [0-9]+ histories$/ { n += $(NF - 1) } /^[0-9]+ histories, / { n += $1 } END { print n + 0 " passed, 0 failed" }' \
        <<<"$output"
}

# Every hit of every fail site in every script of the corpus, one in each run, each with a check at
# its end. FAIL_UP_TO (64) is the number of hits of one site in one script: churn.kmem alone has some
# ten thousand.
soak_fail() {
    local output status=0
    cargo build --locked --release || return
    output=$(target/release/vmkern test tests/scripts --fail-every all --fail-up-to "${FAIL_UP_TO:-64}" --check \
        --jobs 2 2>&1) || status=$?
    printf '%s\n' "$output" | grep -v '^ok'
    sed -nE 's/^([0-9]+) points, ([0-9]+) unexpected, .*/\1 passed, \2 failed/p' <<<"$output"
    return "$status"
}

# scripts/stress.sh with a sixth of its operations: two million of 16 threads on two CPUs, 200,000
# of 32 threads on four, with a thousand looks each, and 10,000 rounds of a reader whose memory
# another CPU frees. STRESS_OPERATIONS and STRESS_PAUSES set other numbers.
soak_stress() {
    local output status=0
    output=$(VMKERN_STRESS_OPERATIONS=${STRESS_OPERATIONS:-2000000} VMKERN_STRESS_PAUSES=${STRESS_PAUSES:-1000} \
        scripts/stress.sh 2>&1) || status=$?
    printf '%s\n' "$output"
    # The tests are the cases here.
    sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 passed, \2 failed/p' <<<"$output"
    return "$status"
}

# Threads on four CPUs that allocate, verify and free while the host takes free pages and gives them
# back at random, with a check between two steps: PRESSURE_SEEDS (10) runs of PRESSURE_STEPS (1,000)
# steps each, about a minute a run. The first seed is PRESSURE_FIRST (1).
soak_pressure() {
    local seed first=${PRESSURE_FIRST:-1} passed=0 failed=0 output
    for ((seed = first; seed < first + ${PRESSURE_SEEDS:-10}; seed++)); do
        if output=$(VMKERN_STRESS_SEED=$seed VMKERN_STRESS_SQUEEZES=${PRESSURE_STEPS:-1000} \
            VMKERN_STRESS_OPERATIONS=${PRESSURE_OPERATIONS:-2000000} \
            cargo test --locked --release --package vmkern-tests --test stress -- \
            --nocapture four_cpus_lose_nothing_while 2>&1); then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
        fi
        printf 'seed %d: %s\n' "$seed" "$(grep -E 'seizures|operations in|panicked' <<<"$output" | tr '\n' ';')"
    done
    printf 'runs under pressure: %d passed, %d failed\n' "$passed" "$failed"
}

# The sections, in the order of this file.
mapfile -t all < <(sed -n 's/^soak_\([a-z_]*\)() {$/\1/p' "$0")
sections=("$@")
[ $# -gt 0 ] || sections=("${all[@]}")
for section in "${sections[@]}"; do
    declare -F "soak_$section" >/dev/null || {
        printf 'no section %s; there are: %s\n' "$section" "${all[*]}" >&2
        exit 2
    }
done

log=$(mktemp)
trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT
broken=0
for section in "${sections[@]}"; do
    printf '\n=== %s\n' "$section"
    "soak_$section" 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || broken=1
done
# The test programs' own counts of tests are not counts of cases.
grep -v '^test result' "$log" | grep -oE '[0-9]+ passed, [0-9]+ failed' |
    awk -v broken="$broken" '{ p += $1; f += $3 }
        END { printf "\n%d passed, %d failed\n", p, f; exit (broken || f > 0 || p == 0) ? 1 : 0 }'
