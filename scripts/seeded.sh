#!/usr/bin/env bash
# Proves that sweeps find what they are for: builds three kernels with a mistake on an error path
# (guest/kmem/src/kern/seeded.rs) and requires that a sweep reports each one, with the calls where a
# failure was injected and those where the mistake shows.
#   scripts/seeded.sh [VMKERN]
# VMKERN is the command, target/release/vmkern by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
vmkern=${1:-target/release/vmkern}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0

# Sweeps the script $2 over the site $3 with the kernel that has the mistake $1, and looks for a
# finding of the kind $4 that failed in $5 and showed in $6.
seed() {
    local mistake=$1 script=$2 site=$3 kind=$4 failed_at=$5 showed_at=$6 status=0
    scripts/kernel.sh "$mistake" "$work/kernel.elf"
    "$vmkern" test "tests/scripts/$script" --fail-every "$site" --check --kernel "$work/kernel.elf" --json \
        >"$work/report.json" 2>/dev/null || status=$?
    if [ "$status" -eq 1 ] && jq --exit-status --arg kind "$kind" --arg failed "$failed_at" --arg showed "$showed_at" '
        [.sites[].unexpected[] | select(.kind == $kind)
            | select(any(.failed_at[]; contains($failed)) and any(.showed_at[]; contains($showed)))]
        | length > 0' "$work/report.json" >/dev/null; then
        passed=$((passed + 1))
        echo "ok   $mistake: $script, $site: a $kind, failed in $failed_at, showed in $showed_at"
    else
        failed=$((failed + 1))
        echo "FAIL $mistake: $script, $site: status $status, no $kind that failed in $failed_at and showed in $showed_at"
        jq --compact-output '.sites[].unexpected[] | {hit, kind, what}' "$work/report.json" | head -n 20
    fi
}

seed bug-leak smallest.kmem vm_page_alloc.interrupt check kmem_malloc_pages object-leak
seed bug-lock smallest.kmem vm_map_findspace panic kmem_malloc_space mtx_lock
seed bug-wakeup pageable.kmem vm_fault_alloc asleep vm_fault_page msleep
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
