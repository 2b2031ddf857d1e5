#!/usr/bin/env bash
# Prints the kernel's functions in the order in which they are first executed, one mangled name per
# line, without the hash at its end: the content of guest/kernel/text.order. First come those of a
# boot and of one request, then the others that the self-test executes. QEMU's emulated CPU traces
# the execution.
#
#     scripts/text-order.sh > order && mv order guest/kernel/text.order
#
# The order only affects speed: a boot whose code is contiguous touches fewer pages. Names that no
# longer exist, and functions that are not named, do no harm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cargo run --locked --release --quiet -- kernel --output "$dir/image"

# Offset of field $2 of structure $1, from the description in the kernel.
offset() {
    strings -n 4 "$dir/image" |
        awk -v structure="$1" -v field="$2" '
            /^[A-Z]/ { inside = $1 == structure && NF == 2 }
            inside && $1 == field { print $2; inside = 0 }'
}
# Writes bytes, in the format of printf, at offset $1 of the control region.
put() {
    printf "$2" | dd of="$dir/region" bs=1 seek="$1" conv=notrunc status=none
}
# A control region with one request in its ring: `kmem_malloc kmem_map 4K NOWAIT` on thread 0.
readonly region=0x40000
truncate -s 64K "$dir/region"
requests=$(offset ControlRegion requests)
slot=$((requests + $(offset Ring slots)))
put 0 'vmkern\0\001'
put "$requests" '\001'
put "$slot" '\001\0\0\0\003\0\0\0\001\0\0\0\0\0\0\0\0\020\0\0\0\0\0\0\001'

# Prints the blocks of code that a boot with the command line $1 executes within $2 seconds, each
# once, in order.
blocks() {
    local trace="$dir/trace"
    mkfifo "$trace"
    timeout "$2" qemu-system-x86_64 -accel tcg -M microvm,x-option-roms=off,isa-serial=on -m 64 -nodefaults \
        -no-user-config -no-reboot -display none -serial null -device isa-debug-exit,iobase=0xf4,iosize=1 \
        -device loader,file="$dir/region",addr="$region",force-raw=on -kernel "$dir/image" \
        -append "privilege=user zeroed $1" -d exec,nochain -D "$trace" </dev/null 2>"$dir/errors" &
    awk '/^Trace/ { split($4, part, "/"); if (!seen[part[2]]++) print part[2] }' "$trace"
    wait || true
    rm "$trace"
}
# The first never ends: it waits for more requests.
{
    blocks "control=$region tsc_khz=1000000" 10
    blocks selftest 120
} >"$dir/blocks"
# All names of a function, on one line with its address.
nm --defined-only "$dir/image" | awk '
    $2 ~ /[tT]/ { sub(/17h[0-9a-f]*E$/, "", $3); names[$1] = names[$1] " " $3 }
    END { for (address in names) print address, "function" names[address] }' >"$dir/functions"
# Both kinds of lines, sorted by address: a block belongs to the last function before it.
{
    cat "$dir/functions"
    awk '{ print $1, "block", NR }' "$dir/blocks"
} | sort -k1,1 -k2,2r | awk '
    $2 == "function" { $1 = $2 = ""; names = $0 }
    $2 == "block" && names { print $3 names }' | sort -n |
    awk '{ for (i = 2; i <= NF; i++) if ($i !~ /selftest/ && !seen[$i]++) print $i }'
