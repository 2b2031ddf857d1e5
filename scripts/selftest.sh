#!/usr/bin/env bash
# Boots the kernel image with `selftest` under QEMU: on an emulated CPU (TCG) at both privileges, on
# 1, 2 and 4 CPUs, and on /dev/kvm with the body at CPL3. So a second CPU implementation and a
# second loader check the same image that vmkern embeds. Then it boots it at both privileges with
# each page fault that ends the kernel (`fault=`), and reads what the kernel says of it.
#
#     scripts/selftest.sh [IMAGE]
#
# Without IMAGE it takes the kernel out of the release build of vmkern.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# isa-debug-exit ends QEMU with 2 * code + 1; the kernel writes 0x10 when every check passed, and
# 0x12 when it dies.
readonly success=33
readonly crash=37
readonly seconds=60

command -v qemu-system-x86_64 >/dev/null || {
    echo "selftest: qemu-system-x86_64 is missing (Debian: apt-get install qemu-system-x86)" >&2
    exit 1
}
if [ $# -gt 0 ]; then
    image=$1
else
    image=$(mktemp)
    trap 'rm -f "$image"' EXIT
    cargo run --locked --release --quiet -- image --output "$image"
fi

passed=0
failed=0
qemu() {
    local accel=$1 cpus=$2 line=$3
    timeout --kill-after=5 "$seconds" qemu-system-x86_64 \
        -accel "$accel" -M microvm,x-option-roms=off,isa-serial=on -m 64 -smp "$cpus" \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio \
        -device isa-debug-exit,iobase=0xf4,iosize=1 \
        -kernel "$image" -append "$line" </dev/null
}

# Counts a boot that ended with `status` and should have ended with `wanted`.
judge() {
    local status=$1 wanted=$2
    case $status in
        "$wanted") passed=$((passed + 1)) ;;
        124 | 137) failed=$((failed + 1)); echo "no end within $seconds s" ;;
        *) failed=$((failed + 1)); echo "QEMU ended with status $status instead of $wanted" ;;
    esac
}

boot() {
    local accel=$1 privilege=$2 cpus=$3 status=0 more=
    [ "$cpus" -eq 1 ] || more=" vcpus=$cpus time=real"
    printf '\n-- %s, privilege=%s, %s CPUs\n' "$accel" "$privilege" "$cpus"
    qemu "$accel" "$cpus" "privilege=$privilege selftest$more" || status=$?
    judge "$status" "$success"
}

# Dies of the page fault `fault`, and must say `words`.
dies() {
    local fault=$1 words=$2 privilege status output
    for privilege in user supervisor; do
        status=0
        output=$(qemu tcg 1 "privilege=$privilege fault=$fault") || status=$?
        printf 'privilege=%s fault=%s: %s\n' "$privilege" "$fault" \
            "$(grep -m 1 '^panic: ' <<<"$output" || echo 'no panic')"
        if grep -q "^panic: $words" <<<"$output"; then
            judge "$status" "$crash"
        else
            failed=$((failed + 1))
            echo "it does not say \`$words\`"
        fi
    done
}

for cpus in 1 2 4; do
    boot tcg user "$cpus"
    boot tcg supervisor "$cpus"
done
boot kvm user 1

printf '\n-- page faults that end the kernel\n'
at='at 0x[0-9a-f]*, rip 0x[0-9a-f]*'
dies hole "page fault: read (not present) $at\$"
dies submap-hole "page fault: read (not present) $at\$"
dies nofault 'vm_fault: fault on nofault entry, addr: ffffff80'
dies no-object "page fault: read (not present) $at\$"
dies dmap-hole "page fault: read (not present) at 0xffffff7ffffff000"
dies execute "page fault: instruction fetch (protection violation) $at\$"
dies read-only "page fault: write (protection violation) $at: \[0x[0-9a-f]*, 0x[0-9a-f]*) allows r--\$"
dies lost-page 'vm_page_unwire: invalid wire count: 0$'
dies interrupt "page fault: read (not present) $at, in an interrupt handler\$"
dies mutex "page fault: read (not present) $at, while holding system map\$"
dies critical-section "page fault: read (not present) $at, in a critical section\$"

printf '\nself-test: %d of %d boots succeeded\n' "$passed" "$((passed + failed))"
[ "$failed" -eq 0 ]
