#!/usr/bin/env bash
# Has QEMU's own balloon squeeze the kernel image: on an emulated CPU (TCG) at both privileges, from
# 64M to 16M and back, while the kernel fills and verifies memory (`selftest=balloon`). So an
# independent device checks the driver. The kernel ends by the exit port when the balloon is empty
# again.
#
#     scripts/balloon-qemu.sh [IMAGE]
#
# Without IMAGE it takes the kernel out of the release build of vmkern.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for tool in qemu-system-x86_64 python3; do
    command -v "$tool" >/dev/null || { echo "balloon-qemu: $tool is missing" >&2; exit 1; }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ $# -gt 0 ]; then
    image=$1
else
    image=$scratch/kernel.elf
    cargo run --locked --release --quiet -- image --output "$image"
fi

# Speaks QMP by the socket $1: asks for 16M, waits until the balloon and the kernel's output $2 say
# so, asks for 64M, and waits for the end of QEMU.
drive() {
    python3 - "$1" "$2" <<'PYTHON'
import json, socket, sys, time

LIMIT = 60  # seconds for everything
MIB = 1 << 20
end = time.monotonic() + LIMIT
qmp = socket.socket(socket.AF_UNIX)
while True:
    try:
        qmp.connect(sys.argv[1])
        break
    except (FileNotFoundError, ConnectionRefusedError):
        if time.monotonic() > end:
            sys.exit("balloon-qemu: QEMU opened no socket")
qmp.settimeout(LIMIT)
words = qmp.makefile("rw")
actual = []


def read():
    line = words.readline()
    if not line:
        raise EOFError
    word = json.loads(line)
    if word.get("event") == "BALLOON_CHANGE":
        actual.append(word["data"]["actual"])
    return word


def ask(command, **arguments):
    words.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    words.flush()
    while True:
        word = read()
        if "error" in word:
            sys.exit(f"balloon-qemu: {command}: {word['error']}")
        if "return" in word:
            return word["return"]


def squeeze(target):
    ask("balloon", value=target)
    while ask("query-balloon")["actual"] != target:
        if time.monotonic() > end:
            sys.exit(f"balloon-qemu: {target >> 20}M not reached, events: {actual}")


def await_line(text):
    """Waits until the kernel has said so: it works while the balloon is large."""
    while text not in open(sys.argv[2]).read():
        if time.monotonic() > end:
            sys.exit(f"balloon-qemu: the kernel did not say {text!r}")


read()
ask("qmp_capabilities")
squeeze(16 * MIB)
print("balloon-qemu: actual is 16M")
await_line("balloon: 12288 pages after ")
try:
    ask("balloon", value=64 * MIB)
    while True:
        if ask("query-balloon")["actual"] == 64 * MIB:
            print("balloon-qemu: actual is 64M again")
            while True:
                read()
        if time.monotonic() > end:
            sys.exit("balloon-qemu: 64M not reached")
except (EOFError, BrokenPipeError, ConnectionResetError):
    pass
PYTHON
}

readonly success=33
failed=0
for privilege in user supervisor; do
    printf '\n-- TCG, privilege=%s\n' "$privilege"
    socket=$scratch/$privilege.qmp
    output=$scratch/$privilege.txt
    : >"$output"
    drive "$socket" "$output" &
    driver=$!
    status=0
    timeout --kill-after=5 90 qemu-system-x86_64 \
        -accel tcg -M microvm,x-option-roms=off,isa-serial=on,acpi=off -m 64 \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio \
        -global virtio-mmio.force-legacy=false -device virtio-balloon-device \
        -qmp "unix:$socket,server=on,wait=off" \
        -device isa-debug-exit,iobase=0xf4,iosize=1 \
        -kernel "$image" -append "privilege=$privilege selftest=balloon" </dev/null >"$output" || status=$?
    wait "$driver" || failed=1
    cat "$output"
    if [ "$status" -ne "$success" ]; then
        failed=1
        echo "QEMU ended with status $status instead of $success"
    fi
done
[ "$failed" -eq 0 ] && printf '\nballoon-qemu: both privileges passed\n'
