#!/usr/bin/env bash
# Rewrites the samples in the book: the block of lines below each comment `<!-- sample: vmkern
# ARGUMENTS -->` is the output of that command. With --check it changes nothing, and fails if a
# sample has other words than the command's output; numbers and pictures may differ, as they do
# between kernels.
#
# usage: scripts/samples.sh [--check] [VMKERN]    (by default the command is target/release/vmkern)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

check=no
if [ "${1:-}" = --check ]; then
    check=yes
    shift
fi
vmkern=${1:-target/release/vmkern}

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT

# Prints a page with its samples replaced and everything else unchanged.
renew() {
    local line skipping=no
    while IFS= read -r line; do
        if [ "$skipping" = yes ]; then
            case $line in '' | '    '*) continue ;; esac
            skipping=no
            echo
        fi
        printf '%s\n' "$line"
        if [[ $line =~ ^'<!-- sample: vmkern '(.*)' -->'$ ]]; then
            echo
            # The arguments are this repository's own words.
            eval "'$vmkern' ${BASH_REMATCH[1]}" 2>/dev/null | sed 's/^/    /; s/^ *$//'
            skipping=yes
        fi
    done
}

# The words of a page, each once, without pictures, stacks and numbers.
words() {
    sed -E '/\|/d; /^ +#[0-9]/d; /\.rs:/d; s/0x[0-9a-f]+//g; s/\b[0-9a-f]{16}\b//g' | grep -oE '[a-z_]{3,}' | sort -u
}

failed=0
for page in README.md docs/inspect.md; do
    renew <"$page" >"$fresh"
    if [ "$check" = no ]; then
        cat "$fresh" >"$page"
    elif ! diff <(words <"$page") <(words <"$fresh"); then
        echo "$page: the samples differ from the command's output; run scripts/samples.sh" >&2
        failed=1
    fi
done
exit "$failed"
