#!/usr/bin/env bash
# Prints the kernel's functions in the order in which the self-test first executes them, the boot's first: what
# guest/kernel/text.order holds. QEMU's emulated CPU tells where execution goes.
#
#     scripts/text-order.sh > guest/kernel/text.order
#
# The order is a matter of speed alone: a boot whose code lies side by side touches fewer pages. Names that are no longer
# there, and functions that are not named, do no harm. A name takes all functions along that have it, so that `fmt` is left
# out: the link script has what a boot formats.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cargo run --locked --release --quiet -- image --output "$dir/image"
mkfifo "$dir/trace"
{
    timeout 120 qemu-system-x86_64 -accel tcg -M microvm,x-option-roms=off,isa-serial=on -m 64 -nodefaults \
        -no-user-config -no-reboot -display none -serial null -device isa-debug-exit,iobase=0xf4,iosize=1 \
        -kernel "$dir/image" -append "privilege=user selftest" -d exec,nochain -D "$dir/trace" </dev/null || true
} &
# Each block of code once, in order.
awk '/^Trace/ { split($4, part, "/"); if (!seen[part[2]]++) print part[2] }' "$dir/trace" >"$dir/blocks"
wait
nm --defined-only "$dir/image" | awk '$2 ~ /[tT]/ { print $1, $3 }' >"$dir/functions"
# Both kinds of lines by address: the last function before a block is the one that it belongs to.
{
    awk '{ print $1, "function", $2 }' "$dir/functions"
    awk '{ print $1, "block", NR }' "$dir/blocks"
} | sort -k1,1 -k2,2r | awk '$2 == "function" { name = $3 } $2 == "block" && name { print $3, name }' | sort -n |
    grep -v selftest |
    awk '{
        # The last part of a mangled name: a length, and as many letters.
        symbol = $2; last = symbol
        sub(/17h[0-9a-f]*E$/, "", symbol)
        for (at = 1; match(substr(symbol, at), /[0-9]+/); ) {
            digits = substr(symbol, at + RSTART - 1, RLENGTH); at += RSTART - 1 + RLENGTH
            part = substr(symbol, at, digits)
            if (length(part) == digits + 0 && part ~ /^[a-z][a-z0-9_]*$/) { last = part; at += digits }
        }
        if (length(last) > 2 && last != "fmt" && last ~ /^[a-z][a-z0-9_]*$/ && !seen[last]++) print last
    }'
