#!/usr/bin/env bash
# Times two builds of a command in turn and reports whether the new one is slower.
#
#     scripts/ab.sh OLD NEW [-n ROUNDS] [-- ARGUMENTS]      default: 21 rounds of one kmem_malloc
#     scripts/ab.sh old/vmkern target/release/vmkern -- test tests/scripts
#
# Each round runs both once, in alternating order, and yields one ratio new / old. The output has
# the medians, and the median ratio with its 99 % confidence interval (bootstrap over rounds). Exit
# status: 1 if new is slower beyond the interval, 2 on wrong use.
set -euo pipefail

usage() {
    sed -n '2,9p' "$0" >&2
    exit 2
}

[ $# -ge 2 ] || usage
for command in "$1" "$2"; do
    [ -f "$command" ] && [ -x "$command" ] || { echo "no command $command" >&2 && exit 2; }
done
old=$(realpath "$1")
new=$(realpath "$2")
shift 2
rounds=21
if [ "${1:-}" = -n ]; then
    rounds=${2:?rounds}
    shift 2
fi
[ "$rounds" -ge 8 ] || { echo 'a verdict needs 8 rounds' >&2; exit 2; }
input=/dev/null
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
case ${1:-} in
    --) shift ;;
    '')
        echo 'kmem_malloc kmem_map 4K NOWAIT' >"$scratch/script"
        input=$scratch/script
        set -- run -
        ;;
    *) usage ;;
esac

# Microseconds of one run; its status must be the same for both.
once() {
    local command=$1 begin end
    shift
    begin=${EPOCHREALTIME/./}
    "$command" "$@" <"$input" >"$scratch/output" 2>&1 || {
        echo "$command $* ended with status $?:" >&2
        head -n 20 "$scratch/output" >&2
        exit 2
    }
    end=${EPOCHREALTIME/./}
    echo $((end - begin))
}

for ((round = 0; round <= rounds; round++)); do
    if ((round % 2)); then
        a=$(once "$old" "$@")
        b=$(once "$new" "$@")
    else
        b=$(once "$new" "$@")
        a=$(once "$old" "$@")
    fi
    # The first round warms up.
    ((round == 0)) || echo "$a $b"
done | awk '
    function sort(v, n,   i, j, t) {
        for (i = 2; i <= n; i++) { t = v[i]; for (j = i - 1; j > 0 && v[j] > t; j--) v[j + 1] = v[j]; v[j + 1] = t }
    }
    function median(v, n) { sort(v, n); return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }
    { n++; old[n] = $1; new[n] = $2; ratio[n] = $2 / $1 }
    END {
        if (!n) exit 2
        srand(1); times = 1000
        for (k = 1; k <= times; k++) {
            for (i = 1; i <= n; i++) s[i] = ratio[1 + int(rand() * n)]
            m[k] = median(s, n)
        }
        sort(m, times)
        low = m[5]; high = m[times - 4]
        says = low > 1 ? "slower" : high < 1 ? "faster" : "no difference"
        printf "%d rounds: old %.0f us, new %.0f us, new / old %.3f [%.3f .. %.3f]: %s\n",
            n, median(old, n), median(new, n), median(ratio, n), low, high, says
        exit low > 1
    }'
