#!/usr/bin/env bash
# Boots the kernel image with `selftest` under QEMU: on an emulated CPU (TCG) at both privileges,
# and on /dev/kvm with the body at CPL3. So a second CPU implementation and a second loader check
# the same image that vmkern embeds.
#
#     scripts/selftest.sh [IMAGE]
#
# Without IMAGE it takes the kernel out of the release build of vmkern.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# isa-debug-exit ends QEMU with 2 * code + 1; the kernel writes 0x10 when every check passed.
readonly success=33
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
boot() {
    local accel=$1 privilege=$2 status=0
    printf '\n-- %s, privilege=%s\n' "$accel" "$privilege"
    timeout --kill-after=5 "$seconds" qemu-system-x86_64 \
        -accel "$accel" -M microvm,x-option-roms=off,isa-serial=on -m 64 \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio \
        -device isa-debug-exit,iobase=0xf4,iosize=1 \
        -kernel "$image" -append "privilege=$privilege selftest" </dev/null || status=$?
    case $status in
        "$success") passed=$((passed + 1)) ;;
        124 | 137) failed=$((failed + 1)); echo "no end within $seconds s" ;;
        *) failed=$((failed + 1)); echo "QEMU ended with status $status instead of $success" ;;
    esac
}

boot tcg user
boot tcg supervisor
boot kvm user

printf '\nself-test: %d of %d boots succeeded\n' "$passed" "$((passed + failed))"
[ "$failed" -eq 0 ]
