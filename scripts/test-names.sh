#!/usr/bin/env bash
# Lists the tests by name, or the names removed and added since a commit. A moved test keeps its
# name, so only dropped, new and renamed tests show.
#
#     scripts/test-names.sh                  the names, one per line
#     scripts/test-names.sh --since COMMIT   names removed (-) and added (+); 1 if any is removed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The names of functions after #[test], and of scripts, in the files of a commit or of the work
# tree.
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
        printf '%s\n' "${changes:-no test was removed or added}"
        ! grep -q '^- ' <<<"$changes"
        ;;
    *)
        sed -n '2,6p' "$0" >&2
        exit 2
        ;;
esac
