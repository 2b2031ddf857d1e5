#!/usr/bin/env bash
# Lists the tests by name, or says which have gone and come since a commit. A test that was moved
# keeps its name, so that only what was dropped, added or renamed shows.
#
#     scripts/test-names.sh                  the names, a line each
#     scripts/test-names.sh --since COMMIT   names that have gone (-) and come (+); 1 if any has gone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The names of functions after #[test], and of scripts, in the files of a commit or of the work tree.
names() {
    local where=$1
    {
        git grep -h -A6 -F '#[test]' ${where:+"$where"} -- '*.rs' |
            awk '/#\[test\]/ { waits = 1 }
                waits && match($0, /fn [A-Za-z0-9_]+/) { print substr($0, RSTART + 3, RLENGTH - 3); waits = 0 }'
        git ls-tree -r --name-only "${where:-HEAD}" tests/scripts | sed 's|.*/||'
    } | sort
}

case ${1:-} in
    '') names '' ;;
    --since)
        git rev-parse --quiet --verify "${2:-}^{commit}" >/dev/null || { echo "no commit ${2:-}" >&2; exit 2; }
        changes=$(diff <(names "$2") <(names '') | sed -n 's/^< /- /p; s/^> /+ /p') || true
        printf '%s\n' "${changes:-no test has gone or come}"
        ! grep -q '^- ' <<<"$changes"
        ;;
    *)
        sed -n '2,6p' "$0" >&2
        exit 2
        ;;
esac
