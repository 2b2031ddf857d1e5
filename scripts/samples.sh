#!/usr/bin/env bash
# Writes the samples in the book anew: the block of lines below each comment `<!-- sample: vmkern ARGUMENTS -->` is what
# that command prints. With --check it changes nothing, and fails where a sample has other words than the command prints;
# numbers and pictures may differ, as they do from kernel to kernel.
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

# The samples of a page in its place: everything else of it unchanged.
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

# The words of a page, each once, without those of pictures, stacks and numbers.
words() {
    sed -E '/\|/d; /^ +#[0-9]/d; /\.rs:/d; s/0x[0-9a-f]+//g; s/\b[0-9a-f]{16}\b//g' | grep -oE '[a-z_]{3,}' | sort -u
}

failed=0
for page in README.md docs/inspect.md; do
    renew <"$page" >"$fresh"
    if [ "$check" = no ]; then
        cat "$fresh" >"$page"
    elif ! diff <(words <"$page") <(words <"$fresh"); then
        echo "$page: the samples are not what the command prints; run scripts/samples.sh" >&2
        failed=1
    fi
done
exit "$failed"
