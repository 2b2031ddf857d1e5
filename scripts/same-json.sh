#!/usr/bin/env bash
# Compares the behaviour of two builds of vmkern: runs every script of the corpus with both and
# compares the output of `run --json` and the exit status.
#
#     scripts/same-json.sh OLD NEW [DIRECTORY]      two commands; default: tests/scripts
#
# These differ from run to run or between builds, and are left out of the comparison:
#   cycles, *_cycles      how long something took
#   elapsed*, *_us, *_ns  the same
#   backtrace             addresses of code
#   rip, rsp, rbp         the same
#   kernel, build_id      which build it was
# and within texts: lines of a backtrace, and addresses in the kernel's image.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
for command in "$1" "$2"; do
    [ -f "$command" ] && [ -x "$command" ] || { echo "no command $command" >&2; exit 2; }
done
old=$(realpath "$1")
new=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

corpus=${3:-tests/scripts}
[ -d "$corpus" ] || { echo "no directory $corpus" >&2; exit 2; }
command -v jq >/dev/null || { echo 'jq is needed (apt-get install jq)' >&2; exit 2; }

stable='walk(if type == "object" then with_entries(select(.key
    | test("^(cycles|.*_cycles|elapsed.*|.*_us|.*_ns|backtrace|rip|rsp|rbp|kernel|build_id)$") | not))
    elif type == "string" then gsub("\\n *#[0-9]+ [^\\n]*"; "") | gsub("0xffffffff8[0-9a-f]{7}"; "(image)")
    else . end)'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() {
    local command=$1 script=$2 options=()
    case $script in */64M/*) options=(--memory 64M) ;; esac
    local status=0
    timeout 120 "$command" run --json "${options[@]}" "$script" 2>/dev/null >"$scratch/out" || status=$?
    [ "$(jq -r type "$scratch/out" 2>/dev/null)" = object ] || { echo "$command prints no JSON object for $script" >&2; exit 2; }
    jq -S "$stable" "$scratch/out"
    echo "exit status $status"
}

same=0
different=0
while IFS= read -r script; do
    run "$old" "$script" >"$scratch/old"
    run "$new" "$script" >"$scratch/new"
    if diff -u --label old --label new "$scratch/old" "$scratch/new" >"$scratch/diff"; then
        same=$((same + 1))
    else
        different=$((different + 1))
        printf 'DIFFERS  %s\n' "$script"
        head -n 40 "$scratch/diff"
    fi
done < <(find "$corpus" -name '*.kmem' | sort)
printf '%d scripts alike, %d different\n' "$same" "$different"
[ "$different" -eq 0 ] && [ "$same" -gt 0 ]
